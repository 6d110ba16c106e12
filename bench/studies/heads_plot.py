"""Draws PMR against R@1 of `bench heads`, a panel a table, as SVG. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cpr_kernels.plot_style import METHODS, drawn, mark_of
from cpr_kernels.train.adapt.measure import ALL

from ..tables.plots import why_not
from .heads_tables import MINED, Resampled


def draw(document: Mapping[str, Any], target: Path) -> None:
    """Writes the plot; the levels of InfoNCE, which mines nothing, and of labels are lines.

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
    figure = Figure(figsize=(3.6 * len(tables) + 0.4, 3.4), layout="constrained")
    axes = figure.subplots(1, len(tables), squeeze=False)[0]
    for axis, (name, seeds) in zip(axes, tables.items()):
        _panel(axis, name, Resampled(seeds))
    axes[0].set_ylabel("R@1 of all views (%)")
    return figure


def _panel(axis: Any, name: str, resampled: Resampled) -> None:
    ordered = sorted(MINED, key=lambda method: float(resampled.pmr(method)[0]))
    for number, method in enumerate(ordered):
        pmr = 100 * float(resampled.pmr(method)[0])
        recall = 100 * float(resampled.recalls(method, ALL)[0])
        mark = mark_of(method if method in METHODS else "cpr")  # every other one is a cascade too
        axis.plot(pmr, recall, mark.marker, color=mark.colour)
        axis.annotate(
            method, (pmr, recall), xytext=(4, -9 if number % 2 else 3), textcoords="offset points", fontsize=7
        )
    for method in ("infonce", "ubernce"):
        level, mark = 100 * float(resampled.recalls(method, ALL)[0]), mark_of(method)
        axis.axhline(level, color=mark.colour, linewidth=1.0, linestyle=mark.line)
        axis.annotate(
            method, (0.02, level), xycoords=("axes fraction", "data"), xytext=(0, 2),
            textcoords="offset points", fontsize=7, color=mark.colour,
        )  # fmt: skip
    axis.margins(0.15)
    axis.set_title(name)
    axis.set_xlabel("PMR of what is mined in training (%)")
