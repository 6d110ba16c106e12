"""Draws growth plots: time against N, B, D, V and S, one panel each, as PNG and SVG. Needs matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cpr_kernels.plot_style import (
    GREEN,
    GRID,
    LONG,
    METHODS,
    MIXED,
    PURPLE,
    RED,
    SHORT,
    Mark,
    drawn,
    legend_below,
    marks_of,
)

from ..harness.peer import MATMULS, OURS, PUBLISHED, RESTATED, STRONG, not_installed
from ..harness.workloads import AXES
from .report import Document, machine_line, main_mode, rows_of

MEANINGS = {
    "N": "queue entries N",
    "B": "queries B",
    "D": "embedding size D",
    "V": "views V",
    "S": "stages S",
}
FLOOR = "floor (arithmetic or bytes)"
# Peers that have a mark of their own; others get theirs by `marks_of`.
_MARKS = {
    OURS: METHODS["cpr"], STRONG: Mark(RED, LONG, "s"), MATMULS: Mark(GREEN, MIXED, "^"),
    PUBLISHED: Mark(PURPLE, SHORT, "D"), RESTATED: Mark(PURPLE, SHORT, "D"),
}  # fmt: skip


def why_not() -> str | None:
    """Returns why plots cannot be made here, or None."""
    return not_installed("matplotlib", "matplotlib")


def series(document: Document, letter: str) -> dict[str, list[tuple[int, float]]]:
    """Returns points ``(value of the letter, median seconds)`` of every peer, and of the floor."""
    found: dict[str, list[tuple[int, float]]] = {}
    for workload in document["workloads"]:
        if workload["axis"] != letter:
            continue
        value = int(workload[AXES[letter]])
        for peer, row in rows_of(document, workload["name"], main_mode(document)).items():
            found.setdefault(peer, []).append((value, row["median_s"]))
        found.setdefault("floor", []).append((value, workload["floor_s"]))
    return found


def letters(document: Document) -> list[str]:
    """Returns the axes along which this document grew."""
    grown = {workload["axis"] for workload in document["workloads"]}
    return [letter for letter in AXES if letter in grown]


def draw(document: Document, target: Path) -> list[Path]:
    """Writes `target` as .png and .svg and returns both paths; nothing when no growth was measured.

    Raises:
        RuntimeError: matplotlib is not installed; the message names it.
    """
    shown = letters(document)
    if not shown:
        return []
    reason = why_not()
    if reason:
        raise RuntimeError(f"plots need matplotlib: {reason}")
    made = [target.with_name(f"{target.name}.{ending}") for ending in ("png", "svg")]
    for path in made:
        path.write_bytes(drawn(lambda: _figure(document, shown), path.suffix[1:]))
    return made


def _figure(document: Document, shown: list[str]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.1 * len(shown) + 0.4, 3.6), layout="constrained")
    axes = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    names = dict.fromkeys(name for letter in shown for name in series(document, letter) if name != "floor")
    marks = marks_of(names, _MARKS)
    for axis, letter in zip(axes, shown):
        _panel(axis, document, letter, marks)
    axes[0].set_ylabel("time of a call (ms)")
    legend_below(figure, axes)
    figure.suptitle(f"{document['op']}: growth", x=0.01, ha="left")
    figure.text(0.995, 0.985, machine_line(document), ha="right", va="top", fontsize=6)
    return figure


def _panel(axis: Any, document: Document, letter: str, marks: dict[str, Mark]) -> None:
    """Draws time against one letter; sizes are logarithmic too, views and stages are counted."""
    lines = series(document, letter)
    values = sorted({value for points in lines.values() for value, _ in points})
    for name, points in lines.items():
        xs, ys = zip(*sorted(points))
        if name == "floor":
            axis.plot(
                xs, [1e3 * y for y in ys], label=FLOOR, color=GRID, linewidth=1.2, linestyle=(0, (1, 2))
            )
            continue
        axis.plot(
            xs, [1e3 * y for y in ys], label=name, color=marks[name].colour, linestyle=marks[name].line,
            marker=marks[name].marker, linewidth=2.2 if name == OURS else 1.3, zorder=3 if name == OURS else 2,
        )  # fmt: skip
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter("{x:g}")
    if letter in "NBD":
        axis.set_xscale("log", base=2)
    axis.set_xticks(values, [_short(value) for value in values])
    axis.minorticks_off()
    axis.set_xlabel(MEANINGS[letter])


def _short(value: int) -> str:
    """Returns 16384 as 16k."""
    return f"{value // 1024}k" if value >= 1024 and value % 1024 == 0 else str(value)
