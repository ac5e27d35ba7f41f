"""A server that is reached by SSH, as a block; and the command that records its key.

python -m blocks.ssh_host scan ADDRESS [--port N] [--block NAME]
"""

from __future__ import annotations

if __name__ == "__main__":
    # Before the classes: Prefect warns of blocks that are defined twice.
    from blocks.host_key_scan import main

    raise SystemExit(main())

import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from prefect.blocks.core import Block
from prefect.client.schemas.objects import BlockType
from pydantic import Field, HttpUrl, SecretStr, field_validator

from blocks.commands import CommandLine, SudoMode
from blocks.errors import NotFound, SudoRefused
from blocks.host import Host, Process
from blocks.logo import logo, with_served_logo

if TYPE_CHECKING:
    from paramiko.channel import Channel

    from blocks.ssh_connection import Connection
    from blocks.ssh_login import Login
    from blocks.ssh_process import SSHProcess


DOCUMENTATION = HttpUrl("https://github.com/crossgap/crossgap")


class JumpHost(Block):
    """A server that others are reached through: where it is, who logs in, its host key.

    Prefect has no block type that refers to itself, so what `SSHHost` needs of
    a host in between is a type of its own, and every `SSHHost` is one as well.

    Examples:
        Reach a host through another:
        ```python
        from blocks.ssh_host import JumpHost, SSHHost

        jump_host = JumpHost.load("BLOCK_NAME")
        host = SSHHost(address="10.0.3.17", jump_host=jump_host)
        ```
    """

    _block_type_name = "SSH Jump Host"
    _block_type_slug = "ssh-jump-host"
    _logo_url = logo("host")
    _documentation_url = DOCUMENTATION
    _description = "A server that SSH hosts are reached through."

    address: str = Field(
        title="Address",
        description="Name or IP address, as this machine (or the jump host) reaches it.",
        examples=["10.0.3.17", "gpu1.example.org"],
    )
    port: int = Field(
        default=22,
        ge=1,
        le=65535,
        title="Port",
        description="TCP port of sshd.",
    )
    username: str = Field(
        default="root",
        title="User",
        description="Who logs in.",
        examples=["root", "operator"],
    )
    known_hosts: str = Field(
        default="",
        title="Host keys",
        description=(
            "Lines of OpenSSH's known_hosts for this host. To see and record them: "
            "python -m blocks.ssh_host scan ADDRESS --block NAME."
        ),
    )
    private_key: SecretStr = Field(
        default=SecretStr(""),
        title="Private key",
        description="The whole private key file, from BEGIN to END.",
    )
    private_key_path: str = Field(
        default="",
        title="Private key file",
        description="Or: the path of a private key on the worker's machine.",
        examples=["~/.ssh/id_ed25519"],
    )
    passphrase: SecretStr = Field(
        default=SecretStr(""),
        title="Passphrase",
        description="What unlocks the private key, if it is locked.",
    )
    password: SecretStr = Field(
        default=SecretStr(""),
        title="Password",
        description="The login password; also answers keyboard-interactive prompts.",
    )
    connect_timeout: float = Field(
        default=15,
        gt=0,
        title="Connect timeout (seconds)",
        description="How long each step of making a connection may take.",
    )

    @field_validator(
        "private_key", "passphrase", "password", "sudo_password", mode="before", check_fields=False
    )
    @classmethod
    def _none_is_empty(cls, value: object) -> object:
        """Take None for empty: in the UI, a field that allows null is no password field."""
        return "" if value is None else value

    @classmethod
    def _to_block_type(cls) -> BlockType:
        return with_served_logo(super()._to_block_type(), "host")

    @property
    def name(self) -> str:
        """The block's name; the address of a block that was never saved."""
        return self._block_document_name or self.address

    @property
    def label(self) -> str:
        """The host as messages name it: block name and address."""
        place = self.address if self.port == 22 else f"{self.address}:{self.port}"
        return place if self.name == self.address else f"{self.name} ({place})"

    def login(self) -> Login:
        """Return where and as whom to connect, secrets included.

        Raises:
            NotFound: The private key file does not exist.
        """
        from blocks.ssh_login import Login

        return Login(
            label=self.label,
            address=self.address.strip(),
            port=self.port,
            username=self.username,
            private_keys=tuple(self._private_keys()),
            passphrase=self.passphrase.get_secret_value(),
            password=self.password.get_secret_value(),
            known_hosts=self.known_hosts,
            connect_timeout=self.connect_timeout,
        )

    def _private_keys(self) -> Iterator[str]:
        if key := self.private_key.get_secret_value().strip():
            yield key
        if self.private_key_path:
            path = Path(self.private_key_path).expanduser()
            try:
                yield path.read_text()
            except (OSError, UnicodeDecodeError) as error:
                raise NotFound(
                    f"the private key file {path} cannot be read here "
                    f"({getattr(error, 'strerror', 'not text')})",
                    self.label,
                    "The path is on the worker's machine; or paste the key into the block.",
                ) from error


class SSHHost(JumpHost, Host):
    """A server that is reached by SSH, perhaps through a jump host.

    It needs sshd and a POSIX shell with coreutils as old as CentOS 7's; nothing is
    installed on it. Its host key is always checked. Any of the ways to log in is
    enough; keys are tried first, then the password, once.

    Examples:
        Run a command on a saved host:
        ```python
        from blocks.ssh_host import SSHHost

        host = SSHHost.load("BLOCK_NAME")
        print(host.run(["uname", "-m"], timeout=10).stdout)
        ```
    """

    _block_type_name = "SSH Host"
    _block_type_slug = "ssh-host"
    _logo_url = logo("host")
    _documentation_url = DOCUMENTATION
    _description = "A server that is reached by SSH: where it is, who logs in, its host key."

    jump_host: JumpHost | None = Field(
        default=None,
        title="Jump host",
        description="Another host to go through.",
    )
    sudo: Literal["no", "passwordless", "password"] = Field(
        default="no",
        title="sudo",
        description="How this user becomes root for Docker and system files.",
    )
    sudo_password: SecretStr = Field(
        default=SecretStr(""),
        title="sudo password",
        description="What sudo asks for; empty means the login password.",
    )
    work_dir: str = Field(
        default="~/.crossgap",
        title="Work folder",
        description="Where files are staged and jobs keep their logs; needs room for images.",
        examples=["~/.crossgap", "/data1/crossgap"],
    )
    models_dir: str = Field(
        default="~/models",
        title="Models folder",
        description="Where models are kept.",
        examples=["~/models", "/data1/models"],
    )
    patience: int = Field(
        default=28800,
        ge=0,
        title="Patience (seconds)",
        description="How long an outage during a transfer or job is waited out.",
    )

    @property
    def lock_name(self) -> str:
        """What two blocks for one machine have in common."""
        return f"{self.address.strip().lower()}-{self.port}"

    @property
    def sudo_mode(self) -> SudoMode:
        """How commands become root; root needs no sudo."""
        return "no" if self.username == "root" else self.sudo

    def login(self) -> Login:
        """Return where and as whom to connect, and through which host."""
        jump = self.jump_host.login() if self.jump_host else None
        return replace(super().login(), jump=jump, sudo_password=self._sudo_password())

    def _sudo_password(self) -> str:
        return self.sudo_password.get_secret_value() or self.password.get_secret_value()

    def _connection(self) -> Connection:
        from blocks.ssh_connection import connection_to

        return connection_to(self.login())

    def open_process(self, line: CommandLine) -> SSHProcess:
        """Start one line of shell on the host.

        Raises:
            SudoRefused: It needs sudo, which has refused this password before.
            CrossgapError: No connection could be made.
        """
        return self._connection_for(line).open_process(line)

    def open_bulk(self, line: CommandLine) -> Process:
        """Start one line of shell whose input or output is large.

        It runs through the OpenSSH client where that is here and gets in, and
        otherwise as all others do.

        Raises:
            CrossgapError: As for `open_process`.
        """
        connection = self._connection_for(line)
        connection.transport()  # says best what is wrong, and asks for a password first
        return connection.openssh.open_process(line) or connection.open_process(line)

    def _connection_for(self, line: CommandLine) -> Connection:
        connection = self._connection()
        if line.through_sudo and connection.sudo_refused:
            # Trying a refused password again locks accounts.
            raise connection.sudo_refused
        return connection

    def _home(self) -> str:
        connection = self._connection()
        connection.home = connection.home or super()._home()
        return connection.home

    def sudo_refused(self, meaning: str, shown: str) -> SudoRefused:
        """Make the error for a sudo that did not start a command, and remember it."""
        error = super().sudo_refused(meaning, shown)
        self._connection().sudo_refused = error
        return error

    @contextmanager
    def forward(self, host: str, port: int) -> Iterator[int]:
        """Make a port that this host reaches available on this machine.

        Args:
            host: A name or address as this host knows it.
            port: The port there.

        Yields:
            The local port, on 127.0.0.1.

        Raises:
            CrossgapError: The host cannot be reached. A refused forwarding closes
                the connections that are made to the local port.
        """
        transport = self._connection().transport()

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with suppress(Exception):  # the client sees its connection close
                    channel = transport.open_channel(
                        "direct-tcpip", (host, port), self.request.getpeername(), timeout=15
                    )
                    _join(self.request, channel)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True

        with Server(("127.0.0.1", 0), Handler) as server:
            threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True).start()
            try:
                yield server.server_address[1]
            finally:
                server.shutdown()


def _join(one: socket.socket, other: Channel) -> None:
    """Copy both ways between two sockets (or channels) until one side ends."""

    def copy(source: socket.socket | Channel, target: socket.socket | Channel) -> None:
        with suppress(OSError, EOFError):
            while data := source.recv(1 << 16):
                target.sendall(data)
        with suppress(OSError, EOFError):
            target.shutdown(socket.SHUT_WR)

    back = threading.Thread(target=copy, args=(other, one), daemon=True)
    back.start()
    copy(one, other)
    back.join()
    other.close()
