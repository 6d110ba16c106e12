"""Draws the plots of the report: curves as a data URI that needs no other file, shares by class as the page's rows."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...plot_style import GRID, Mark, drawable, drawn, legend_below, marks_of
from ..runtime.files import write_atomically

Curve = Sequence[tuple[float, float]]
MANY = 40  # points of a curve, from which on it has no markers


@dataclass(frozen=True)
class Panel:
    """Is one plot of curves over epochs.

    label: of the y axis. lines: {key: [(epoch, value)]}. names: {key: name in the legend}; the key by default.
    percent: values are shares, shown in %. chance: the share of a random pick, a line of its own. logarithmic: the y
    axis. markers: the points of a short curve are marked. phases: (first epoch, name) of each.
    marks: {key: how it is drawn}; by `marks_of` by default.
    """

    label: str
    lines: Mapping[str, Curve]
    names: Mapping[str, str] = field(default_factory=dict)
    percent: bool = True
    chance: float | None = None
    logarithmic: bool = False
    markers: bool = True
    phases: Sequence[tuple[float, str]] = ()
    marks: Mapping[str, Mark] = field(default_factory=dict)


def curves(panel: Panel) -> str:
    """Returns the plot as an SVG in a data URI."""
    return _uri("image/svg+xml", drawn(lambda: _figure(panel, (3.6, 2.7))))


def save_curves(path: Path, panel: Panel) -> None:
    """Writes the plot as an SVG file."""
    write_atomically(path, drawn(lambda: _figure(panel, (5.6, 3.2))))


def save_dots(
    path: Path, rows: Sequence[str], series: Mapping[str, Sequence[float]], marked: int | None
) -> None:
    """Writes shares as dots, a row a name and a panel for each key of `series`, as SVG or PNG by the path's end.

    Every panel has its own scale, in %. The row `marked` has stars and its name in bold.
    """
    kind = path.suffix.removeprefix(".").lower()
    write_atomically(path, drawn(lambda: _dots(rows, series, marked), kind))


def _dots(rows: Sequence[str], series: Mapping[str, Sequence[float]], marked: int | None) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.8 + 2.6 * len(series), 0.7 + 0.19 * len(rows)), layout="constrained")
    panels = figure.subplots(1, len(series), sharey=True, squeeze=False)[0]
    marks = marks_of(series).values()
    for axes, mark, (key, values) in zip(panels, marks, series.items()):
        for row, value in enumerate(values):
            shape, size = ("*", 11) if row == marked else (mark.marker, 5)
            axes.plot(100 * value, row, shape, color=mark.colour, markersize=size)
        axes.set_xlabel(f"{drawable(key)}, %")
    panels[0].set_yticks(range(len(rows)), [drawable(row) for row in rows])
    panels[0].set_ylim(len(rows) - 0.5, -0.5)
    if marked is not None:
        panels[0].get_yticklabels()[marked].set_fontweight("bold")
    return figure


def _figure(panel: Panel, size: tuple[float, float]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axes: Any = figure.add_subplot()
    marks, scale = {**marks_of(panel.lines), **panel.marks}, 100 if panel.percent else 1
    for key, points in panel.lines.items():
        x, y = zip(*points)
        mark, marked = marks[key], panel.markers and len(points) < MANY
        axes.plot(
            x, [scale * value for value in y], linestyle=mark.line, color=mark.colour,
            marker=mark.marker if marked else None, markevery=max(1, len(points) // 10),
            label=drawable(panel.names.get(key, key)),
        )  # fmt: skip
    if panel.chance is not None:
        axes.axhline(scale * panel.chance, color=GRID, linewidth=1.2, linestyle=(0, (1, 2)), label="chance")
    for start, _ in panel.phases:
        axes.axvline(start, color=GRID, linewidth=0.8, alpha=0.6)
    _name_phases(axes, panel.phases)
    axes.set_xlabel("epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylabel(panel.label)
    if panel.logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
    else:
        axes.set_ylim(bottom=0)
    legend_below(figure, [axes])
    return figure


def _name_phases(axes: Any, phases: Sequence[tuple[float, str]]) -> None:
    """Writes the phases' names above the axes in two rows; one without room is left out, its line stays."""
    low, high = axes.get_xlim()
    ends = [low - high, low - high]  # of what is written in each row
    for start, name in phases:
        row = min(range(2), key=lambda one: ends[one])
        if start >= ends[row]:
            place = ("data", "axes fraction")
            axes.annotate(drawable(name, 24), (start, 1.02 + 0.08 * row), xycoords=place, fontsize=7.5)
            ends[row] = start + (high - low) * 0.021 * (2 + len(name))


def class_dots(
    classes: Sequence[str], series: Mapping[str, Sequence[float]], names: Mapping[str, str],
    marks: Mapping[str, Mark], facts: Sequence[str] = (),
) -> dict[str, Any]:  # fmt: skip
    """Returns shares by class as the page draws them, in HTML and so in the reader's fonts.

    A row a class, a mark for each key of `series`: {"keys": [{"name", "mark"}], "rows": [{"name", "fact", "says",
    "low", "high", "dots": [{"percent", "mark"}]}]}. `facts`: a word beside each class.
    """
    keys = [{"name": names[key], "mark": marks[key]} for key in series]
    rows = []
    for row, name in enumerate(classes):
        percents = [round(100 * values[row], 1) for values in series.values()]
        says = ", ".join(f"{names[key]} {percent:g} %" for key, percent in zip(series, percents))
        dots = [{"percent": percent, "mark": marks[key]} for key, percent in zip(series, percents)]
        rows.append({
            "name": name, "fact": facts[row] if facts else "", "says": says, "low": min(percents),
            "high": max(percents), "dots": dots[::-1],  # the first lies on top
        })  # fmt: skip
    return {"keys": keys, "rows": rows}


def _uri(kind: str, body: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(body).decode()}"
