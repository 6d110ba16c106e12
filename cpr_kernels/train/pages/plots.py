"""Draws the plots of the report: curves as a data URI that needs no other file, bars as the page's own rows."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unicodedata import category

from ..runtime.files import write_atomically

Curve = Sequence[tuple[float, float]]

# Okabe and Ito's colours, distinct also for the colour-blind; line styles differ too.
STYLES: dict[str, tuple[str, Any]] = {
    "mined": ("#0072B2", "-"),
    "flow": ("#E69F00", "--"),
    "rgb": ("#009E73", "-."),
    "audio": ("#CC79A7", (0, (3, 1, 1, 1))),
    "residual": ("#56B4E9", (0, (5, 1))),
    "both": ("#888888", ":"),
    "all": ("#888888", ":"),
    "agreement": ("#D55E00", (0, (1, 1))),
}
MORE = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
    "#888888",
)  # for what has no colour of its own
INK = "#888888"  # readable on white and on black


def curves(
    lines: Mapping[str, Curve], names: Mapping[str, str], phases: Sequence[tuple[float, str]], label: str
) -> str:
    """Draws shares over epochs.

    `lines` are {key: [(epoch, share)]}, `names` the legend's, `phases` (first epoch, name) of each, `label` the y
    axis'.
    """
    return _uri("image/svg+xml", _curves(lines, names, phases, label))


def save_curves(path: Path, lines: Mapping[str, Curve], label: str) -> None:
    """Writes the plot of `curves` as an SVG file; keys are the names."""
    write_atomically(path, _curves(lines, {key: key for key in lines}, [], label))


def save_dots(
    path: Path, rows: Sequence[str], series: Mapping[str, Sequence[float]], marked: int | None
) -> None:
    """Writes shares as dots, a row a name and a panel for each key of `series`, as SVG or PNG by the path's end.

    Every panel has its own scale, in %. The row `marked` has stars and its name in bold.
    """
    kind = path.suffix.removeprefix(".").lower()
    write_atomically(path, _drawn(lambda: _dots(rows, series, marked), kind))


def _dots(rows: Sequence[str], series: Mapping[str, Sequence[float]], marked: int | None) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.8 + 2.6 * len(series), 0.7 + 0.19 * len(rows)), layout="constrained")
    figure.patch.set_alpha(0)
    panels = figure.subplots(1, len(series), sharey=True, squeeze=False)[0]
    for i, (axes, (key, values)) in enumerate(zip(panels, series.items())):
        _plain(axes)
        for row, value in enumerate(values):
            shape, size = ("*", 11) if row == marked else ("o", 4)
            axes.plot(100 * value, row, shape, color=MORE[i], markersize=size)
        axes.set_xlabel(f"{_drawable(key)}, %")
    panels[0].set_yticks(range(len(rows)), [_drawable(row) for row in rows])
    panels[0].set_ylim(len(rows) - 0.5, -0.5)
    if marked is not None:
        panels[0].get_yticklabels()[marked].set_fontweight("bold")
    return figure


def _curves(
    lines: Mapping[str, Curve], names: Mapping[str, str], phases: Sequence[tuple[float, str]], label: str
) -> bytes:
    """Returns the SVG."""
    return _drawn(lambda: _figure(lines, names, phases, label), "svg")


def _drawn(draw: Callable[[], Any], kind: str) -> bytes:
    """Returns a figure as SVG or PNG. Text in an SVG stays text, in the reader's fonts, and `$` is no mathematics."""
    from matplotlib import rc_context

    with rc_context({"svg.fonttype": "none", "text.parse_math": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # the reader's fonts have it, or another
        buffer = io.BytesIO()
        metadata = {"Date": None} if kind == "svg" else None
        draw().savefig(buffer, format=kind, metadata=metadata, dpi=150)
    return buffer.getvalue()


def _figure(
    lines: Mapping[str, Curve], names: Mapping[str, str], phases: Sequence[tuple[float, str]], label: str
) -> Any:
    figure, axes = _canvas(5.6, 3.0)
    for i, (key, points) in enumerate(lines.items()):
        colour, style = style_of(key, i)
        x, y = zip(*points)
        axes.plot(
            x,
            [100 * value for value in y],
            linestyle=style,
            color=colour,
            label=_drawable(names[key]),
            linewidth=2,
            marker="o",
            markersize=3,
        )
    for start, name in phases:
        axes.axvline(start, color=INK, linewidth=0.8, alpha=0.5)
        axes.annotate(
            name, (start, 1.01), xycoords=("data", "axes fraction"), fontsize=8, color=INK, ha="left"
        )
    axes.set_xlabel("epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylabel(label)
    axes.set_ylim(bottom=0)
    _legend(axes)
    return figure


def style_of(key: str, number: int) -> tuple[str, Any]:
    """Returns colour and line style of a way of mining; others get one by their number."""
    return STYLES.get(key, (MORE[number % len(MORE)], "-"))


def bars(
    groups: Sequence[str], series: Mapping[str, Sequence[float]], names: Mapping[str, str]
) -> dict[str, Any]:
    """Returns bars as the page draws them, in HTML and so in the reader's fonts: one row per group (classes), a bar per
    key of `series`, whose values are shares; {"keys": [{"name", "colour"}], "rows": [{"name", "percents"}]}.
    """
    return {
        "keys": [{"name": names[key], "colour": style_of(key, i)[0]} for i, key in enumerate(series)],
        "rows": [
            {"name": group, "percents": [round(100 * values[row], 1) for values in series.values()]}
            for row, group in enumerate(groups)
        ],
    }


def _canvas(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    _plain(axes)
    return figure, axes


def _plain(axes: Any) -> None:
    """Takes the frame away, and draws grid and text so that they can be read on white and on black."""
    axes.patch.set_alpha(0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.grid(color=INK, alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=9, length=0)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)


def _legend(axes: Any) -> None:
    names = axes.get_legend_handles_labels()[1]
    fits = max(1, min(4, 96 // (6 + max(map(len, names), default=0))))  # about so many letters a row
    legend = axes.figure.legend(loc="outside lower center", ncols=fits, frameon=False, fontsize=9)
    for text in legend.get_texts():
        text.set_color(INK)


def _drawable(name: str) -> str:
    """Returns a name that XML can hold and that fits: no control characters, at most 60 letters."""
    shown = "".join(
        "\ufffd" if category(letter) in ("Cc", "Cs") or letter in "\ufffe\uffff" else letter
        for letter in name
    )
    return shown if len(shown) <= 60 else shown[:59] + "…"


def _uri(kind: str, body: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(body).decode()}"
