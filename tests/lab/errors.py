"""What can go wrong with the lab itself, told apart from what it is there to test."""

from __future__ import annotations


class LabError(Exception):
    """The lab could not do what it was asked to."""


class LabBusy(LabError):  # noqa: N818
    """Another process is using the lab of this name."""


class LabUnavailable(LabError):  # noqa: N818
    """This machine cannot hold a lab as it is.

    Args:
        reason: What is missing, as a clause.
        remedy: What makes the lab possible, an exact command where there is one.
    """

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason, remedy)
        self.reason = reason
        self.remedy = remedy

    def __str__(self) -> str:
        return f"no lab here: {self.reason}. {self.remedy}"
