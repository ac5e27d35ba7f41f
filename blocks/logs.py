"""Where log sentences go: to the run's log in Prefect, where there is a run."""

from __future__ import annotations

import logging

from blocks.errors import CrossgapError


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


class _PlainSentences(logging.Filter):
    """Leaves the traceback out where the error says all that an operator needs.

    Prefect logs every failed run with its traceback, forty lines in which the one
    that matters drowns. A defect of ours, which has a cause, keeps its own.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, CrossgapError) and error.__cause__ is None:
            record.exc_info = None
        return True


_plain_sentences = _PlainSentences()


def leave_out_tracebacks() -> None:
    """Have the logs of this process's runs show our own errors as sentences only."""
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(_plain_sentences)
