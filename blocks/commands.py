"""From argument lists to the one line of shell that a host is given.

Everything is pure. Commands are lists of arguments until here; this is the only
place that quotes. A host may have any login shell, startup files that print, and
a sudo that asks for a password:

* The line starts `/bin/sh` and says the rest in octal wherever csh or fish read
  single quotes in their own way (line breaks, exclamation marks, backslashes).
* A mark, new for every command, is printed on both streams before the command
  itself. What comes before it (banners, startup files, sudo's lecture) is noise
  and thrown away; a mark that never comes means that the command never began.
* sudo reads the password from a pipe of its own. The command's input takes
  another way (a fifo), so that neither can ever be taken for the other, whether
  or not sudo asks.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

# What csh or fish do not take literally between single quotes, and the quote itself.
_OCTAL = str.maketrans({char: f"\\0{ord(char):03o}" for char in "\\!'\n"})

SudoMode = Literal["no", "passwordless", "password"]

# Non-interactive logins on old systems know /usr/bin and /bin only.
_ENVIRONMENT = (
    "LC_ALL=C PATH=$PATH:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin; "
    "export LC_ALL PATH; "
)

_SUDO_WITH_INPUT = """\
umask 077
IFS= read -r password
dir=$(mktemp -d /tmp/.crossgap-input.XXXXXX) && mkfifo "$dir/in" || exit 125
exec 3<&0
cat <&3 >"$dir/in" &
printf '%s\\n' "$password" | sudo -k -S -p '' -- /bin/sh -c "$1" sh "$dir/in"
code=$?
kill $! 2>/dev/null
rm -rf "$dir"
exit $code"""

_SUDO = """\
IFS= read -r password
printf '%s\\n' "$password" | sudo -k -S -p '' -- /bin/sh -c "$1" sh /dev/null"""


@dataclass(frozen=True)
class CommandLine:
    """A line of shell and what has to be written to it first.

    Args:
        line: The line, safe for any login shell.
        preamble: Bytes for standard input ahead of the command's own.
        mark: What both streams show when the command begins.
        through_sudo: Whether sudo stands between, and may refuse.
    """

    line: str
    preamble: bytes
    mark: str
    through_sudo: bool


def command_line(
    argv: Sequence[str],
    *,
    mark: str,
    sudo: SudoMode = "no",
    sudo_password: str = "",
    has_input: bool = False,
) -> CommandLine:
    """Build the line that runs one command on a host.

    Args:
        argv: The command and its arguments, unquoted.
        mark: A word of letters and digits that no output contains by chance.
        sudo: Whether, and how, to become root.
        sudo_password: What sudo is told, in mode `password`.
        has_input: Whether the command will read from standard input.

    Returns:
        The line, and the bytes to write ahead of the command's input.
    """
    begin = f"printf '%s %s\\n' {mark} $$; printf '%s\\n' {mark} >&2; "
    command = " ".join(shlex.quote(word) for word in argv)
    if sudo == "no":
        script = f"{_ENVIRONMENT}{begin}exec {command}"
        return CommandLine(_through_sh(script), b"", mark, False)
    # sudo resets the environment, so it is set inside, and the input is
    # opened inside: what sudo itself reads is the password's pipe.
    source = '<"$1"' if sudo == "password" else ""
    inner = f"{_ENVIRONMENT}{begin}exec {command} {source}"
    if sudo == "passwordless":
        line = _through_sh('exec sudo -n -- /bin/sh -c "$1"', inner)
        return CommandLine(line, b"", mark, True)
    outer = _SUDO_WITH_INPUT if has_input else _SUDO
    return CommandLine(_through_sh(outer, inner), sudo_password.encode() + b"\n", mark, True)


def _through_sh(script: str, *arguments: str) -> str:
    if arguments:
        script = f"set -- {shlex.join(arguments)}\n{script}"
    decoded = 'eval "$(printf %b "$0")"'
    return f"exec /bin/sh -c '{decoded}' '{script.translate(_OCTAL)}'"


class MarkedOutput:
    """Separates a stream's noise from what the command itself prints.

    Args:
        mark: The mark that begins the command's own output.
    """

    def __init__(self, mark: str) -> None:
        self._pattern = re.compile(rb"(?:\A|.*?)" + mark.encode() + rb"(?: (\d+))?\n", re.DOTALL)
        self._noise = b""
        self.began = False
        self.pid: int | None = None

    def feed(self, data: bytes) -> bytes:
        """Take bytes as they arrive and return those that are the command's own."""
        if self.began:
            return data
        self._noise += data
        match = self._pattern.match(self._noise)
        if match is None:
            # Keep enough to find a mark that is cut in two, and to quote from.
            self._noise = self._noise[-65536:]
            return b""
        self.began = True
        self.pid = int(match[1]) if match[1] else None
        own, self._noise = self._noise[match.end() :], b""
        return own

    @property
    def noise(self) -> str:
        """What was printed instead, when the command never began."""
        return self._noise.decode("utf-8", "replace").strip()


def sudo_refusal(noise: str) -> str:
    """Say why sudo did not run a command, from what it printed.

    Args:
        noise: sudo's standard error, in the C locale or not.

    Returns:
        A clause for an error message.
    """
    for pattern, meaning in (
        ("not in the sudoers|not allowed to", "the user may not use sudo for this"),
        ("must have a tty", "sudo wants a terminal (requiretty in its settings)"),
        (
            "incorrect password|Sorry, try again|no password was provided",
            "sudo refused the password",
        ),
        ("password is required|terminal is required", "sudo asks for a password"),
        ("command not found|not found", "sudo is not installed"),
    ):
        if re.search(pattern, noise, re.IGNORECASE):
            return meaning
    last = noise.splitlines()[-1] if noise else "no message"
    return f"sudo did not run the command ({last})"
