"""The command that shows a host's key and, confirmed, records it in a block."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar, cast

from blocks.errors import CrossgapError, NotFound
from blocks.host_keys import fingerprint, host_key_name, known_hosts_line

if TYPE_CHECKING:
    from prefect.blocks.core import Block

B = TypeVar("B", bound="Block")


def main(argv: Sequence[str] | None = None) -> int:
    """Show the key that a host presents and, confirmed, record it.

    Args:
        argv: The command line without the program's name.

    Returns:
        0 when shown or recorded, 1 for an error or a refusal.
    """
    parser = argparse.ArgumentParser(prog="python -m blocks.ssh_host", description=__doc__)
    scan = parser.add_subparsers(required=True).add_parser("scan", help="show and record a key")
    scan.add_argument("address", help="name or IP address of the host")
    scan.add_argument("--port", type=int, default=22, help="port of its sshd (22)")
    scan.add_argument("--block", default="", help="the SSH Host block to record the key in")
    scan.add_argument("--jump", default="", help="the SSH Host block of a jump host")
    scan.add_argument("--yes", action="store_true", help="record without asking")
    options = parser.parse_args(argv)
    try:
        return _scan(options)
    except CrossgapError as error:
        print(error, file=sys.stderr)
        return 1


def _scan(options: argparse.Namespace) -> int:
    from blocks.ssh_connection import shown_host_key
    from blocks.ssh_host import JumpHost, SSHHost

    block = _load(SSHHost, options.block) if options.block else None
    address, port = options.address, options.port
    jump = _load(JumpHost, options.jump) if options.jump else (block.jump_host if block else None)
    target = SSHHost(address=address, port=port, jump_host=jump)
    with shown_host_key(target.login()) as key:
        line = known_hosts_line(address, port, key)
        shown = f"{key.get_name()} {fingerprint(key)}"
    print(f"{host_key_name(address, port)} shows {shown}")
    print("Compare it on the host's own console: ssh-keygen -lf /etc/ssh/ssh_host_*_key.pub")
    if block is None:
        print(f"Line for the block's host keys:\n{line}")
        return 0
    if line in block.known_hosts.splitlines():
        print(f"Block {options.block} has it already.")
        return 0
    if not options.yes and input(f"Record it in block {options.block}? [y/N] ").lower() != "y":
        print("Nothing was recorded.")
        return 1
    name = host_key_name(address, port)
    kept = [old for old in block.known_hosts.splitlines() if old.split(" ")[:1] != [name]]
    block.known_hosts = "\n".join([*kept, line])
    block.save(options.block, overwrite=True)
    print(f"Recorded in block {options.block}.")
    return 0


def _load(kind: type[B], name: str) -> B:
    try:
        return cast(B, kind.load(name))
    except ValueError as error:
        raise NotFound(
            f"there is no {kind.get_block_type_name()} block of this name",
            name,
            "Make it in the UI under Blocks first.",
        ) from error
