"""Lines of shell, run by the shells that hosts have, with and without a sudo between."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from blocks.commands import CommandLine, MarkedOutput, SudoMode, command_line, sudo_refusal
from tests.unit.conftest import Shell

MARK = "crossgap0123456789abcdef"
PASSWORD = " p4ss'\"\\n%s$HOME 口令 "
LOGIN_SHELLS = [
    name
    for name in ("dash", "bash", "zsh", "ksh", "mksh", "yash", "csh", "tcsh", "fish")
    if shutil.which(name)
]
NASTY = [
    "$(touch pwned)",
    "`touch pwned`",
    "a b",
    "  ",
    "'",
    "''\"'",
    '"',
    ";&|<>(){}[]",
    "*",
    "~",
    "#",
    "\\",
    "\\\\",
    "\\'",
    "\\n",
    "!",
    "!x",
    "换\n行",
    "\n",
    "\t",
    "%s",
    "-n",
    "--",
    "",
]


@dataclass(frozen=True)
class Outcome:
    """What came of a line, its noise taken off.

    Args:
        code: The exit code.
        out: The command's own standard output.
        err: The command's own standard error.
        began: Whether both streams showed the mark.
        noise: What came on standard error instead.
    """

    code: int
    out: bytes
    err: bytes
    began: bool
    noise: str


def run_line(
    login: list[str], line: CommandLine, data: bytes = b"", path: str = "/usr/bin:/bin"
) -> Outcome:
    """Do with a line what a login shell does, and what a reader of its output does."""
    ended = subprocess.run(
        [*login, "-c", line.line],
        input=line.preamble + data,
        capture_output=True,
        timeout=30,
        check=False,
        env={"PATH": path, "HOME": "/nowhere"},
    )
    out, err = MarkedOutput(MARK), MarkedOutput(MARK)
    own = out.feed(ended.stdout), err.feed(ended.stderr)
    return Outcome(ended.returncode, *own, out.began and err.began, err.noise)


def given_to(shell: Shell, line: CommandLine) -> CommandLine:
    """Let another shell be what the line finds at /bin/sh."""
    text = line.line.replace("/bin/sh", str(shell.program))
    return CommandLine(text, line.preamble, line.mark, line.through_sudo)


@pytest.mark.parametrize("login", LOGIN_SHELLS)
def test_every_login_shell_passes_every_argument_unchanged(login: str) -> None:
    line = command_line(["printf", "%s|", *NASTY], mark=MARK)

    done = run_line([login], line)

    assert done.out.decode() == "".join(f"{argument}|" for argument in NASTY)
    assert (done.code, done.err, done.began) == (0, b"", True)


def test_every_shell_at_bin_sh_passes_every_argument_unchanged(shell: Shell) -> None:
    line = given_to(shell, command_line(["printf", "%s|", *NASTY], mark=MARK))

    done = run_line([str(shell.program)], line, path=shell.path)

    assert done.out.decode() == "".join(f"{argument}|" for argument in NASTY)
    assert (done.code, done.began) == (0, True)


@pytest.mark.parametrize("sudo", ["no", "passwordless", "password"])
def test_nothing_in_a_line_is_read_differently_by_csh_or_fish(sudo: SudoMode) -> None:
    # csh replaces events and ends a quotation at a line break even within single
    # quotes; fish takes a backslash before a backslash or quote there for an escape.
    line = command_line(["printf", *NASTY], mark=MARK, sudo=sudo, has_input=True).line

    assert re.findall(r".*(?:\n|![^\s=(]|\\\\|\\').*", line) == []


def test_the_environment_is_plain_c_and_has_the_places_of_system_tools() -> None:
    line = command_line(["sh", "-c", 'echo "$LC_ALL"; echo "$PATH"'], mark=MARK)

    locale, path = run_line(["sh"], line, path="/opt/own:/usr/bin:/bin").out.decode().split()

    assert locale == "C"
    assert path.startswith("/opt/own:")
    assert {"/usr/local/bin", "/usr/sbin", "/sbin"} <= set(path.split(":"))


@pytest.mark.parametrize(
    ("script", "code"), [("exit 0", 0), ("exit 7", 7), ("exit 255", 255), ("kill -9 $$", 137)]
)
def test_the_exit_code_is_the_commands_own(shell: Shell, script: str, code: int) -> None:
    # The outer shell gives 128 + n for a signal n, as sshd's login shell does.
    line = given_to(shell, command_line(["sh", "-c", script], mark=MARK))
    outer = CommandLine(f"({line.line}); exit $?", b"", MARK, False)

    assert run_line([str(shell.program)], outer, path=shell.path).code == code


def test_a_command_that_does_not_exist_begins_and_ends_with_127(shell: Shell) -> None:
    line = given_to(shell, command_line(["no-such-program-here"], mark=MARK))

    done = run_line([str(shell.program)], line, path=shell.path)

    assert (done.code, done.began) == (127, True)
    assert b"not found" in done.err


def test_the_process_id_that_comes_with_the_mark_is_the_commands() -> None:
    line = command_line(["sh", "-c", "echo $$"], mark=MARK)
    ended = subprocess.run(["sh", "-c", line.line], capture_output=True, check=True)
    out = MarkedOutput(MARK)

    assert int(out.feed(ended.stdout)) == out.pid


def test_a_login_shell_that_prints_what_it_runs_does_no_harm() -> None:
    line = command_line(["sh", "-c", "echo out; echo err >&2"], mark=MARK)

    done = run_line(["bash", "-x"], line)

    assert (done.out, done.err, done.began) == (b"out\n", b"err\n", True)


# The mark


@pytest.mark.parametrize("noise", [b"", b"Welcome!\n", b"no line break", b"\xd7\xdc\xff\n\0\r\n"])
def test_the_mark_is_found_wherever_the_stream_is_cut(noise: bytes) -> None:
    stream = noise + MARK.encode() + b" 4711\nown\n"

    for cut in range(len(stream) + 1):
        output = MarkedOutput(MARK)
        assert output.feed(stream[:cut]) + output.feed(stream[cut:]) == b"own\n"
        assert (output.began, output.pid, output.noise) == (True, 4711, "")


def test_the_mark_is_found_byte_by_byte() -> None:
    output = MarkedOutput(MARK)
    stream = b"noise " + MARK.encode() + b" 12\nown " + MARK.encode() + b" 13\n"

    own = b"".join(output.feed(bytes([byte])) for byte in stream)

    assert own == b"own " + MARK.encode() + b" 13\n"
    assert output.pid == 12


def test_a_mark_without_a_process_id_begins_too() -> None:
    output = MarkedOutput(MARK)

    assert output.feed(MARK.encode() + b"\nown") == b"own"
    assert output.pid is None


def test_a_mark_is_found_behind_any_amount_of_noise() -> None:
    output = MarkedOutput(MARK)

    for _ in range(100):
        assert output.feed(b"x" * 9973) == b""
    assert output.feed(MARK.encode()[:9]) == b""
    assert output.feed(MARK.encode()[9:] + b" 5\nown") == b"own"


def test_noise_is_kept_to_be_quoted_when_the_command_never_began() -> None:
    output = MarkedOutput(MARK)

    assert output.feed(b"This account is ") + output.feed("关闭\xff.\n".encode()) == b""

    assert not output.began
    assert output.noise == "This account is 关闭\xff."


def test_what_only_resembles_the_mark_is_noise() -> None:
    output = MarkedOutput(MARK)

    for noise in (MARK[:-1] + " 1\n", MARK + " $$; exec ls\n", MARK + " >&2\n"):
        assert output.feed(noise.encode()) == b""
    assert output.feed(MARK.encode() + b" 77\nown") == b"own"
    assert output.pid == 77


# sudo


@dataclass(frozen=True)
class Sudo:
    """A program called sudo that stands before the real commands.

    Args:
        folder: Where it is, and where it notes what it was given.
        shell: What the line finds at /bin/sh.
    """

    folder: Path
    shell: Shell

    def run(
        self,
        argv: list[str],
        mode: SudoMode = "password",
        data: bytes | None = None,
        password: str = PASSWORD,
    ) -> Outcome:
        line = command_line(
            argv, mark=MARK, sudo=mode, sudo_password=password, has_input=data is not None
        )
        assert line.through_sudo
        path = f"{self.folder}:{self.shell.path}"
        login = [str(self.shell.program)]
        return run_line(login, given_to(self.shell, line), data or b"", path)

    @property
    def arguments(self) -> list[str]:
        return (self.folder / "arguments").read_text().split("\0")[:-1]

    @property
    def read(self) -> bytes:
        """What it found on its standard input."""
        return (self.folder / "read").read_bytes()

    @property
    def input_path(self) -> Path:
        """Where the command's input was to come from."""
        return Path(self.arguments[-1])


def make_sudo(shell: Shell, folder: Path, body: str) -> Sudo:
    program = folder / "sudo"
    (folder / "password").write_text(PASSWORD)
    program.write_text(
        "#!/bin/sh\n"
        f"cd {folder} || exit 99\n"
        "printf '%s\\0' \"$@\" >arguments\n"
        f"{body}\n"
        "cd /\n"
        'while [ "$1" != -- ]; do shift; done\n'
        "shift\n"
        'exec "$@"\n'
    )
    program.chmod(0o755)
    return Sudo(folder, shell)


# Reads all that it can get, and wants the password in the first line of it.
ASKING = """\
printf 'We trust you have received the usual lecture. 密码：' >&2
cat >read
if [ "$(head -n 1 read)" != "$(cat password)" ]; then
    echo 'sudo: 1 incorrect password attempt' >&2
    exit 1
fi"""
# As with NOPASSWD: leaves its input alone.
FREE = ""
REFUSING = "echo 'op is not in the sudoers file.  This incident will be reported.' >&2; exit 1"


@pytest.fixture(params=[ASKING, FREE], ids=["asking", "free"])
def sudo(shell: Shell, tmp_path: Path, request: pytest.FixtureRequest) -> Sudo:
    """Both kinds of sudo that let a user through."""
    return make_sudo(shell, tmp_path, request.param)


@pytest.fixture
def asking(shell: Shell, tmp_path: Path) -> Sudo:
    """A sudo that asks for the password."""
    return make_sudo(shell, tmp_path, ASKING)


@pytest.fixture
def free(shell: Shell, tmp_path: Path) -> Sudo:
    """A sudo that asks for nothing."""
    return make_sudo(shell, tmp_path, FREE)


@pytest.fixture
def refusing(shell: Shell, tmp_path: Path) -> Sudo:
    """A sudo that does not let this user run anything."""
    return make_sudo(shell, tmp_path, REFUSING)


def test_sudo_runs_the_command_and_its_lecture_is_noise(sudo: Sudo) -> None:
    done = sudo.run(["sh", "-c", "echo 出; echo 错 >&2; exit 3"])

    assert (done.code, done.out.decode(), done.err.decode()) == (3, "出\n", "错\n")


def test_behind_sudo_arguments_are_unchanged(sudo: Sudo) -> None:
    done = sudo.run(["printf", "%s|", *NASTY], data=b"unread")

    assert done.out.decode() == "".join(f"{argument}|" for argument in NASTY)


@pytest.mark.parametrize("data", [b"", b"data", b"line\n\0\xff\n" * 400_000])
def test_the_command_reads_its_input_and_nothing_of_the_password(sudo: Sudo, data: bytes) -> None:
    done = sudo.run(["cat"], data=data)

    assert (done.code, done.out) == (0, data)


def test_a_command_without_input_finds_it_empty(sudo: Sudo) -> None:
    done = sudo.run(["cat"])

    assert (done.code, done.out) == (0, b"")


def test_sudo_reads_the_password_and_nothing_of_the_data(asking: Sudo) -> None:
    asking.run(["cat"], data=b"secret data\n")

    assert asking.read == PASSWORD.encode() + b"\n"


def test_sudo_is_told_to_forget_earlier_passwords_and_to_print_no_prompt(asking: Sudo) -> None:
    asking.run(["true"])

    assert asking.arguments[: asking.arguments.index("--")] == ["-k", "-S", "-p", ""]


@pytest.mark.parametrize("data", [None, b"x" * 1_000_000])
def test_the_password_is_in_no_process_list_and_in_no_environment(
    sudo: Sudo, data: bytes | None
) -> None:
    password = "rather-special-and-secret"
    (sudo.folder / "password").write_text(password)
    look = "cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null; echo looked"

    done = sudo.run(["sh", "-c", look], data=data, password=password)

    assert done.out.endswith(b"looked\n")
    assert password.encode() not in done.out
    assert password not in " ".join(sudo.arguments)


@pytest.mark.parametrize(
    ("script", "code"), [("exit 0", 0), ("cat >/dev/null; exit 9", 9), ("kill -TERM $$", 143)]
)
def test_behind_sudo_the_exit_code_is_the_commands_own(sudo: Sudo, script: str, code: int) -> None:
    assert sudo.run(["sh", "-c", script], data=b"some input").code == code
    assert sudo.run(["sh", "-c", script]).code == code


def test_a_command_that_leaves_its_input_unread_ends_and_leaves_nothing(sudo: Sudo) -> None:
    done = sudo.run(["true"], data=b"y\n" * 2_000_000)

    assert (done.code, done.began) == (0, True)
    assert sudo.input_path.parent.name.startswith(".crossgap-input.")
    assert not sudo.input_path.parent.exists()


def test_the_inputs_folder_is_removed_when_the_command_fails(sudo: Sudo) -> None:
    done = sudo.run(["sh", "-c", "cat >/dev/null; exit 5"], data=b"data")

    assert done.code == 5
    assert sudo.input_path.name == "in"
    assert not sudo.input_path.parent.exists()


def test_only_the_user_may_look_into_the_inputs_folder(shell: Shell, tmp_path: Path) -> None:
    look = """for in; do :; done; ls -ld "$(dirname "$in")" "$in" | cut -c 1-10 >modes"""

    done = make_sudo(shell, tmp_path, look).run(["cat"], data=b"data")

    assert done.out == b"data"
    assert (tmp_path / "modes").read_text().split() == ["drwx------", "prw-------"]


@pytest.mark.parametrize("data", [None, b"", b"y\n" * 1_000_000])
def test_a_refusal_never_begins_the_command_and_leaves_nothing(
    refusing: Sudo, data: bytes | None
) -> None:
    done = refusing.run(["touch", str(refusing.folder / "ran")], data=data)

    assert (done.code, done.began) == (1, False)
    assert sudo_refusal(done.noise) == "the user may not use sudo for this"
    assert not (refusing.folder / "ran").exists()
    assert data is None or not refusing.input_path.parent.exists()


def test_a_wrong_password_is_given_once_only(asking: Sudo) -> None:
    done = asking.run(["true"], data=b"data", password="wrong")

    assert (done.code, done.began) == (1, False)
    assert asking.read == b"wrong\n"
    assert sudo_refusal(done.noise) == "sudo refused the password"


def test_a_sudo_without_password_is_told_never_to_ask(free: Sudo) -> None:
    done = free.run(["cat"], "passwordless", data=b"data\n")

    assert (done.code, done.out) == (0, b"data\n")
    assert free.arguments[:2] == ["-n", "--"]


def test_a_host_without_sudo_is_told_as_such(shell: Shell, tmp_path: Path) -> None:
    line = command_line(["true"], mark=MARK, sudo="passwordless")
    # Nothing but the shell is on the PATH.
    done = run_line([str(shell.program)], given_to(shell, line), path=str(shell.program.parent))

    assert not done.began
    assert sudo_refusal(done.noise) == "sudo is not installed"


@pytest.mark.parametrize(
    ("noise", "meaning"),
    [
        ("op is not in the sudoers file.  This incident will be reported.", "may not use sudo"),
        ("Sorry, user op is not allowed to execute '/bin/sh' as root on h.", "may not use sudo"),
        ("sudo: sorry, you must have a tty to run sudo", "wants a terminal"),
        ("Sorry, try again.\nsudo: no password was provided", "refused the password"),
        ("sudo: 3 incorrect password attempts", "refused the password"),
        ("sudo: a password is required", "asks for a password"),
        ("sudo: a terminal is required to read the password", "asks for a password"),
        ("bash: sudo: command not found", "not installed"),
        ("sh: 1: exec: sudo: not found", "not installed"),
        ("Willkommen\nsudo: unbekannt", "did not run the command (sudo: unbekannt)"),
        ("", "did not run the command (no message)"),
    ],
)
def test_the_reason_of_a_refusal_is_read_from_what_sudo_says(noise: str, meaning: str) -> None:
    assert meaning in sudo_refusal(noise)
