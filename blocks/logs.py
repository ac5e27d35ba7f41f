"""Where log sentences go: to the run's log in Prefect, where there is a run."""

from __future__ import annotations

import logging


def logger() -> logging.Logger | logging.LoggerAdapter[logging.Logger]:
    """Return the logger of the current flow or task run.

    Returns:
        Prefect's run logger, or the logger `crossgap` outside of a run.
    """
    from prefect.exceptions import MissingContextError
    from prefect.logging import get_run_logger

    try:
        return get_run_logger()
    except MissingContextError:
        return logging.getLogger("crossgap")
