"""What Prefect knows about the end of other runs."""

from __future__ import annotations

from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.runtime import flow_run
from prefect.settings import get_current_settings


def final_state(run_id: str) -> str | None:
    """Return the final state of a run.

    Args:
        run_id: The flow run's id.

    Returns:
        `Completed`, `Crashed` and so on; None while it goes on, and when
        nobody can tell: no server, or one that never heard of the run.
    """
    if not (flow_run.id or get_current_settings().api.url):
        return None  # asking would start a server of our own, which knows nothing
    try:
        with get_client(sync_client=True) as client:
            state = client.read_flow_run(UUID(run_id)).state
    except Exception:  # noqa: BLE001 - whatever the reason, nobody can tell
        return None
    return state.name if state is not None and state.is_final() else None
