"""Commands that outlive their connection: started once, found again by name.

A job is a folder on the host, `<work_dir>/jobs/<name>/`, with the files `pid`
(process id, start time and boot), `command`, `log` and, once it has ended,
`exit`. It runs in a session and process group of its own, so a dropped
connection loses nothing, its outcome can be read by whoever comes later, and
ending the group ends all of it.
"""

from __future__ import annotations

import codecs
import posixpath
import re
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from blocks.cancellation import Cancellation, cancellation_scope, current_cancellation
from blocks.errors import CommandFailed, Conflict, InvalidInput, TimedOut
from blocks.outage import Outage, waited_out

if TYPE_CHECKING:
    from blocks.host import Host

State = Literal["running", "ended", "vanished", "absent"]

_STATES: dict[str, State] = {"running": "running", "ended": "ended", "absent": "absent"}

DAY = 86400.0

# Bytes of a log that one look reads.
PIECE = 1 << 18

# A process id alone may be used again after a reboot or a long time, so the
# boot and the start time (field 22 of /proc/PID/stat, counted behind the
# command's closing bracket, as its name may hold spaces) go with it.
_IDENTITY = """\
identity() {
    stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
    set -- "$1" ${stat##*) }
    [ "$2" != Z ] || return 1
    echo "$1 ${21} $(cat /proc/sys/kernel/random/boot_id)"
}
alive() {
    [ -f "$1/pid" ] && [ "$(identity "$(sed 's/ .*//' "$1/pid")")" = "$(cat "$1/pid")" ]
}
"""

_START = (
    _IDENTITY
    + """\
dir=$1; command=$2; runner=$3; shift 3
umask 077
if alive "$dir" && [ ! -f "$dir/exit" ]; then exit 9; fi
rm -rf "$dir" && mkdir -p "$dir" || exit 1
printf '%s\\n' "$command" >"$dir/command" && : >"$dir/log" || exit 1
setsid sh -c "$runner" sh "$dir" "$@" </dev/null >>"$dir/log" 2>&1 &
tries=0
while [ ! -f "$dir/pid" ] && [ ! -f "$dir/exit" ]; do
    tries=$((tries + 1)); [ $tries -lt 50 ] || exit 1
    sleep 0.1 2>/dev/null || sleep 1
done"""
)

_RUNNER = (
    _IDENTITY
    + """\
dir=$1; shift
identity $$ >"$dir/pid.new" && mv "$dir/pid.new" "$dir/pid"
"$@"
echo $? >"$dir/exit.new" && mv "$dir/exit.new" "$dir/exit\""""
)

_LOOK = (
    _IDENTITY
    + """\
dir=$1; offset=$2
[ -f "$dir/command" ] || { echo absent 0 0; exit; }
state=vanished
if [ ! -f "$dir/exit" ] && alive "$dir"; then state=running; fi
# The exit file may have come between the two looks.
if [ -f "$dir/exit" ]; then state=ended; fi
echo "$state" "$(cat "$dir/exit" 2>/dev/null || echo -1)" "$(wc -c <"$dir/log")"
tail -c "+$((offset + 1))" "$dir/log" | head -c $3"""
)

_CANCEL = (
    _IDENTITY
    + """\
dir=$1
# A job that is just being started has yet to say who it is.
tries=0
while [ -f "$dir/command" ] && [ ! -f "$dir/pid" ] && [ $tries -lt 3 ]; do
    tries=$((tries + 1)); sleep 1
done
alive "$dir" || exit 0
group=$(sed 's/ .*//' "$dir/pid")
kill -TERM "-$group" 2>/dev/null
tries=0
while kill -0 "-$group" 2>/dev/null; do
    tries=$((tries + 1))
    [ $tries -lt 8 ] || { kill -KILL "-$group" 2>/dev/null; break; }
    sleep 1
done
[ -f "$dir/exit" ] || echo 143 >"$dir/exit\""""
)


@dataclass(frozen=True)
class JobResult:
    """How a job ended.

    Args:
        exit_code: As the host's shell reports it; 128 + n for signal n.
        log_tail: The last 4,000 characters that it printed.
    """

    exit_code: int
    log_tail: str


@dataclass(frozen=True)
class JobStatus:
    """What a look at a job found.

    Args:
        state: `vanished` means that it is gone without having recorded an end:
            killed, or the host was restarted.
        exit_code: Its exit code, when it has ended.
        text: What it printed behind the offset that was asked for.
        offset: Where the next look should begin, in bytes.
        more: Whether there is more to read at once.
    """

    state: State
    exit_code: int
    text: str
    offset: int
    more: bool


class RemoteJob:
    """A job on a host, by name; it may be running, ended, or gone.

    Args:
        host: Where it is.
        name: Its name: letters, digits, dots, dashes and underscores.
        folder: The absolute path of its folder.
        sudo: Whether it runs as root.
    """

    def __init__(self, host: Host, name: str, folder: str, sudo: bool) -> None:
        self.host = host
        self.name = name
        self.folder = folder
        self.sudo = sudo

    def look(self, offset: int = 0) -> JobStatus:
        """Read the state of the job and what it printed behind an offset in bytes."""
        result = self._run(_LOOK, str(offset), str(PIECE))
        head, _, piece = result.partition(b"\n")
        word, code, size = head.decode().split()
        state = _STATES.get(word, "vanished")
        if state == "running" and len(piece) < PIECE:
            # A line, and a character, that is still being written waits for its end.
            piece = piece[: max(piece.rfind(b"\n"), piece.rfind(b"\r")) + 1]
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        # A full piece may end inside a character; the next look begins with it.
        text = decoder.decode(piece, final=len(piece) < PIECE)
        end = offset + len(piece) - len(decoder.getstate()[0])
        return JobStatus(state, int(code), text, end, end < int(size) and bool(piece))

    def tail(self, offset: int = 0) -> tuple[str, int]:
        """Return what the job printed behind an offset in bytes, and the next offset."""
        status = self.look(offset)
        return status.text, status.offset

    def wait(
        self, *, timeout: float = DAY, on_output: Callable[[str], None] | None = None
    ) -> JobResult:
        """Wait for the end of the job, over any number of connections.

        Args:
            timeout: Seconds until it is cancelled; time without a connection counts.
            on_output: Is given what the job prints, in pieces, once each.

        Returns:
            Its exit code and the end of its log.

        Raises:
            TimedOut: It did not end in time and was cancelled.
            CommandFailed: It is gone without an exit code (killed, host restarted).
            Unreachable: The host was away for longer than its patience.
            Cancelled: The run was cancelled; so was the job.
        """
        waiting = _Waiting(self, timeout, on_output)
        cancellation = current_cancellation()
        key = (self.host.label, self.folder)
        cancellation.on_cancel(key, self.cancel)
        try:
            return waited_out(self.host, waiting.attempt)
        finally:
            cancellation.ended(key)

    def cancel(self) -> None:
        """End the job and everything it started: TERM, and KILL after some seconds."""
        self._run(_CANCEL)

    def forget(self) -> None:
        """Remove the folder of a job that has ended."""
        self._run('rm -rf "$1"')

    def _run(self, script: str, *arguments: str) -> bytes:
        argv = ["sh", "-c", script, "sh", self.folder, *arguments]
        return self.host.capture(argv, timeout=60, sudo=self.sudo).stdout


class _Waiting:
    """The state of a wait that survives connections: offset, pauses, log tail."""

    def __init__(
        self, job: RemoteJob, timeout: float, on_output: Callable[[str], None] | None
    ) -> None:
        self._job = job
        self._timeout = timeout
        self._deadline = time.monotonic() + timeout
        self._on_output = on_output
        self._offset = 0
        self._tail = ""
        self._pause = 0.1

    def attempt(self, outage: Outage) -> JobResult:
        job, cancellation = self._job, current_cancellation()
        while True:
            status = job.look(self._offset)
            outage.over()  # what was asked for has come
            self._take(status)
            if status.more:
                continue
            if status.state == "ended":
                return JobResult(status.exit_code, self._tail)
            if status.state != "running":
                raise CommandFailed(
                    f"the job {job.name} is gone without an exit code "
                    f"({self._tail[-200:].strip() or 'no output'})",
                    job.host.label,
                    "It was killed (out of memory?) or the host was restarted; see dmesg there.",
                    retryable=True,
                )
            if time.monotonic() > self._deadline:
                job.cancel()
                raise TimedOut(
                    f"the job {job.name} did not end within {self._timeout:.0f} s",
                    job.host.label,
                    "It has been ended. The host may be overloaded; look at it, start again.",
                    retryable=False,
                )
            cancellation.pause(self._pause, job.host.label)
            self._pause = min(2.0, self._pause * 1.5)

    def _take(self, status: JobStatus) -> None:
        self._offset = status.offset
        if status.text:
            self._tail = (self._tail + status.text)[-4000:]
            if self._on_output:
                self._on_output(status.text)


def start_job(host: Host, argv: Sequence[str], *, name: str, sudo: bool = False) -> RemoteJob:
    """Start a command that outlives the connection.

    Args:
        host: Where it runs.
        argv: The command and its arguments, unquoted.
        name: Its name, one at a time per user and host; an ended job is replaced.
        sudo: Whether it needs root.

    Returns:
        The running job.

    Raises:
        Conflict: A job of this name is still running.
        Cancelled: The run was cancelled; the job has been ended.
        CrossgapError: As for `Host.run`.
    """
    job = _job(host, name, sudo)
    # Made by the user, so that a job of root does not leave it to root.
    host.run(
        ["sh", "-c", 'umask 077; mkdir -p "$1"', "sh", posixpath.dirname(job.folder)], timeout=60
    )
    full = ["sh", "-c", _START, "sh", job.folder, shlex.join(argv), _RUNNER, *argv]
    cancellation = current_cancellation()
    # A start that was interrupted half-way could leave a job that nobody knows of.
    with cancellation_scope(Cancellation()):
        result = host.run(full, timeout=60, check=False, sudo=sudo)
        if result.exit_code == 0 and cancellation.requested:
            job.cancel()
    cancellation.check(host.label)
    if result.exit_code == 9:
        raise Conflict(
            f"the job {name} is already running",
            host.label,
            "Wait for it, or cancel the run that started it.",
        )
    if result.exit_code != 0:
        raise host.command_failed(["start", "job", name], result)
    return job


def find_job(host: Host, name: str, *, sudo: bool = False) -> RemoteJob | None:
    """Find a job that this or an earlier run started.

    Args:
        host: Where it was started.
        name: Its name.
        sudo: Whether it was started as root.

    Returns:
        The job, whatever its state, or None when there is none of that name.
    """
    job = _job(host, name, sudo)
    return None if job.look().state == "absent" else job


def _job(host: Host, name: str, sudo: bool) -> RemoteJob:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise InvalidInput(
            f"{name!r} cannot name a job", host.label, "Use letters, digits, dots and dashes."
        )
    return RemoteJob(host, name, host.expand(f"{host.work_dir}/jobs/{name}"), sudo)
