"""The lab's network: two bridges in a namespace of their own, and one link from this machine.

    this machine --uplink-- [front bridge] -- plain hosts, jump hosts
                                                        |
                                              [back bridge] -- hosts behind a jump host

Each lab has a /24 of 198.18.0.0/15 (RFC 2544: for benchmarks, routed nowhere). Its lower
half is the front, its upper half the back. No host has a default route, and none forwards.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from tests.lab.commands import execute
from tests.lab.state import LabFolders, lab_names, machine_lock

SUBNETS = range(1, 512)


def claim_subnet(folders: LabFolders) -> int:
    """Choose a free /24 for a lab and record it before anything uses it."""
    with machine_lock("subnets"):
        taken = set()
        for name in lab_names():
            record = LabFolders(name).read()
            if record:
                taken.add(record["subnet"])
        routes = execute("ip", "-4", "route", "show", "table", "all")
        free = next(
            index
            for index in SUBNETS
            if index not in taken and f"{Subnet(index).prefix}." not in routes
        )
        folders.write({"subnet": free, "hosts": []})
    return free


@dataclass(frozen=True)
class Subnet:
    """One /24 of 198.18.0.0/15 by its number, 0 to 511."""

    index: int

    @property
    def prefix(self) -> str:
        """Its first three octets."""
        return f"198.{18 + self.index // 256}.{self.index % 256}"

    @property
    def here(self) -> str:
        """This machine's address."""
        return f"{self.prefix}.1"

    def front(self, number: int) -> str:
        """The address of the host with this number on the front bridge."""
        return f"{self.prefix}.{10 + number}"

    def back(self, number: int) -> str:
        """The address of the host with this number on the back bridge."""
        return f"{self.prefix}.{138 + number}"


class Link:
    """One end of a cable: an interface that can be cut, shaped and read.

    Args:
        interface: Its name.
        netns: The network namespace it is in, empty for this machine's own.
    """

    def __init__(self, interface: str, netns: str = "") -> None:
        self.interface = interface
        self._where = ["-n", netns] if netns else []

    def set(self, state: str) -> None:
        """Bring it `up` or `down`."""
        execute("ip", *self._where, "link", "set", self.interface, state)

    def shape(self, mbit: float | None) -> None:
        """Let no more than `mbit` Mbit/s leave through it; None lifts the limit."""
        if mbit is None:
            execute("tc", *self._where, "qdisc", "del", "dev", self.interface, "root", check=False)
            return
        # A bucket below one segment as the kernel hands it over (64 KiB) throttles far more
        # than asked; one of 4 ms is what a timer tick needs at high rates.
        burst = max(65536, int(mbit * 1e6 / 8 * 0.004))
        bucket = ["rate", f"{int(mbit * 1000)}kbit", "burst", str(burst), "latency", "50ms"]
        execute(
            "tc", *self._where, "qdisc", "replace", "dev", self.interface, "root", "tbf", *bucket
        )

    def bytes_received(self) -> int:
        """Bytes that came in through it since it exists."""
        return int(self._counters()["rx"]["bytes"])

    def bytes_sent(self) -> int:
        """Bytes that left through it since it exists."""
        return int(self._counters()["tx"]["bytes"])

    def _counters(self) -> dict[str, dict[str, int]]:
        shown = json.loads(execute("ip", *self._where, "-s", "-j", "link", "show", self.interface))
        counters: dict[str, dict[str, int]] = shown[0]["stats64"]
        return counters


class Network:
    """The cables of one lab."""

    def __init__(self, folders: LabFolders, subnet: Subnet) -> None:
        self._folders = folders
        self._subnet = subnet
        self._switch = folders.netns("switch")
        self.uplink = Link(f"cglab{subnet.index}")
        self._uplink_port = Link("uplink", self._switch)

    def build(self) -> None:
        """Lay the bridges and this machine's link to the front one."""
        self._add_namespace(self._switch)
        for bridge in ("front", "back"):
            execute("ip", "-n", self._switch, "link", "add", bridge, "type", "bridge")
            execute("ip", "-n", self._switch, "link", "set", bridge, "up")
        uplink = self.uplink.interface
        peer = ["peer", "name", "uplink", "netns", self._switch]
        execute("ip", "link", "add", uplink, "type", "veth", *peer)
        execute("ip", "-n", self._switch, "link", "set", "uplink", "master", "front", "up")
        execute("ip", "addr", "add", f"{self._subnet.here}/25", "dev", uplink)
        execute("ip", "link", "set", uplink, "up")
        # Without it, packets for the back half would leave by this machine's default route.
        execute("ip", "route", "replace", "unreachable", f"{self._subnet.prefix}.128/25")

    def add_host(self, host: str, addresses: Iterable[tuple[str, str]]) -> None:
        """Give a host its namespace and a cable per (bridge, address)."""
        netns = self._folders.netns(host)
        self._add_namespace(netns)
        for position, (bridge, address) in enumerate(addresses):
            port, nic = self.port(host, position), f"eth{position}"
            peer = ["peer", "name", nic, "netns", netns]
            execute("ip", "link", "add", port, "netns", self._switch, "type", "veth", *peer)
            execute("ip", "-n", self._switch, "link", "set", port, "master", bridge, "up")
            execute("ip", "-n", netns, "addr", "add", f"{address}/25", "dev", nic)
            execute("ip", "-n", netns, "link", "set", nic, "up")

    def port(self, host: str, position: int = 0) -> str:
        """The name of the switch's end of a host's cable (15 characters are the limit)."""
        return f"{host[:12]}-{position}"

    def switch_link(self, host: str) -> Link:
        """The switch's end of a host's first cable: what is sent to the host leaves here."""
        return Link(self.port(host), self._switch)

    def host_link(self, host: str) -> Link:
        """The host's end of its first cable."""
        return Link("eth0", self._folders.netns(host))

    def shape_uplink(self, mbit: float | None) -> None:
        """Limit this machine's link, each way, to `mbit` Mbit/s; None lifts it."""
        self.uplink.shape(mbit)
        self._uplink_port.shape(mbit)

    def _add_namespace(self, netns: str) -> None:
        execute("ip", "netns", "add", netns)
        execute("ip", "-n", netns, "link", "set", "lo", "up")
        # Neighbour discovery would otherwise blur the byte counters.
        # Forwarding is inherited from this machine, and a jump host must not route.
        settings = {"ipv6/conf/all/disable_ipv6": 1, "ipv6/conf/default/disable_ipv6": 1}
        settings |= {"ipv4/ip_forward": 0}
        for setting, value in settings.items():
            write = f"if [ -e $0 ]; then echo {value} >$0; fi"
            entered = ("nsenter", f"--net=/run/netns/{netns}")
            execute(*entered, "sh", "-c", write, f"/proc/sys/net/{setting}")


def remove_network(folders: LabFolders, subnet: Subnet | None) -> None:
    """Remove whatever of a lab's network exists."""
    for namespace in folders.namespaces():
        execute("ip", "netns", "delete", namespace.name)
    if subnet is None:
        return
    # Both ends of a cable go with either; this is for one whose other end never came up.
    execute("ip", "link", "delete", f"cglab{subnet.index}", check=False)
    execute("ip", "route", "delete", "unreachable", f"{subnet.prefix}.128/25", check=False)
