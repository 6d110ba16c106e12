"""Says how views, mining methods and everything else that is plotted are drawn: the same way in every page and file."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from unicodedata import category

INK, GRID = "#4d5663", "#8a93a0"  # text on white (DARK_INK replaces it on black), and lines readable on both
DARK_INK = "#c3cad4"
SMALL = 8.0  # points, in figures at most as wide as a page's column

# Shapes in a box from -1 to 1, as SVG paths; the keys are matplotlib's names of the same markers.
SHAPES = {
    "o": "M-.9 0a.9.9 0 1 0 1.8 0a.9.9 0 1 0-1.8 0z",
    "s": "M-.8-.8h1.6v1.6h-1.6z",
    "^": "M0-1L.95.8h-1.9z",
    "v": "M0 1L.95-.8h-1.9z",
    "D": "M0-1.1L1.1 0L0 1.1L-1.1 0z",
    "P": "M-.35-1h.7v.65h.65v.7h-.65v.65h-.7v-.65h-.65v-.7h.65z",
    "X": "M-1-.55L-.55-1L0-.45L.55-1L1-.55L.45 0L1 .55L.55 1L0 .45L-.55 1L-1 .55L-.45 0z",
    "*": "M0-1.2L.3-.4L1.15-.37L.48.15L.71.97L0 .5L-.71.97L-.48.15L-1.15-.37L-.3-.4z",
}


@dataclass(frozen=True)
class Mark:
    """Is how one series is drawn; colour, dash and marker each tell it from the others, so that no colour is needed.

    colour: readable (contrast 3 and more) on white and on the pages' black. dash: lengths of strokes and gaps in
    widths of the line, none for a solid line. marker: a key of SHAPES.
    """

    colour: str
    dash: tuple[float, ...] = ()
    marker: str = "o"

    @property
    def line(self) -> Any:
        """The line style for matplotlib."""
        return (0, self.dash) if self.dash else "-"

    @property
    def path(self) -> str:
        """The marker as an SVG path in a box from -1 to 1."""
        return SHAPES[self.marker]

    def for_page(self, width: float = 2.0) -> dict[str, str]:
        """Returns colour, SVG's stroke-dasharray for a line of `width`, and the marker's path, for a page's script."""
        dash = " ".join(f"{width * length:g}" for length in self.dash)
        return {"colour": self.colour, "dash": dash, "path": self.path}


BLUE, RED, GREEN, ORANGE = "#0072b2", "#c8501e", "#2f8f3f", "#c27200"
PINK, SKY, PURPLE, TEAL, BROWN, SLATE = "#b5579a", "#4593cf", "#7c5cc4", "#0f8a8a", "#96604f", "#68737f"
LONG, SHORT, DOTS, MIXED = (4.0, 1.5), (2.0, 1.2), (1.0, 1.2), (4.0, 1.2, 1.0, 1.2)

VIEWS = {
    "rgb": Mark(GREEN, MIXED, "s"),
    "flow": Mark(ORANGE, LONG, "^"),
    "centred_flow": Mark(ORANGE, SHORT, "X"),
    "audio": Mark(PINK, (3, 1, 1, 1, 1, 1), "D"),
    "residual": Mark(SKY, SHORT, "v"),
    "both": Mark(BROWN, DOTS, "P"),  # the sum of two views, and of more
    "all": Mark(BROWN, DOTS, "P"),
}
METHODS = {
    "cpr": Mark(BLUE),
    "cpr-3": Mark(BLUE, SHORT, "^"),
    "cpr-5": Mark(BLUE, LONG, "v"),
    "cpr-7": Mark(BLUE),
    "cpr-7-progressive": Mark(BLUE, MIXED, "D"),
    "custom": Mark(BLUE, LONG, "D"),
    "infonce": Mark(SLATE, DOTS, "X"),
    "coclr": Mark(RED, LONG, "s"),
    "ubernce": Mark(PURPLE, MIXED, "*"),
    "joint": Mark(TEAL, SHORT, "v"),
    "auto": Mark(TEAL, MIXED, "P"),
}
MARKS = {**METHODS, **VIEWS, "mined": METHODS["cpr"]}
# Views and methods of other names, by their number.
OTHERS = (
    Mark(ORANGE, LONG, "^"), Mark(GREEN, MIXED, "s"), Mark(PINK, SHORT, "D"), Mark(SKY, DOTS, "v"),
    Mark(PURPLE, LONG, "P"), Mark(TEAL, MIXED, "X"), Mark(RED, SHORT, "*"), Mark(SLATE, DOTS, "o"),
)  # fmt: skip


def mark_of(name: str, number: int = 0) -> Mark:
    """Returns how a view or a method is drawn; one without a mark of its own gets one by its number among such."""
    return MARKS.get(name, OTHERS[number % len(OTHERS)])


def marks_of(names: Iterable[str], known: Mapping[str, Mark] = MARKS) -> dict[str, Mark]:
    """Returns {name: mark} of what one plot or page shows; different for every name, while there are enough.

    A name that is not `known` gets the first of OTHERS whose colour no name shown has.
    """
    names = list(dict.fromkeys(names))
    chosen = {name: known[name] for name in names if name in known}
    for name in names:
        if name not in chosen:
            used = {mark.colour for mark in chosen.values()}
            free = [mark for mark in OTHERS if mark.colour not in used]
            chosen[name] = free[0] if free else OTHERS[len(chosen) % len(OTHERS)]
    return {name: chosen[name] for name in names}


# Of both pages: text, soft text, page, rules, right, wrong, panels, what is chosen. Text has contrast 4.5 and more.
LIGHT = {
    "ink": "#1d2129", "soft": "#57606d", "page": "#ffffff", "line": "#d9dde3", "good": "#14803f", "bad": "#c92a2a",
    "card": "#f4f5f7", "mark": "#0b62c4", "dot": "#7c8592",
}  # fmt: skip
DARK = {
    "ink": "#e8eaee", "soft": "#a9b2be", "page": "#14171c", "line": "#39414c", "good": "#3ec46d", "bad": "#ff7676",
    "card": "#1d2128", "mark": "#6db3ff", "dot": "#79828f",
}  # fmt: skip


def page_variables() -> str:
    """Returns CSS that defines the pages' colours, light and dark, as --ink ..., and --series-NAME for every mark."""
    series = "".join(f"--series-{name}:{mark.colour};" for name, mark in MARKS.items())
    light, dark = ("".join(f"--{name}:{value};" for name, value in of.items()) for of in (LIGHT, DARK))
    return (
        f":root{{color-scheme:light dark;{light}{series}}}\n"
        f"@media (prefers-color-scheme:dark){{:root{{{dark}}}}}\n"
        f"@media print{{:root{{color-scheme:light;{light}}}}}\n"
    )


def rc() -> Any:
    """Returns matplotlib's settings: small sizes, thin rules, text that stays text, and no frame."""
    return {
        "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans", "Arial", "Helvetica"], "font.size": 9.0,
        "axes.titlesize": 9.0, "axes.titlelocation": "left", "axes.titleweight": "bold", "axes.labelsize": 9.0,
        "axes.labelcolor": INK, "axes.titlecolor": INK, "text.color": INK, "text.parse_math": False,
        "xtick.color": INK, "ytick.color": INK, "xtick.labelsize": SMALL, "ytick.labelsize": SMALL,
        "xtick.major.size": 0.0, "ytick.major.size": 0.0, "xtick.minor.size": 0.0, "ytick.minor.size": 0.0,
        "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False, "axes.edgecolor": GRID,
        "axes.grid": True, "axes.axisbelow": True, "grid.color": GRID, "grid.alpha": 0.3, "grid.linewidth": 0.6,
        "axes.facecolor": "none", "figure.facecolor": "none", "savefig.facecolor": "none",
        "lines.linewidth": 1.8, "lines.markersize": 4.0, "hatch.linewidth": 0.6, "hatch.color": "white",
        "legend.frameon": False, "legend.fontsize": SMALL, "figure.titlesize": 10.0, "figure.titleweight": "bold",
        "svg.fonttype": "none", "svg.hashsalt": "cpr_kernels", "savefig.dpi": 150.0,
    }  # fmt: skip


def drawn(draw: Callable[[], Any], kind: str = "svg") -> bytes:
    """Returns the figure that `draw` makes, under `rc`, as SVG or PNG: the same bytes every time.

    In an SVG text stays text, in the reader's fonts; on a dark page it is light. A PNG has a white ground.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib import rc_context

    with rc_context(rc()), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # the reader's fonts have it, or another
        buffer, figure = io.BytesIO(), draw()
        if kind != "svg":
            figure.savefig(buffer, format=kind, facecolor="white")
            return buffer.getvalue()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    light = f"<style>@media (prefers-color-scheme: dark) {{ text {{ fill: {DARK_INK} !important }} }}</style>"
    head, tag, rest = buffer.getvalue().partition(b"<defs>")
    return head + light.encode() + tag + rest


def drawable(name: str, most: int = 60) -> str:
    """Returns a name that XML can hold and that fits: no control characters, at most `most` letters."""
    shown = "".join(
        "\ufffd" if category(letter) in ("Cc", "Cs") or letter in "\ufffe\uffff" else letter
        for letter in name
    )
    return shown if len(shown) <= most else shown[: most - 1] + "…"


def legend_below(figure: Any, axes: Iterable[Any]) -> None:
    """Puts one legend of all axes below them, each name once, in as many columns as fit."""
    found: dict[str, Any] = {}
    for one in axes:
        for handle, name in zip(*one.get_legend_handles_labels()):
            found.setdefault(name, handle)
    if not found:
        return
    letters = 17 * figure.get_figwidth()  # about so many fit a row
    columns = max(1, min(len(found), int(letters / (7 + max(map(len, found))))))
    figure.legend(
        list(found.values()), list(found), loc="outside lower center", ncols=columns, handlelength=3
    )
