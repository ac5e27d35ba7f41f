"""Hashes what lies on a host unproven, where only that can be what is needed."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING

from prefect import task
from prefect.cache_policies import NO_CACHE

from blocks.hosts import load_host
from blocks.remote_hash import seconds_to_hash
from tasks.common.retry import retrying
from tasks.models import remote_scripts
from tasks.models.files import MANIFEST
from tasks.models.remote_facts import Files, HostModel, own_folder, parse_check, unproven
from tasks.models.revision_folder import run_script

if TYPE_CHECKING:
    from blocks.host import Host


@task(
    task_run_name="hash what {host} has of {there.model}",
    cache_policy=NO_CACHE,
    **retrying(retries=2),
)
def prove_there(host: str, there: HostModel, sizes: Collection[int], *, keep: bool) -> HostModel:
    """Hash files in view on a host that are not proven, or no longer.

    A model that `load.sh` wrote, or that was copied or touched, has none or no valid proof.

    Args:
        host: Name of the host's block.
        there: What it has of the model.
        sizes: Only files of these sizes are hashed.
        keep: Whether to put the proof on record there; not for a dry run.

    Returns:
        What it has, with what was found out.

    Raises:
        CrossgapError: As for `run_script`.
    """
    loaded = load_host(host)
    revisions = {
        commit: _hashed(loaded, there, commit, sizes, keep=keep) for commit in there.revisions
    }
    return replace(there, revisions=revisions)


def _hashed(
    host: Host, there: HostModel, commit: str, sizes: Collection[int], *, keep: bool
) -> Files:
    files = there.revisions[commit]
    wanted = [
        held for path, held in unproven(files).items() if held.size in sizes and path != MANIFEST
    ]
    if not wanted:
        return files
    names = "".join(f"{held.path}\n" for held in wanted).encode()
    timeout = seconds_to_hash(sum(held.size for held in wanted))
    argv = remote_scripts.check(f"{there.folder}/{commit}")
    answer = run_script(host, argv, there.folder, data=names, timeout=timeout)
    found = {path: held for path, held in parse_check(answer.stdout).items() if held.sha256}
    if keep and found:
        proofs = f"{own_folder(there)}/proofs"
        run_script(host, ["mkdir", "-p", proofs], there.folder)
        lines = "".join(held.proof_line for held in found.values()).encode()
        run_script(host, remote_scripts.record(f"{proofs}/{commit}"), there.folder, data=lines)
    return {**files, **found}
