"""Signatures with SSH keys, made and checked by `ssh-keygen -Y`.

What is signed is `SHA256SUMS`, which covers every other file; so a far side without
crossgap checks a bundle with `ssh-keygen -Y verify` and `sha256sum -c` alone.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from blocks.errors import (
    AuthenticationRefused,
    CommandFailed,
    CrossgapError,
    Damaged,
    InvalidInput,
    NotFound,
    PassphraseNeeded,
)

NAMESPACE = "crossgap-bundle"
_SECONDS = 60
_PUBLIC_KEY = re.compile(r"(?:ssh-|ecdsa-|sk-ssh-|sk-ecdsa-)\S+\s+AAAA\S+")
_ANYBODY = "bundle"


@dataclass(frozen=True)
class Signer:
    """Who signed a bundle.

    Args:
        key: The key's type and fingerprint, such as `ED25519 SHA256:…`.
        name: Who that is by the keys that were given to check with; empty where none were.
    """

    key: str
    name: str = ""

    @property
    def words(self) -> str:
        """Say who it is, and whether anybody vouches for it."""
        if self.name:
            return f"signed by {self.name} ({self.key})"
        return f"signed with the key {self.key}, which was not compared with a known one"


def sign(content: bytes, key: str) -> bytes:
    """Sign some bytes.

    Args:
        content: The bytes.
        key: Path of a private key without a passphrase, or of a key (private or public)
            whose private half an SSH agent holds.

    Returns:
        The signature, as text in armour.

    Raises:
        NotFound: There is no such file.
        PassphraseNeeded: The key has a passphrase and no agent holds it.
        InvalidInput: It is no key that can sign.
    """
    path = Path(key).expanduser()
    if not path.is_file():
        raise NotFound(
            "there is no such key file",
            str(path),
            "sign_with is the path of an SSH key on the machine that the worker runs on.",
        )
    result = _keygen(["-Y", "sign", "-f", str(path), "-n", NAMESPACE], content)
    if result.returncode == 0 and result.stdout.startswith(b"-----BEGIN SSH SIGNATURE"):
        return result.stdout
    raise _cannot_sign(_said(result), path)


def check(content: bytes, signature: bytes, keys: str, where: str) -> Signer:
    """Prove that somebody who is trusted signed some bytes.

    Args:
        content: The bytes.
        signature: What came with them.
        keys: Trusted keys: the path of a public key or of an allowed_signers file, or the
            text of either; nothing to learn only which key signed.
        where: The bundle, for errors.

    Returns:
        Whose key it was.

    Raises:
        Damaged: The signature does not belong to these bytes.
        AuthenticationRefused: The key is not a trusted one.
        InvalidInput: The trusted keys are not understood.
    """
    with tempfile.TemporaryDirectory(prefix="crossgap-verify-") as name:
        folder = Path(name)
        given = folder / "signature"
        given.write_bytes(signature)
        signed = ["-n", NAMESPACE, "-s", str(given)]
        plain = _keygen(["-Y", "check-novalidate", *signed], content)
        if plain.returncode != 0:
            raise _wrong_signature(_said(plain), where)
        key = _key_in(plain.stdout.decode("utf-8", "replace"))
        if not keys:
            return Signer(key)
        allowed = folder / "allowed_signers"
        allowed.write_bytes(_allowed_signers(keys).encode())
        found = _keygen(["-Y", "find-principals", "-s", str(given), "-f", str(allowed)], b"")
        for who in found.stdout.decode("utf-8", "replace").splitlines():
            verify = ["-Y", "verify", *signed, "-f", str(allowed), "-I", who]
            if found.returncode == 0 and _keygen(verify, content).returncode == 0:
                return Signer(key, "a trusted key" if who == _ANYBODY else who)
    raise AuthenticationRefused(
        f"it is signed with the key {key}, which is none of the trusted ones",
        where,
        "Ask who made the bundle for its public key, compare the fingerprint by another way, "
        "and give it in verify_with. Nothing was unpacked.",
    )


def _allowed_signers(keys: str) -> str:
    """Return the content of an allowed_signers file; public keys become lines of it."""
    text = keys
    if not _PUBLIC_KEY.search(keys):
        path = Path(keys).expanduser()
        if not path.is_file():
            raise NotFound(
                "there is no such file, and it is not the text of a public key",
                f"verify_with {keys[:200]!r}",
                "Give a public key (ssh-ed25519 AAAA…), or the path of one or of an "
                "allowed_signers file.",
            )
        text = path.read_text(errors="replace")
    if "PRIVATE KEY" in text or not _PUBLIC_KEY.search(text):
        raise InvalidInput(
            "there is no public key in it",
            "verify_with",
            "Give a public key (the file that ends in .pub), or an allowed_signers file.",
        )
    lines = (line.strip() for line in text.splitlines())
    return "".join(
        f"{_ANYBODY} {line}\n" if _PUBLIC_KEY.match(line) else f"{line}\n" for line in lines
    )


@contextmanager
def _program_there() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise CommandFailed(
            "ssh-keygen is not installed, which signs and checks bundles",
            "this machine",
            "Install OpenSSH's client (8.2 or later), or leave sign_with and verify_with empty.",
        ) from error
    except subprocess.TimeoutExpired as error:
        raise CommandFailed(
            "ssh-keygen did not answer, perhaps because an SSH agent wants a confirmation",
            "this machine",
            "Confirm it at the agent, or use a key that needs none.",
        ) from error


def _keygen(arguments: Sequence[str], content: bytes) -> subprocess.CompletedProcess[bytes]:
    # Without a terminal it would ask for a passphrase in a window.
    quiet = {"SSH_ASKPASS_REQUIRE": "never", "LC_ALL": "C"}
    environment = {k: v for k, v in os.environ.items() if k not in ("SSH_ASKPASS", "DISPLAY")}
    with _program_there():
        return subprocess.run(
            ["ssh-keygen", *arguments],
            input=content,
            capture_output=True,
            check=False,
            timeout=_SECONDS,
            env=environment | quiet,
            start_new_session=True,
        )


def _cannot_sign(said: str, path: Path) -> CrossgapError:
    if re.search(r"passphrase|incorrect", said, re.IGNORECASE):
        return PassphraseNeeded(
            "the key has a passphrase, and nobody is there to type it",
            str(path),
            "Add it to an SSH agent that the worker can reach (ssh-add), or use a key without one.",
        )
    if re.search(r"UNPROTECTED|bad permissions", said):
        return InvalidInput(
            "ssh-keygen refuses the key, because other users can read it",
            str(path),
            f"Take the right from them: chmod 600 {path.name}.",
        )
    return InvalidInput(
        f"ssh-keygen cannot sign with it ({said[-200:] or 'no message'})",
        str(path),
        "Name a private SSH key, or a public one whose private half the SSH agent holds.",
    )


def _wrong_signature(said: str, where: str) -> CrossgapError:
    if re.search(r"unknown option|illegal option|usage:", said):
        return CommandFailed(
            "ssh-keygen here is too old to check signatures", where, "Install OpenSSH 8.2 or later."
        )
    return Damaged(
        f"its signature is not for what is in it ({said[-200:] or 'no message'})",
        where,
        "Do not use this bundle: it was altered after it was signed, or copied badly. "
        "Copy SHA256SUMS and SHA256SUMS.sig again from where it was made.",
    )


def _key_in(said: str) -> str:
    match = re.search(r"with (\S+) key (\S+)", said)
    return f"{match[1]} {match[2]}" if match else said.strip()[-100:]


def _said(result: subprocess.CompletedProcess[bytes]) -> str:
    return " ".join((result.stderr + result.stdout).decode("utf-8", "replace").split())
