"""Draws PMR against R@1 of `bench heads`, a panel a table, as SVG. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

from cpr_kernels.plot_style import METHODS, drawn, legend_below, mark_of
from cpr_kernels.train.adapt.measure import ALL

from ..tables.plots import why_not
from .heads_tables import MINED, Seeds

LEVELS = ("infonce", "ubernce")
MARKS = {
    "tuned": METHODS["auto"],
    "cpr-7, r 0.8": METHODS["custom"],
    "joint": replace(METHODS["joint"], marker="X"),
}


def draw(document: Mapping[str, Any], target: Path) -> None:
    """Writes the plot of a published result; InfoNCE, which mines nothing, and labels are lines.

    Raises:
        RuntimeError: matplotlib is not installed.
    """
    reason = why_not()
    if reason:
        raise RuntimeError(f"plots need matplotlib: {reason}")
    target.write_bytes(drawn(lambda: _figure(document)))


def _figure(document: Mapping[str, Any]) -> Any:
    from matplotlib.figure import Figure

    tables = document["tables"]
    figure = Figure(figsize=(3.6 * len(tables) + 0.4, 3.9), layout="constrained")
    axes = figure.subplots(1, len(tables), squeeze=False)[0]
    for axis, (name, seeds) in zip(axes, tables.items()):
        _panel(axis, name, seeds)
    axes[0].set_ylabel("R@1 of all views (%)")
    legend_below(figure, axes)
    return figure


def pmr_of(seeds: Seeds, method: str) -> float:
    """Returns the mean PMR of a method over seeds."""
    return mean(float(body["methods"][method]["pmr"]) for body in seeds.values())


def recall_of(seeds: Seeds, method: str) -> float:
    """Returns R@1 of all views over the test rows of all seeds."""
    rows = [body["rows"][1] for body in seeds.values()]
    found = [float(body["methods"][method]["recall"][ALL]["1"]) for body in seeds.values()]
    return sum(share * count for share, count in zip(found, rows)) / sum(rows)


def _panel(axis: Any, name: str, seeds: Seeds) -> None:
    for method in MINED:
        mark = MARKS.get(method, mark_of(method))
        at = 100 * pmr_of(seeds, method), 100 * recall_of(seeds, method)
        axis.plot(*at, mark.marker, color=mark.colour, markersize=6, linestyle="none", label=method)
    for method in LEVELS:
        mark = mark_of(method)
        level = 100 * recall_of(seeds, method)
        axis.axhline(level, color=mark.colour, linewidth=1.2, linestyle=mark.line, label=method)
    axis.margins(0.1)
    axis.set_title(name)
    axis.set_xlabel("PMR of what is mined in training (%)")
