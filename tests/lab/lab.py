"""A lab: some pretend servers on one network, brought up and taken down together."""

from __future__ import annotations

import os
import secrets
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Self

from tests.lab.engine import end_unused_engine, engine_url, release_engine
from tests.lab.errors import LabError
from tests.lab.hosts import Access, LabHost
from tests.lab.network import Network, Subnet, claim_subnet
from tests.lab.packages import ensure_packages
from tests.lab.processes import Process
from tests.lab.residue import remove_lab
from tests.lab.spec import DEFAULT_HOSTS, HostSpec, Wanted, complete
from tests.lab.sshd import make_key
from tests.lab.state import LabFolders, UseLock, lab_names


@dataclass(frozen=True)
class StatusRow:
    """One line of `python -m tests.lab status`."""

    lab: str
    host: str
    kind: str
    address: str
    state: str


def default_name() -> str:
    """The lab's name where none is given: CROSSGAP_LAB, or `main`."""
    return os.environ.get("CROSSGAP_LAB", "") or "main"


class Lab:
    """Pretend servers that live side by side under one name.

    Example:
        ```python
        with Lab("mine").up({"gpu1": "plain"}) as lab:
            lab.host("gpu1").cut()
        ```

    Args:
        name: Lower-case letters, digits and dashes; CROSSGAP_LAB or `main` when left out.
    """

    def __init__(self, name: str = "") -> None:
        self.name = name or default_name()
        self._folders = LabFolders(self.name)
        self._lock = UseLock(self.name)
        self._hosts: dict[str, LabHost] = {}
        self._engine = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.down()

    def up(self, hosts: Wanted = DEFAULT_HOSTS, *, reuse: bool = False) -> Self:
        """Bring the hosts up, all at once; what a killed run left of this lab goes first.

        Args:
            hosts: Kinds by name, or specs.
            reuse: Take over a lab of this name that has exactly these hosts and is healthy.

        Raises:
            LabUnavailable: This machine cannot hold a lab.
            LabBusy: Another process is using the lab of this name.
            LabError: A host did not come up; nothing of the lab is left then.
        """
        specs = complete(hosts)
        ensure_packages()
        self._lock.take()
        if reuse and self._take_over(specs):
            return self
        try:
            remove_lab(self._folders)
            self._build(specs)
        except BaseException:
            self.down()
            raise
        return self

    def down(self) -> None:
        """End every host and remove all that the lab has on this machine."""
        self._lock.take()
        try:
            self._hosts = {}
            remove_lab(self._folders)
            if self._engine:
                self._engine = ""
                release_engine()
            end_unused_engine()
        finally:
            self._lock.release()

    def leave(self) -> None:
        """Let go of the lab without taking it down."""
        self._lock.release()

    def attach(self) -> Self:
        """Use a lab that another process brought up.

        Raises:
            LabError: There is none of this name.
        """
        record = self._folders.read()
        if not record or not record["hosts"]:
            raise LabError(f"lab {self.name} is not up; `python -m tests.lab up` brings it up")
        self._hosts = self._from_record(record)
        return self

    def host(self, name: str) -> LabHost:
        """Return a host by name.

        Raises:
            LabError: The lab is not up or has no such host; names those it has.
        """
        if not self._hosts:
            self.attach()
        if name not in self._hosts:
            raise LabError(f"lab {self.name} has no host {name}: {', '.join(self._hosts)}")
        return self._hosts[name]

    @property
    def hosts(self) -> list[LabHost]:
        """Its hosts, jump hosts first."""
        return list(self._hosts.values())

    @property
    def engine(self) -> str:
        """The URL of the engine that images are shipped from; started where none runs."""
        if not self._engine:
            self._engine = engine_url()
        return self._engine

    @property
    def network(self) -> Network:
        """Its cables; `network.uplink` is this machine's end of the link to all hosts."""
        record = self._folders.read()
        if record is None:
            raise LabError(f"lab {self.name} is not up")
        return Network(self._folders, Subnet(record["subnet"]))

    def shape_uplink(self, mbit: float | None) -> None:
        """Limit this machine's link to all hosts, each way, to `mbit` Mbit/s; None lifts it."""
        self.network.shape_uplink(mbit)

    def bytes_sent(self) -> int:
        """Bytes that left this machine towards the lab since it is up."""
        return self.network.uplink.bytes_sent()

    def bytes_received(self) -> int:
        """Bytes that came to this machine from the lab since it is up."""
        return self.network.uplink.bytes_received()

    def status(self) -> list[StatusRow]:
        """Say of each host whether it is healthy."""
        record = self._folders.read()
        if not record:
            return []
        return [
            StatusRow(
                self.name,
                host.name,
                host.kind,
                f"{host.address}:{host.port}",
                "up" if host.healthy else "not healthy",
            )
            for host in self._from_record(record).values()
        ]

    def _take_over(self, specs: list[HostSpec]) -> bool:
        record = self._folders.read()
        if not record or [host["spec"] for host in record["hosts"]] != [
            spec.as_record() for spec in specs
        ]:
            return False
        hosts = self._from_record(record)
        if not all(host.healthy for host in hosts.values()):
            return False
        self.shape_uplink(None)
        for host in hosts.values():
            host.reset()
        self._hosts = hosts
        return True

    def _build(self, specs: list[HostSpec]) -> None:
        subnet = Subnet(claim_subnet(self._folders))
        network = Network(self._folders, subnet)
        network.build()
        make_key(self._folders.state / "id_ed25519", f"lab {self.name}")
        record: dict[str, Any] = {"subnet": subnet.index, "password": secrets.token_urlsafe(12)}
        record["hosts"] = [self._host_record(n, s, subnet) for n, s in enumerate(specs)]
        self._folders.write(record)
        hosts = self._from_record(record)
        known = {host.name: host.address for host in hosts.values()}
        for entry in record["hosts"]:
            network.add_host(entry["spec"]["name"], entry["cables"])
        with ThreadPoolExecutor(max_workers=8) as pool:
            list(pool.map(lambda host: host.boot(known), hosts.values()))
        for entry in record["hosts"]:
            init = hosts[entry["spec"]["name"]].init
            entry["init"] = asdict(init) if init else None
        self._folders.write(record)
        self._hosts = hosts

    def _host_record(self, number: int, spec: HostSpec, subnet: Subnet) -> dict[str, Any]:
        front, back = ("front", subnet.front(number)), ("back", subnet.back(number))
        cables = [back] if spec.behind else [front]
        if spec.kind == "jump":
            cables = [front, back]
        return {"spec": spec.as_record(), "cables": cables, "init": None}

    def _from_record(self, record: dict[str, Any]) -> dict[str, LabHost]:
        network = Network(self._folders, Subnet(record["subnet"]))
        key = self._folders.state / "id_ed25519"
        access = Access(
            key.read_text(), key.with_suffix(".pub").read_text(), record.get("password", "")
        )
        hosts: dict[str, LabHost] = {}
        for entry in record["hosts"]:
            spec = HostSpec(**entry["spec"])
            init = Process(**entry["init"]) if entry["init"] else None
            jump = hosts[spec.behind] if spec.behind else None
            address = entry["cables"][0][1]
            hosts[spec.name] = LabHost(spec, address, self._folders, network, access, jump, init)
        return hosts


def every_lab() -> list[Lab]:
    """Return the labs that this machine knows of, up or left behind."""
    return [Lab(name) for name in lab_names()]
