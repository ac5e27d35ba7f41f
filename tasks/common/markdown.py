"""Text from anywhere put into Markdown so that it cannot break it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

LONGEST_LINE = 600
"""Characters of one cell or list item; the log has the whole text."""

_CONTROLS = re.compile(r"[\x00-\x1f\x7f\u0085\u2028\u2029]+")
# Everything that could start a link, emphasis, code, HTML, a table cell or an escape.
_SPECIAL = re.compile(r"([\\`*_\[\]<>|~#])")


def inline(text: object, longest: int = LONGEST_LINE) -> str:
    """Turn any text into one line of plain Markdown, for a cell or a list item.

    Args:
        text: What to show; a long one keeps its beginning and its end, since
            the end of an error output is what tells.
        longest: Characters to keep.

    Returns:
        The text without line breaks, its special characters escaped.
    """
    line = " ".join(_CONTROLS.sub(" ", str(text)).split())
    if len(line) > longest:
        head = longest // 3
        line = f"{line[:head]} … {line[-(longest - head) :]}"
    return _SPECIAL.sub(r"\\\1", line)


def table(titles: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Compose a table.

    Args:
        titles: The head of each column.
        rows: The cells of each row, as many as there are titles.

    Returns:
        Markdown, ending with a line break.
    """
    head = [titles, ["---"] * len(titles)]
    body = [[inline(cell) for cell in row] for row in rows]
    lines = [[inline(title) for title in head[0]], head[1], *body]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def items(texts: Iterable[object]) -> str:
    """Compose a list with a dash before each text, ending with a line break."""
    return "".join(f"- {inline(text)}\n" for text in texts)
