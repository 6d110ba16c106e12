"""One style for all plots: its colours can be read, its series told apart without colours, its files repeated."""

from __future__ import annotations

from itertools import combinations

import pytest

from cpr_kernels import plot_style
from cpr_kernels.plot_style import DARK, LIGHT, METHODS, OTHERS, VIEWS, drawn, mark_of, marks_of


def luminance(colour: str) -> float:
    """Relative luminance of WCAG 2."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("of", [LIGHT, DARK])
def test_colours_can_be_read(of: dict[str, str]) -> None:
    for ground in (of["page"], of["card"]):
        for name in ("ink", "soft", "good", "bad", "mark"):
            assert contrast(of[name], ground) >= 4.5, name
        for mark in (*VIEWS.values(), *METHODS.values(), *OTHERS):
            assert contrast(mark.colour, ground) >= 2.95, mark
    assert contrast(plot_style.INK, LIGHT["page"]) >= 4.5 <= contrast(plot_style.DARK_INK, DARK["page"])


def test_series_differ_without_colour() -> None:
    """But for names of one thing: the sums of two views and of more, the cascade and its paper's seven stages."""
    same = {("both", "all"), ("cpr", "cpr-7")}
    for group in (VIEWS, METHODS):
        for (a, one), (b, other) in combinations(group.items(), 2):
            assert (a, b) in same or (one.dash, one.marker) != (other.dash, other.marker), (a, b)


def test_unknown_names_get_marks_that_nobody_shown_has() -> None:
    marks = marks_of(["flow", "text", "rgb", "depth", "text"])
    assert list(marks) == ["flow", "text", "rgb", "depth"]
    assert marks["flow"] == VIEWS["flow"] == mark_of("flow", 5)
    assert len({mark.colour for mark in marks.values()}) == 4
    assert len({mark.colour for mark in marks_of(map(str, range(8))).values()}) == 8
    assert marks_of(["rgb"], {})["rgb"] == OTHERS[0]


def test_pages_get_every_colour_as_a_variable() -> None:
    css = plot_style.page_variables()
    assert f"--series-rgb:{VIEWS['rgb'].colour};" in css and css.count("--ink:") == 3  # light, dark, print
    assert mark_of("coclr").for_page(3) == {
        "colour": METHODS["coclr"].colour, "dash": "12 4.5", "path": plot_style.SHAPES["s"],
    }  # fmt: skip


def test_figures_are_the_same_bytes_with_text_for_any_ground() -> None:
    figures = pytest.importorskip("matplotlib.figure", reason="pip install 'cpr_kernels[train]'")

    def draw() -> object:
        figure = figures.Figure(figsize=(2, 1))
        figure.add_subplot().set_title("$a_b$ 行走")
        return figure

    svg = drawn(draw)
    assert svg == drawn(draw) and "$a_b$ 行走" in svg.decode()
    assert plot_style.DARK_INK in svg.decode().partition("<defs>")[0]
    assert drawn(draw, "png").startswith(b"\x89PNG")


def test_names_are_cut_and_cleaned() -> None:
    assert plot_style.drawable("bell\x07") == "bell\ufffd"
    assert plot_style.drawable("x" * 70) == "x" * 59 + "…" and plot_style.drawable("x" * 9, 5) == "xxxx…"
