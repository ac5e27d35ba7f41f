"""Logging in over SSH: with what the operator gave and the server accepts, once each."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import paramiko

from blocks.errors import (
    AuthenticationRefused,
    ConnectionLost,
    InvalidInput,
    PassphraseNeeded,
)


@dataclass(frozen=True)
class Login:
    """Where to connect to and as whom; equal logins share a connection.

    Args:
        label: The host as messages name it.
        address: Name or IP address.
        port: TCP port.
        username: The user.
        private_keys: Private keys as text, in the order to try them.
        passphrase: What unlocks them.
        password: For password and keyboard-interactive authentication.
        known_hosts: Recorded host keys, in known_hosts format.
        connect_timeout: Seconds for each step of making a connection.
        jump: The login on the host in between, if any.
        sudo_password: What sudo is told; a refusal is remembered with the login.
    """

    label: str = field(compare=False)
    address: str
    port: int
    username: str
    private_keys: tuple[str, ...]
    passphrase: str
    password: str
    known_hosts: str
    connect_timeout: float
    jump: Login | None = None
    sudo_password: str = ""

    def __repr__(self) -> str:
        return f"Login({self.username}@{self.address}:{self.port})"


def authenticate(transport: paramiko.Transport, login: Login) -> None:
    """Log in with what the login has and the server accepts, each at most once.

    Args:
        transport: A transport after its handshake and host key check.
        login: The user, keys and password.

    Raises:
        AuthenticationRefused: Nothing was accepted.
        PassphraseNeeded: A key is locked and there is nothing else to try.
        ConnectionLost: The server hung up.
    """
    try:
        accepted = _accepted_methods(transport, login.username)
        for method, attempt in _attempts(login, accepted):
            try:
                if not attempt(transport):
                    return
            except paramiko.BadAuthenticationType as error:
                accepted = error.allowed_types
            except paramiko.AuthenticationException as error:
                if method == "password":
                    raise _refused(login, accepted) from error
            if transport.is_authenticated():
                return
    except paramiko.AuthenticationException as error:
        raise _refused(login, []) from error
    except (paramiko.SSHException, EOFError, OSError) as error:
        raise connection_lost(login, error) from error
    if not transport.is_authenticated():
        raise _refused(login, accepted)


_Attempt = Callable[[paramiko.Transport], Sequence[str]]


def _accepted_methods(transport: paramiko.Transport, username: str) -> list[str]:
    try:
        transport.auth_none(username)
    except paramiko.BadAuthenticationType as error:
        return list(error.allowed_types)
    return []


def _attempts(login: Login, accepted: list[str]) -> Iterator[tuple[str, _Attempt]]:
    """Yield keys first, then the password, by the one method that the server takes."""
    if "publickey" in accepted or not accepted:
        locked: PassphraseNeeded | None = None
        for text in login.private_keys:
            try:
                key = load_private_key(text, login.passphrase, login.label)
            except PassphraseNeeded as error:
                locked = error
                continue
            yield (
                "publickey",
                lambda transport, key=key: transport.auth_publickey(  # type: ignore[misc]
                    login.username, key
                ),
            )
        if locked and not login.password:
            raise locked
    if not login.password:
        return
    if "password" in accepted:
        yield (
            "password",
            lambda transport: transport.auth_password(
                login.username, login.password, fallback=False
            ),
        )
    else:
        yield (
            "password",
            lambda transport: transport.auth_interactive(login.username, _answers(login.password)),
        )


def _answers(password: str) -> Callable[[str, str, Any], list[str]]:
    asked = False

    def answer(_: str, __: str, prompts: Sequence[tuple[str, bool]]) -> list[str]:
        nonlocal asked
        if prompts and asked:
            # The server asks again because it refused: no second try.
            raise paramiko.AuthenticationException("asked for the password again")
        asked = asked or bool(prompts)
        return [password for _ in prompts]

    return answer


def _refused(login: Login, accepted: Sequence[str]) -> AuthenticationRefused:
    tried = " and ".join(
        ["the private key"] * bool(login.private_keys) + ["the password"] * bool(login.password)
    )
    takes = f"; it takes {', '.join(accepted)}" if accepted else ""
    return AuthenticationRefused(
        f"user {login.username!r} was refused with {tried or 'neither key nor password'}{takes}",
        login.label,
        "Correct username, private_key or password in the host's block. It is not tried again, "
        "so that the account is not locked.",
    )


def load_private_key(text: str, passphrase: str, where: str) -> paramiko.PKey:
    """Read a private key in OpenSSH or PEM format.

    Args:
        text: The key file's content.
        passphrase: What unlocks it, or empty.
        where: The host as messages name it.

    Raises:
        PassphraseNeeded: It is locked, and the passphrase is missing or wrong.
        InvalidInput: It is not a private key of a kind that SSH uses.
    """
    # Pasting into a form loses the last line break, and adds others.
    clean = text.replace("\r\n", "\n").strip() + "\n"
    try:
        if key := _parsed(clean, None):
            return key
    except paramiko.PasswordRequiredException as error:
        if passphrase and (key := _parsed(clean, passphrase)):
            return key
        raise PassphraseNeeded(
            f"the private key is locked and its passphrase is "
            f"{'wrong' if passphrase else 'missing'}",
            where,
            "Set 'passphrase' in the host's block.",
        ) from error
    raise InvalidInput(
        "the private key cannot be read",
        where,
        "Paste the whole file, from BEGIN to END; the public half (.pub) or a PuTTY key "
        "(.ppk) will not do.",
    )


def _parsed(text: str, passphrase: str | None) -> paramiko.PKey | None:
    for kind in (paramiko.Ed25519Key, paramiko.ECDSAKey, paramiko.RSAKey):
        try:
            return kind.from_private_key(io.StringIO(text), passphrase)
        except paramiko.PasswordRequiredException:
            raise
        except (paramiko.SSHException, ValueError, IndexError, TypeError):
            continue
    rewritten = _rewritten(text, passphrase)
    return _parsed(rewritten, None) if rewritten else None


def _rewritten(text: str, passphrase: str | None) -> str:
    """Return an OpenSSH key in the older PEM format, or nothing.

    One without a comment may end without padding, by chance; paramiko 5 takes
    that for damage.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    if "BEGIN OPENSSH PRIVATE KEY" not in text:
        return ""
    secret = passphrase.encode() if passphrase else None
    try:
        key = serialization.load_ssh_private_key(text.encode(), secret)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return ""
    if not isinstance(key, (ec.EllipticCurvePrivateKey, rsa.RSAPrivateKey)):
        return ""
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )
    return pem.decode()


def connection_lost(login: Login, error: BaseException | None) -> ConnectionLost:
    """Make the error for a connection that has died.

    Args:
        login: Where to.
        error: What was met, if anything.
    """
    reason = str(error) if error and str(error) else "closed by the other side"
    return ConnectionLost(
        f"the connection has died ({reason})",
        login.label,
        "Check the network to it and that it is up.",
    )
