"""Medians, tables and charts of what a benchmark measured."""

from __future__ import annotations

import json
import os
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path

from deployments.text_table import text_table


@dataclass
class Way:
    """One way to do a thing, and what it took each time.

    Args:
        thing: What is done.
        name: The way.
        seconds: Of each run.
        sent: Bytes that reached the hosts in each run.
    """

    thing: str
    name: str
    seconds: list[float] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)

    @property
    def median(self) -> float:
        """The median of the seconds."""
        return statistics.median(self.seconds)


def table(ways: Sequence[Way], ours: str) -> str:
    """Return a table of the medians, with how many times faster ours is."""
    rows = []
    for way in ways:
        own = next((w for w in ways if w.thing == way.thing and w.name == ours), None)
        rows.append(
            [
                way.thing,
                way.name,
                f"{way.median:.1f}",
                " ".join(f"{seconds:.1f}" for seconds in way.seconds),
                f"{statistics.median(way.sent) / 1e6:,.2f}",
                f"{way.median / own.median:.2f}x" if own and own is not way else "",
            ]
        )
    titles = ["thing", "way", "median s", "all runs", "MB received", f"{ours} is faster"]
    return text_table(titles, rows)


def write_json(path: Path, ways: Sequence[Way], facts: dict[str, object]) -> list[Way]:
    """Write all figures to a file, which keeps those of things not measured this time.

    Returns:
        The ways in the file.
    """
    before = json.loads(path.read_text()) if path.exists() else {"facts": {}, "ways": []}
    things = {way.thing for way in ways}
    kept = [Way(w["thing"], w["name"], w["seconds"], w["sent"]) for w in before["ways"]]
    merged = [way for way in kept if way.thing not in things] + list(ways)
    content = {
        "facts": {**before["facts"], **facts},
        "ways": [asdict(way) | {"median": way.median} for way in merged],
    }
    path.write_text(json.dumps(content, indent=2) + "\n")
    return merged


def publish(
    ways: Sequence[Way],
    notes: Mapping[str, object],
    ours: str,
    title: str,
    json_file: Path | None,
    chart_file: Path | None,
) -> None:
    """Print what was measured, and write the files that are wanted.

    Args:
        ways: What was measured now.
        notes: Further figures by name; those of memory are in bytes.
        ours: The way that the others are compared with.
        title: Of the chart, which shows what was done in several ways.
        json_file: Keeps its figures of what was not measured now, which the chart shows too.
        chart_file: Where the chart goes.
    """
    print(table(ways, ours))
    for name, value in notes.items():
        shown = f"{int(str(value)) / (1 << 20):,.0f} MiB" if "memory" in name else value
        print(f"{name}: {shown}")
    shown_ways = list(ways)
    if json_file:
        shown_ways = write_json(json_file, ways, {"cpus": os.cpu_count(), **notes})
    if chart_file:
        things = Counter(way.thing for way in shown_ways)
        compared = [way for way in shown_ways if things[way.thing] > 1]
        chart_file.write_text(chart(compared, ours, title))


_ROW, _GAP, _LEFT, _WIDTH = 22, 16, 250, 900
_OURS, _OTHER = "#1f6feb", "#9aa4af"


def chart(ways: Sequence[Way], ours: str, title: str) -> str:
    """Return bars of the medians as SVG, one group per thing."""
    parts: list[str] = []
    y = 54
    things = list(dict.fromkeys(way.thing for way in ways))
    for thing in things:
        own = [way for way in ways if way.thing == thing]
        longest = max(way.median for way in own)
        parts.append(_text(12, y, thing, bold=True))
        y += 8
        for way in own:
            width = max(2.0, (_WIDTH - _LEFT - 110) * way.median / longest)
            color = _OURS if way.name == ours else _OTHER
            parts.append(_text(_LEFT - 8, y + 15, way.name, end=True))
            parts.append(
                f'<rect x="{_LEFT}" y="{y + 3}" width="{width:.0f}" height="{_ROW - 6}" '
                f'rx="2" fill="{color}"/>'
            )
            parts.append(_text(_LEFT + width + 6, y + 15, f"{way.median:.1f} s"))
            y += _ROW
        y += _GAP + 12
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y}" '
        'font-family="system-ui, sans-serif" font-size="13" fill="#24292f">'
        f'<rect width="{_WIDTH}" height="{y}" fill="#ffffff"/>'
    )
    return "\n".join([head, _text(12, 26, title, size=16), *parts, "</svg>"]) + "\n"


def _text(
    x: float, y: float, text: str, *, bold: bool = False, end: bool = False, size: int = 13
) -> str:
    weight = ' font-weight="600"' if bold else ""
    anchor = ' text-anchor="end"' if end else ""
    return f'<text x="{x:.0f}" y="{y:.0f}" font-size="{size}"{weight}{anchor}>{escape(text)}</text>'
