"""Draws growth plots: time against N, B, D, V and S, one panel each, as PNG and SVG. Needs matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
_COLOURS = {
    OURS: "#d1495b",
    STRONG: "#30638e",
    MATMULS: "#7a9e7e",
    PUBLISHED: "#8d6a9f",
    RESTATED: "#8d6a9f",
}
_OTHERS = ("#edae49", "#a98467", "#30638e", "#7a9e7e", "#8d6a9f", "#3d8b8b", "#5c6770")
_FLOOR = "#9aa0a6"


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
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    style: Any = {"svg.hashsalt": "cpr_kernels", "svg.fonttype": "none", "font.size": 9}
    with pyplot.rc_context(style):
        figure, axes = pyplot.subplots(
            1,
            len(shown),
            figsize=(3.1 * len(shown) + 0.4, 3.6),
            sharey=True,
            squeeze=False,
            layout="constrained",
        )
        colours = _colours(document, shown)
        for axis, letter in zip(axes[0], shown):
            _panel(axis, document, letter, colours)
        axes[0][0].set_ylabel("time of a call (ms)")
        handles = {line.get_label(): line for axis in axes[0] for line in axis.get_lines()}
        figure.legend(
            handles.values(),
            handles.keys(),
            loc="outside lower center",
            ncols=min(len(handles), 4),
            frameon=False,
        )
        figure.suptitle(f"{document['op']}: growth", x=0.01, ha="left", weight="bold")
        figure.text(0.995, 0.985, machine_line(document), ha="right", va="top", fontsize=6, color="#5c6770")
        made = [target.with_name(f"{target.name}.{ending}") for ending in ("png", "svg")]
        figure.savefig(made[0], dpi=160)
        figure.savefig(made[1], metadata={"Date": None})
        pyplot.close(figure)
    return made


def _colours(document: Document, shown: list[str]) -> dict[str, str]:
    """Returns a colour for every peer, the same in all panels."""
    names = dict.fromkeys(name for letter in shown for name in series(document, letter))
    chosen = {name: _COLOURS[name] for name in names if name in _COLOURS}
    free = [colour for colour in _OTHERS if colour not in chosen.values()]
    for name in names:
        if name not in chosen and name != "floor":
            chosen[name] = free.pop(0) if free else "#5c6770"
    return {**chosen, "floor": _FLOOR}


def _panel(axis: Any, document: Document, letter: str, colours: dict[str, str]) -> None:
    """Draws time against one letter; sizes are logarithmic too, views and stages are counted."""
    lines = series(document, letter)
    values = sorted({value for points in lines.values() for value, _ in points})
    for name, points in lines.items():
        xs, ys = zip(*sorted(points))
        ours, floor = name == OURS, name == "floor"
        axis.plot(
            xs,
            [1e3 * y for y in ys],
            label="floor (arithmetic or bytes)" if floor else name,
            color=colours[name],
            linewidth=2.2 if ours else 1.2,
            linestyle="--" if floor else "-",
            marker=None if floor else "o",
            markersize=4 if ours else 2.5,
            zorder=3 if ours else 2,
        )
    axis.set_yscale("log")
    if letter in "NBD":
        axis.set_xscale("log", base=2)
    axis.set_xticks(values, [_short(value) for value in values])
    axis.minorticks_off()
    axis.set_xlabel(MEANINGS[letter])
    axis.grid(visible=True, color="#e6e8eb", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)


def _short(value: int) -> str:
    """Returns 16384 as 16k."""
    return f"{value // 1024}k" if value >= 1024 and value % 1024 == 0 else str(value)
