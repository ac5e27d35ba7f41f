"""What the OpenSSH client is told: a configuration of its own for one login.

Everything is pure. The user's and the machine's configuration are left out, so that a
bulk stream goes the same way, and checks the same host keys, as all else.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# AES-GCM first: with AES instructions it is the fastest. The others are what servers
# of the last ten years have in its place.
_CIPHERS = (
    "aes128-gcm@openssh.com",
    "aes256-gcm@openssh.com",
    "aes128-ctr",
    "chacha20-poly1305@openssh.com",
    "aes192-ctr",
    "aes256-ctr",
)

# A peer that has been silent for 20 s is given up, as by our own connections.
_ALL = f"""\
Host *
  BatchMode {{batch}}
  CheckHostIP no
  Ciphers {",".join(_CIPHERS)}
  Compression no
  ConnectionAttempts 1
  ControlMaster no
  ControlPath none
  EscapeChar none
  ForwardAgent no
  ForwardX11 no
  GlobalKnownHostsFile /dev/null
  IPQoS none
  IdentityFile none
  LogLevel DEBUG1
  NumberOfPasswordPrompts 1
  PermitLocalCommand no
  RequestTTY no
  ServerAliveCountMax 4
  ServerAliveInterval 5
  StrictHostKeyChecking yes
  TCPKeepAlive yes
  UpdateHostKeys no
  VerifyHostKeyDNS no
"""

_ADDRESS = re.compile(r"[A-Za-z0-9._:-]+(%[A-Za-z0-9._-]+)?")
# Whatever the configuration or a shell would take apart is left to our own connection.
_USER = re.compile(r"[^\s\"'\\%$#=,;&|<>(){}`~!*?\[\]-][^\s\"'\\%$#=,;&|<>(){}`~!*?\[\]]*")


@dataclass(frozen=True)
class Hop:
    """One SSH connection on the way, the last host first.

    Args:
        address: Name or IP address.
        port: TCP port.
        username: Who logs in.
        host_keys: The keys that it may show, each as type and base64.
        timeout: Seconds for the connection to be made.
        has_keys: Whether there are private keys to try.
        has_password: Whether there is a password to try.
    """

    address: str
    port: int
    username: str
    host_keys: tuple[str, ...]
    timeout: float
    has_keys: bool
    has_password: bool

    @property
    def is_plain(self) -> bool:
        """Whether its address and user can be written down without quoting."""
        return bool(_ADDRESS.fullmatch(self.address) and _USER.fullmatch(self.username))


def alias(number: int) -> str:
    """Return the name by which the configuration knows a hop."""
    return f"crossgap-{number}"


def agent_socket(folder: Path, number: int) -> Path:
    """Return where the agent for a hop listens."""
    return folder / f"agent-{number}"


def askpass_script(folder: Path, number: int) -> Path:
    """Return the program that answers a hop's question for the password."""
    return folder / f"askpass-{number}"


def answer_pipe(folder: Path, number: int) -> Path:
    """Return the named pipe that the answer comes through."""
    return folder / f"answer-{number}"


def compose_config(hops: Sequence[Hop], folder: Path, program: str) -> str:
    """Compose the configuration file.

    Args:
        hops: The connections, the last host first.
        folder: Where the files are that it names; its path needs no quoting.
        program: The client, which calls itself for the hops behind the first.
    """
    parts = [_hop_part(hop, number, folder) for number, hop in enumerate(hops)]
    for number in range(len(hops) - 1):
        command = shlex.join(
            [
                "env",
                f"SSH_ASKPASS={askpass_script(folder, number + 1)}",
                *command_words(folder, program),
                "-W",
                "TARGET",
                alias(number + 1),
            ]
        )
        through = command.replace("%", "%%").replace("TARGET", "'[%h]:%p'")
        parts[number] += f"  ProxyCommand {through}\n"  # ssh itself puts exec before it
    batch = "no" if any(hop.has_password for hop in hops) else "yes"
    return "".join([*parts, _ALL.format(batch=batch)])


def command_words(folder: Path, program: str) -> list[str]:
    """Return the client with the options that lead it to its configuration and log."""
    return [program, "-F", str(folder / "config"), "-E", str(folder / "log"), "-T"]


def _hop_part(hop: Hop, number: int, folder: Path) -> str:
    methods = ["publickey"] * hop.has_keys
    methods += ["password", "keyboard-interactive"] * hop.has_password
    agent = str(agent_socket(folder, number)) if hop.has_keys else "none"
    return f"""\
Host {alias(number)}
  HostName {hop.address.replace("%", "%%")}
  Port {hop.port}
  User {hop.username}
  HostKeyAlias {alias(number)}
  UserKnownHostsFile {folder / "known_hosts"}
  IdentityAgent {agent}
  PreferredAuthentications {",".join(methods) or "none"}
  PasswordAuthentication {"yes" if hop.has_password else "no"}
  KbdInteractiveAuthentication {"yes" if hop.has_password else "no"}
  ConnectTimeout {max(1, math.ceil(hop.timeout))}
"""


def compose_known_hosts(hops: Sequence[Hop]) -> str:
    """Compose the host keys of all hops, each under the hop's own name."""
    return "".join(
        f"{alias(number)} {key}\n" for number, hop in enumerate(hops) for key in hop.host_keys
    )


def compose_askpass(folder: Path, number: int) -> str:
    """Compose the program that tells ssh the password, once.

    Asked again, it ends the ssh that asks: the password was refused, and whatever
    else were answered would count as a further try. What it prints never stands in
    an argument, a variable or a file.
    """
    asked = shlex.quote(str(folder / f"asked-{number}"))
    pipe = shlex.quote(str(answer_pipe(folder, number)))
    return f"""\
#!/bin/sh
mkdir {asked} 2>/dev/null || {{ kill "$PPID"; exit 1; }}
exec head -n 1 {pipe}
"""
