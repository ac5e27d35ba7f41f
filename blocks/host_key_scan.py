"""The command that shows a host's key and, confirmed, records it in a block."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from blocks.errors import CrossgapError, InvalidInput, NotFound
from blocks.host_keys import (
    KnownHosts,
    fingerprint,
    host_key_name,
    known_hosts_line,
    recorded_anew,
)

if TYPE_CHECKING:
    import paramiko

    from blocks.ssh_host import JumpHost


def main(argv: Sequence[str] | None = None) -> int:
    """Show the key that a host presents and, confirmed, record it.

    Args:
        argv: The command line without the program's name.

    Returns:
        0 when shown or recorded, 1 for an error or a refusal.
    """
    parser = argparse.ArgumentParser(prog="python -m blocks.ssh_host", description=__doc__)
    scan = parser.add_subparsers(required=True).add_parser("scan", help="show and record a key")
    scan.add_argument("address", help="name or IP address of the host, as its block has it")
    scan.add_argument("--port", type=int, help="port of its sshd (the block's, else 22)")
    scan.add_argument(
        "--block", default="", help="the SSH Host or SSH Jump Host block to record the key in"
    )
    scan.add_argument(
        "--jump",
        default="",
        help="the SSH Jump Host or SSH Host block of a host to go through (the block's)",
    )
    scan.add_argument("--yes", action="store_true", help="record without asking")
    options = parser.parse_args(argv)
    try:
        return _scan(options)
    except CrossgapError as error:
        print(error, file=sys.stderr)
        return 1


def _scan(options: argparse.Namespace) -> int:
    address, port = options.address, options.port
    blocks = _blocks_of(options.block, address, port) if options.block else []
    port = port or (blocks[0].port if blocks else 22)
    key = _shown_key(address, port, _jump_host(options.jump, blocks))
    print(f"{host_key_name(address, port)} shows {key.get_name()} {fingerprint(key)}")
    print("Compare it on the host's own console: ssh-keygen -lf /etc/ssh/ssh_host_*_key.pub")
    if not blocks:
        print(f"Line for the block's host keys:\n{known_hosts_line(address, port, key)}")
        return 0
    blocks = [block for block in blocks if not _is_up_to_date(block, key)]
    if not blocks:
        print(f"Block {options.block} has it already.")
        return 0
    if not options.yes and not _confirmed(f"Record it in block {options.block}? [y/N] "):
        print("Nothing was recorded.")
        return 1
    for block in blocks:
        _record(block, options.block, key)
    return 0


def _confirmed(question: str) -> bool:
    try:
        return input(question).strip().lower() == "y"
    except EOFError:  # nobody is there to answer
        return False


def _blocks_of(name: str, address: str, port: int | None) -> list[JumpHost]:
    """Load the blocks of this name that are for this host: of both kinds, where both exist."""
    found = _loaded(name)
    host = address.strip().lower()
    meant = [block for block in found if block.address.strip().lower() == host]
    meant = [block for block in meant if block.port == (port or meant[0].port)]
    if not meant:
        has = " and ".join(f"{block.address}, port {block.port}" for block in found)
        raise InvalidInput(
            f"the block has {has}; a key that is recorded for {address}"
            f"{f', port {port},' if port else ''} would never be looked up",
            name,
            "Scan the address that the block has, or change it in the block first.",
        )
    return meant


def _loaded(name: str) -> list[JumpHost]:
    from blocks.ssh_host import JumpHost, SSHHost

    found: list[JumpHost] = []
    for kind in (SSHHost, JumpHost):
        try:
            found.append(cast("JumpHost", kind.load(name)))
        except ValueError:  # Prefect's word for "no such block document"
            continue
    if not found:
        raise NotFound(
            "there is no SSH Host or SSH Jump Host block of this name",
            name,
            "Make it in the UI under Blocks first.",
        )
    return found


def _jump_host(name: str, blocks: Sequence[JumpHost]) -> JumpHost | None:
    if name:
        # Of two with the name, the one that is made for it.
        return _loaded(name)[-1]
    return next((it for block in blocks if (it := getattr(block, "jump_host", None))), None)


def _shown_key(address: str, port: int, jump: JumpHost | None) -> paramiko.PKey:
    from blocks.ssh_connection import shown_host_key
    from blocks.ssh_host import SSHHost

    with shown_host_key(SSHHost(address=address, port=port, jump_host=jump).login()) as key:
        return key


def _is_up_to_date(block: JumpHost, key: paramiko.PKey) -> bool:
    try:
        recorded = KnownHosts(block.known_hosts, block.label).keys(block.address, block.port)
    except InvalidInput:
        return False  # the damaged line goes when the key is recorded
    # An old key beside the right one makes sshd be asked for the old one's kind first.
    return {it.asbytes() for it in recorded} == {key.asbytes()}


def _record(block: JumpHost, name: str, key: paramiko.PKey) -> None:
    text = recorded_anew(block.known_hosts, block.address, block.port, key)
    # What a connection would say: a key that is marked as revoked is not recorded.
    KnownHosts(text, block.label).check(block.address, block.port, key)
    block.known_hosts = text
    block.save(name, overwrite=True)
    print(f"Recorded in block {name} ({block.get_block_type_name()}).")
