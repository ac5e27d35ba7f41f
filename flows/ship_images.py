"""Docker images onto servers that cannot reach a registry."""

from __future__ import annotations

from prefect import flow

from blocks.cancellation import ends_remote_work
from blocks.hosts import host_names, load_host
from blocks.site import expand_hosts
from tasks.common.failures import collect
from tasks.common.locks import hosts_locked
from tasks.images.plan import Shipment, TransferChoice, plan_shipment
from tasks.images.pull import PullPolicy
from tasks.images.results import ShipResult
from tasks.images.ship_report import note_plan, note_results, run_name, ship_report
from tasks.images.shipping import FLOW, Terms, Verification, ship_to
from tasks.images.steps import look_at_host
from tasks.images.wanted import SourceKind, Wanted, find_source


@flow(name=FLOW, flow_run_name=run_name)
def ship_images(
    images: list[str],
    hosts: list[str],
    source: SourceKind = "engine",
    archive: str = "",
    pull: PullPolicy = "missing",
    mirrors: list[str] = [],  # noqa: B006 - Prefect shows the default in the form
    registry_credentials: str = "",
    transfer: TransferChoice = "auto",
    verify: Verification = "content",
    rate_limit_mbit: float | None = None,
    total_rate_limit_mbit: float | None = None,
    max_parallel_hosts: int = 8,
    prune: bool = False,
    dry_run: bool = False,
) -> list[ShipResult] | Shipment:
    """Bring Docker images to servers over SSH, and prove that they arrived.

    Images that a host has already are left alone. Of the others only the layers travel
    that the host lacks. A run that was cut off goes on where it stopped.

    Args:
        images: Names such as ragflow:v0.27.0, or compose:PATH for all images of a compose
            file; may be empty for all images of an archive.
        hosts: Names of host blocks, or SITE:GROUP for all hosts of a group.
        source: Where the images are: in this machine's Docker engine, in a registry (no
            engine needed), or in an archive.
        archive: For source archive: a file made by docker save, or a folder of such files.
        pull: When the source engine asks a registry for an image.
        mirrors: Mirrors of Docker Hub, tried in order before it, such as https://mirror.example.
        registry_credentials: Name of a Docker Registry Credentials block, if the images'
            registry wants a user.
        transfer: Layers are staged in a folder on the host, which can be gone on with after
            a cut, or streamed into its engine, which takes less room; auto stages if it fits.
        verify: Prove by content (configuration and layers), or also start a container of each.
        rate_limit_mbit: Limit for each host, in Mbit/s.
        total_rate_limit_mbit: Limit for all hosts together, in Mbit/s.
        max_parallel_hosts: How many hosts are worked on at once.
        prune: Remove older tags of these repositories on the hosts, and images that lost their
            name to these, unless a container uses them. Without it they are only listed.
        dry_run: Only show what would be done.

    Returns:
        One result per image and host; of a dry run the plan.

    Raises:
        SeveralFailures: Everything that failed; what succeeded stays done.
    """
    with ship_report(FLOW, images, hosts, planned=dry_run) as report:
        terms = Terms.of(verify, rate_limit_mbit, total_rate_limit_mbit, prune=prune)
        named = [load_host(name) for name in expand_hosts(hosts, host_names)]
        asked = Wanted(images, source, archive, pull, mirrors, registry_credentials)
        with (
            find_source(asked) as place,
            hosts_locked([] if dry_run else named) as locked,
            ends_remote_work(),
        ):
            report.fail(locked.failures)
            machines = {host.label: host for host in (named if dry_run else locked.hosts)}
            looked = collect(
                lambda host: look_at_host(host.name, place.wanted_on),
                machines.values(),
                name=lambda host: host.label,
                at_once=max_parallel_hosts,
            )
            facts = {found.host: found for found in report.taken(looked)}
            shipment = plan_shipment(list(facts.values()), place.forms(), transfer)
            if dry_run:
                note_plan(report, shipment)
                return shipment
            with place.supply(shipment) as supply:
                shipped = collect(
                    lambda plan: ship_to(
                        machines[plan.host], plan, facts[plan.host], supply, terms
                    ),
                    shipment.hosts,
                    name=lambda plan: plan.host,
                    at_once=max_parallel_hosts,
                )
            note_results(report, report.taken(shipped))
    return report.results
