"""Puts the explorer's own files and its data into one HTML page, with nothing else to load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ....plot_style import marks_of, page_variables
from ..policy import content_policy

VERSION = 2
MINING = ("cascade.js", "answers.js")  # run in a worker too
SCRIPTS = (
    "drawing.js",
    "cards.js",
    "scatter.js",
    "plots.js",
    "page.js",
    "miner.js",
    "panes.js",
    "start.js",
)


def page(body: dict[str, Any]) -> str:
    """Returns the HTML text of a page about ``{version, title, albums, runs}``."""
    here = Path(__file__).parent
    style = page_variables() + (here / "page.css").read_text()
    mining, script = ("\n".join((here / name).read_text() for name in names) for names in (MINING, SCRIPTS))
    data = json.dumps({**body, "marks": _marks(body)}, separators=(",", ":"))
    data = data.replace("<", "\\u003c")  # no tag, no comment, in any string
    html = (here / "page.html").read_text()
    for mark, text in (
        ("POLICY", content_policy(style, mining, script, worker="mining")),
        ("/*STYLE*/", style),
        ("/*MINING*/", mining),
        ("/*SCRIPT*/", script),
        ("/*DATA*/", data),
    ):
        html = html.replace(mark, text, 1)
    return html


def _marks(body: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Returns how the page draws each view and each way of mining: ``{name: {colour, dash, path}}``."""
    ways = [way for run in body["runs"] for epoch in run["epochs"] for way in epoch["pmr"]]
    views = [view["name"] for run in body["runs"] for view in run["views"][: run["plain"]]]
    return {name: mark.for_page() for name, mark in marks_of([*views, *ways]).items()}
