"""Draws PMR against R@1 of `bench heads`, a panel a table, as SVG. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cpr_kernels.train.adapt.measure import ALL

from ..tables.plots import why_not
from .heads_tables import MINED, Resampled

POINT, LEVEL, LABELS = "#d1495b", "#30638e", "#7a9e7e"


def draw(document: Mapping[str, Any], target: Path) -> None:
    """Writes the plot; the levels of InfoNCE, which mines nothing, and of labels are lines.

    Raises:
        RuntimeError: matplotlib is not installed.
    """
    reason = why_not()
    if reason:
        raise RuntimeError(f"plots need matplotlib: {reason}")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    tables = document["tables"]
    style: Any = {"svg.hashsalt": "cpr_kernels", "svg.fonttype": "none", "font.size": 9}
    with pyplot.rc_context(style):
        figure, axes = pyplot.subplots(
            1, len(tables), figsize=(3.6 * len(tables) + 0.4, 3.4), squeeze=False, layout="constrained"
        )
        for axis, (name, seeds) in zip(axes[0], tables.items()):
            _panel(axis, name, Resampled(seeds))
        axes[0][0].set_ylabel("R@1 of all views (%)")
        figure.savefig(target, metadata={"Date": None})
        pyplot.close(figure)


def _panel(axis: Any, name: str, resampled: Resampled) -> None:
    ordered = sorted(MINED, key=lambda method: float(resampled.pmr(method)[0]))
    for number, method in enumerate(ordered):
        pmr = 100 * float(resampled.pmr(method)[0])
        recall = 100 * float(resampled.recalls(method, ALL)[0])
        axis.plot(pmr, recall, "o", color=POINT, markersize=4)
        axis.annotate(
            method, (pmr, recall), xytext=(4, -9 if number % 2 else 3), textcoords="offset points", fontsize=7
        )
    for method, colour in (("infonce", LEVEL), ("ubernce", LABELS)):
        level = 100 * float(resampled.recalls(method, ALL)[0])
        axis.axhline(level, color=colour, linewidth=0.8, linestyle="--")
        axis.annotate(
            method, (0.02, level), xycoords=("axes fraction", "data"), xytext=(0, 2),
            textcoords="offset points", fontsize=7, color=colour,
        )  # fmt: skip
    axis.margins(0.15)
    axis.set_title(name, fontsize=9)
    axis.set_xlabel("PMR of what is mined in training (%)")
    axis.grid(color="#e5e8eb", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
