"""A host that answers docker commands from a list, for tests without any I/O."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from blocks.commands import CommandLine, SudoMode
from blocks.host import CommandResult, Host, Process


def answer(stdout: str = "", stderr: str = "", exit_code: int = 0) -> CommandResult:
    """Make the result of a command."""
    return CommandResult(exit_code, stdout, stderr, 0.1)


class AnsweringHost(Host):
    """Answers a command by the first words that it begins with, and records what was asked.

    Args:
        answers: Per first words of the command, its result.
    """

    work_dir = "~/.crossgap"
    models_dir = "~/models"
    patience = 1

    def __init__(self, answers: dict[str, CommandResult]) -> None:
        self.answers = answers
        self.asked: list[tuple[list[str], bool]] = []

    @property
    def name(self) -> str:
        return "gpu1"

    @property
    def label(self) -> str:
        return "gpu1 (10.0.0.1:22)"

    @property
    def lock_name(self) -> str:
        return "10.0.0.1-22"

    @property
    def sudo_mode(self) -> SudoMode:
        return "password"

    def open_process(self, line: CommandLine) -> Process:
        raise NotImplementedError

    def forward(self, host: str, port: int) -> AbstractContextManager[int]:
        raise NotImplementedError

    def run(self, argv: Sequence[str], *, sudo: bool = False, **_: Any) -> CommandResult:
        self.asked.append((list(argv), sudo))
        shown = " ".join(argv)
        for words, result in self.answers.items():
            if shown.startswith(words):
                return result
        raise AssertionError(f"nobody expected {shown!r}")
