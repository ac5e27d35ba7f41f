"""The lock on a host itself: it holds when the Prefect server is out of reach.

The lock is a folder that `mkdir` makes (atomic on every file system), with one
file `owner.<token>` in it that says whose it is. Shell scripts do it, made for
POSIX sh and what coreutils and busybox share. Three rules keep it exclusive:

1. A token enters an existing folder only after removing the file of a dead
   owner, or when the folder has had no owner for a minute. Of two that remove
   one file, `rm` fails for one.
2. Whoever has written its file looks for others then, and gives way if there
   are any. So of two that enter at once at most one stays.
3. The folder is removed by `rmdir`, that is, only while nobody is in it.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from blocks.errors import CommandFailed, CrossgapError, PermissionRefused
from blocks.host import Host
from blocks.logs import logger
from tasks.common.lock_owner import UNFINISHED_AFTER, LockOwner, parse_owner

COMMAND_TIMEOUT = 20.0
"""Seconds for one look at the lock."""

_SHOW = r"""
show() {
  now=$(date +%s)
  changed=$(stat -c %Y "$dir" 2>/dev/null) || changed=$now
  echo "folder $((now - changed)) $(stat -c %U "$dir" 2>/dev/null)"
  for file in "$dir"/owner.*; do
    [ -f "$file" ] || continue
    changed=$(stat -c %Y "$file" 2>/dev/null) || changed=$now
    record=$(head -c 4096 "$file" 2>/dev/null | tr '\n\r' '  ')
    echo "owner ${file##*/owner.} $((now - changed)) $record"
  done
}
"""

_TAKE = (
    r"""dir=$1 token=$2 record=$3 grace=$4; shift 4
umask 022
# A file that is there already, or a link that somebody laid, is not written to.
set -C
"""
    + _SHOW
    + r"""
end() { echo "outcome $1"; show; exit 0; }
empty() { for file in "$dir"/owner.*; do [ -e "$file" ] && return 1; done; return 0; }
claim() {
  mine=$dir/owner.$token
  line="{\"since\": \"$(date -u +%Y-%m-%dT%H:%M:%SZ)\", ${record#?}"
  if ! { printf '%s\n' "$line" > "$mine"; } 2>/dev/null; then
    [ -d "$dir" ] || end busy
    rm -f "$mine" 2>/dev/null; rmdir "$dir" 2>/dev/null
    end refused
  fi
  for file in "$dir"/owner.*; do
    [ "$file" = "$mine" ] || { rm -f "$mine"; end busy; }
  done
  end taken
}
[ -L "$dir" ] && end refused
# It may go between a failed mkdir and a look at it; not three times in a row.
for try in 1 2 3; do
  if mkdir "$dir" 2>/dev/null; then claim; fi
  [ -d "$dir" ] && break
done
[ -d "$dir" ] || end refused
if [ $# -gt 0 ]; then
  for dead do
    rm "$dir/owner.$dead" 2>/dev/null </dev/null && continue
    [ -e "$dir/owner.$dead" ] && end refused
    end busy
  done
  claim
fi
if empty; then
  now=$(date +%s)
  changed=$(stat -c %Y "$dir" 2>/dev/null) || changed=$now
  [ $((now - changed)) -ge "$grace" ] && claim
fi
end busy
"""
)

_RELEASE = r"""dir=$1 token=$2
rm -f "$dir/owner.$token" 2>/dev/null
if [ -e "$dir/owner.$token" ]; then echo "outcome refused"; exit 0; fi
rmdir "$dir" 2>/dev/null
echo "outcome released"
"""


@dataclass(frozen=True)
class Holder:
    """A file in the lock.

    Args:
        token: The part of its name that makes it unique.
        age: Seconds since it was written, by the host's clock.
        owner: Whose it is; None when its text is no record.
    """

    token: str
    age: int
    owner: LockOwner | None


@dataclass(frozen=True)
class LockState:
    """What the host answered.

    Args:
        outcome: `taken`; `busy` when somebody is in the way; `refused` when
            the user may not change what is there, or there is no room;
            `released`.
        holders: Who is in the lock.
        age: Seconds since somebody came or went, by the host's clock.
        folder_user: The user of the host whose folder it is.
    """

    outcome: Literal["taken", "busy", "refused", "released"]
    holders: tuple[Holder, ...] = ()
    age: int = 0
    folder_user: str = ""


def take_command(path: str, token: str, record: str, dead: Sequence[str] = ()) -> list[str]:
    """Build the command that takes the lock or says who holds it.

    Args:
        path: The lock's folder.
        token: The new owner's token.
        record: The new owner's record, a JSON object on one line.
        dead: Tokens of dead owners, whose files go first.
    """
    return ["sh", "-c", _TAKE, "sh", path, token, record, str(UNFINISHED_AFTER), *dead]


def release_command(path: str, token: str) -> list[str]:
    """Build the command that gives the lock back, whatever state it is in.

    Args:
        path: The lock's folder.
        token: The owner's token.
    """
    return ["sh", "-c", _RELEASE, "sh", path, token]


def parse_state(text: str) -> LockState:
    """Read what the scripts printed.

    Args:
        text: Their standard output.

    Raises:
        ValueError: There is no outcome in it.
    """
    outcome = re.search(r"^outcome (taken|busy|refused|released)$", text, re.MULTILINE)
    if outcome is None:
        raise ValueError(f"no outcome in {text[-200:]!r}")
    folder = re.search(r"^folder (-?\d+) (.*)$", text, re.MULTILINE)
    owners = re.findall(r"^owner (\S+) (-?\d+) (.*)$", text, re.MULTILINE)
    return LockState(
        outcome=outcome[1],  # type: ignore[arg-type]
        holders=tuple(Holder(token, int(age), parse_owner(line)) for token, age, line in owners),
        age=int(folder[1]) if folder else 0,
        folder_user=folder[2].strip() if folder else "",
    )


class HostLock:
    """One token's hold on one host.

    Args:
        host: The host.
        owner: The run that wants it.
        path: The folder; the same for everybody who shares the host.
    """

    PATH: ClassVar[str] = "/tmp/.crossgap-lock"  # noqa: S108 - every user has to find it

    def __init__(self, host: Host, owner: LockOwner, path: str = PATH) -> None:
        self.host = host
        self.owner = owner
        self.path = path
        self.token = secrets.token_hex(16)

    def try_take(self, death: Callable[[Holder], str | None]) -> LockState:
        """Take the lock if it is free or its owner is dead; do not wait.

        Args:
            death: Why the owner of a file is dead, None when it may live.

        Returns:
            The state, whose outcome is `taken` or `busy`.

        Raises:
            PermissionRefused: The lock is free or stale, but the user may not
                change it.
            CrossgapError: The host cannot be asked.
        """
        state = self._ask(take_command(self.path, self.token, self.owner.to_json()))
        if [holder.token for holder in state.holders] == [self.token]:
            # Taken by an earlier try, whose answer got lost on the way.
            return replace(state, outcome="taken")
        if state.outcome == "busy" and state.holders:
            reasons = [death(holder) for holder in state.holders]
            if all(reasons):
                state = self._take_over(state.holders, reasons)
        if state.outcome == "refused":
            raise self._refused(state)
        return state

    def release(self) -> None:
        """Give the lock back; safe to call twice and without holding it.

        Raises:
            PermissionRefused: The user may not remove it.
            CrossgapError: The host cannot be asked.
        """
        state = self._ask(release_command(self.path, self.token))
        if state.outcome == "refused":
            raise self._refused(state)

    def removal_hint(self, state: LockState) -> str:
        """Say how to remove the lock by hand.

        Args:
            state: The last answer of the host.
        """
        user = state.folder_user or "the user who made it"
        who = user if user == "root" else f"{user} or root"
        return f"as {who} on {self.host.label}: rm -r {self.path}"

    def _take_over(self, dead: Sequence[Holder], reasons: Sequence[str | None]) -> LockState:
        tokens = [holder.token for holder in dead]
        state = self._ask(take_command(self.path, self.token, self.owner.to_json(), tokens))
        if state.outcome == "taken":
            for holder, reason in zip(dead, reasons, strict=True):
                whose = holder.owner or "somebody who left no record"
                logger().warning(
                    "%s: took over the stale lock of %s: %s.", self.host.label, whose, reason
                )
        return state

    def _ask(self, command: list[str]) -> LockState:
        state = self._run(command, sudo=False)
        if state.outcome == "refused" and self.host.sudo_mode != "no":
            # The lock may be another user's: /tmp is sticky, so only root can change it.
            state = self._run(command, sudo=True)
        return state

    def _run(self, command: list[str], *, sudo: bool) -> LockState:
        result = self.host.run(command, timeout=COMMAND_TIMEOUT, sudo=sudo)
        try:
            return parse_state(result.stdout)
        except ValueError as error:
            raise CommandFailed(
                f"the lock's script did not answer as expected ({error}; "
                f"{result.stderr[-200:].strip() or 'no error output'})",
                self.host.label,
                "Log in as the same user and check that sh, date, stat, head and tr work there.",
            ) from error

    def _refused(self, state: LockState) -> CrossgapError:
        return PermissionRefused(
            f"the lock {self.path} cannot be written"
            + (f": it belongs to {state.folder_user}" if state.folder_user else ""),
            self.host.label,
            "If its folder is full or read-only, make room. If it is a stale lock of another "
            f"user, remove it ({self.removal_hint(state)}), or set sudo in the host's block.",
        )
