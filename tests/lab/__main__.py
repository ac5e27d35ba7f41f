"""`python -m tests.lab up|status|down`: pretend servers from the command line."""

from __future__ import annotations

import argparse
import sys

from tests.lab.errors import LabError, LabUnavailable
from tests.lab.lab import Lab, default_name, every_lab
from tests.lab.spec import DEFAULT_HOSTS, GIB, HostSpec, kind_named


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    chosen = _parser().parse_args(arguments)
    try:
        commands = {"up": _up, "status": _status, "down": _down}
        commands[chosen.command](chosen)
    except (LabError, LabUnavailable) as error:
        print(error, file=sys.stderr)
        return 1
    except PermissionError as error:
        print(f"{error.filename}: the lab needs root; run this with sudo", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.lab", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="bring a lab up")
    up.add_argument("hosts", nargs="*", type=_spec, metavar="NAME[=plain|bare|jump]")
    up.add_argument("--disk-gib", type=float, default=3, help="size of each host's disk")
    up.add_argument("--reuse", action="store_true", help="keep a healthy lab with these hosts")
    commands.add_parser("status", help="show every lab of this machine")
    down = commands.add_parser("down", help="take a lab down and remove all it has")
    down.add_argument("--all", action="store_true", help="every lab of this machine")
    for command in (up, down):
        command.add_argument("--name", default=default_name(), help="the lab (CROSSGAP_LAB)")
    return parser


def _spec(text: str) -> HostSpec:
    name, _, kind = text.partition("=")
    try:
        return HostSpec(name, kind_named(kind or "plain"))
    except LabError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _up(chosen: argparse.Namespace) -> None:
    size = int(chosen.disk_gib * GIB)
    specs = [HostSpec(h.name, h.kind, size) for h in chosen.hosts] or DEFAULT_HOSTS
    lab = Lab(chosen.name).up(specs, reuse=chosen.reuse)
    lab.leave()
    _show([lab])
    print(f"source engine: {lab.engine}")


def _status(chosen: argparse.Namespace) -> None:
    _show(every_lab())


def _show(labs: list[Lab]) -> None:
    rows = [row for lab in labs for row in lab.status()]
    if not rows:
        print("no lab is up")
    for row in rows:
        print(f"{row.lab:<12} {row.host:<12} {row.kind:<6} {row.address:<20} {row.state}")


def _down(chosen: argparse.Namespace) -> None:
    for lab in every_lab() if chosen.all else [Lab(chosen.name)]:
        lab.down()


if __name__ == "__main__":
    sys.exit(main())
