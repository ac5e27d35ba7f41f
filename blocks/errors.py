"""The errors an operator sees: what failed, where, and what to do about it.

Every error that leaves a flow is a `CrossgapError`. Each knows whether trying
again can help; the retry policy in `tasks.common.retry` asks nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


class CrossgapError(Exception):
    """The root of all errors of crossgap.

    Args:
        what: What failed, as a clause without a full stop.
        where: The host, file, image or service it concerns.
        remedy: What the operator can do, as one or more sentences.
        retryable: Whether the same step may succeed when tried again later;
            by default the answer of the class.
    """

    may_pass: ClassVar[bool] = False

    def __init__(
        self, what: str, where: str, remedy: str = "", retryable: bool | None = None
    ) -> None:
        super().__init__(what, where, remedy, retryable)
        self.what = what.rstrip(". ")
        self.where = where
        self.remedy = remedy.strip()
        self.retryable = self.may_pass if retryable is None else retryable

    def __str__(self) -> str:
        sentence = f"{self.where}: {self.what}."
        return f"{sentence} {self.remedy}" if self.remedy else sentence

    def __repr__(self) -> str:
        return f"{type(self).__name__}: {self}"


class Unreachable(CrossgapError):
    """No connection could be made: host down, no route, name unknown, link cut."""

    may_pass = True


class ConnectionRefused(Unreachable):
    """The machine answers, but nothing listens on the port."""


class TooManyConnections(Unreachable):
    """sshd dropped the connection before the handshake (its MaxStartups)."""


class ConnectionLost(Unreachable):
    """A connection that worked has died."""


class IncompatiblePeer(CrossgapError):
    """The two sides share no cipher, key exchange or host key algorithm."""


class UnknownHostKey(CrossgapError):
    """The host's key is not among the recorded ones."""


class ChangedHostKey(CrossgapError):
    """The host shows another key than the recorded one."""


class AuthenticationRefused(CrossgapError):
    """The user name, key or password was not accepted."""


class PassphraseNeeded(AuthenticationRefused):
    """The private key is encrypted and its passphrase is missing or wrong."""


class ForwardingForbidden(CrossgapError):
    """A jump host does not allow forwarding to the host behind it."""


class PermissionRefused(CrossgapError):
    """The user may not do this on the host."""


class SudoRefused(PermissionRefused):
    """sudo did not accept the user or the password."""


class CommandFailed(CrossgapError):
    """A command ended with an exit code other than zero."""


class TimedOut(CrossgapError):
    """A step took longer than its deadline."""

    may_pass = True


class DiskFull(CrossgapError):
    """There is, or would be, no room left on a disk."""


class Damaged(CrossgapError):
    """The bytes are not those that they claim to be."""


class SourceDamaged(Damaged):
    """The bytes on this machine are not, or no longer, those that were to be sent."""


class NotFound(CrossgapError):
    """A host, image, file or block of that name does not exist."""


class Conflict(CrossgapError):
    """Somebody or something else holds or occupies what is wanted."""


class InvalidInput(CrossgapError):
    """A parameter has a value that cannot be meant."""


class WrongArchitecture(CrossgapError):
    """An image is built for another processor than the host has."""


class EngineUnavailable(CrossgapError):
    """Docker is not installed, does not run, or cannot be asked."""


class Cancelled(CrossgapError):
    """The run was cancelled while this step was at work."""


class SeveralFailures(CrossgapError):
    """Everything that failed in one run, in one message.

    Args:
        failures: The single errors, at least one.
        where: What the run was about.
    """

    def __init__(self, failures: Sequence[CrossgapError], where: str) -> None:
        self.failures = tuple(failures)
        super().__init__(f"{len(self.failures)} failures", where)
        self.args = (self.failures, where)  # what pickle calls the constructor with
        self.retryable = any(failure.retryable for failure in self.failures)

    def __str__(self) -> str:
        if len(self.failures) == 1:
            return str(self.failures[0])
        lines = "\n".join(f"- {failure}" for failure in self.failures)
        return f"{self.where}: {self.what}:\n{lines}"
