"""Takes pictures of a page in headless Chromium: its main states on a desk, on a phone, in the dark and on paper."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..harness.chromium import Page, browser


class State(NamedTuple):
    """Says how a page is looked at."""

    fragment: str = ""  # after the page's address, such as #query=5
    width: int = 1440
    height: int = 1000
    dark: bool = False
    media: str = ""  # "print", or the screen
    whole: bool = False  # the whole page, or what is seen of it


DESK = {"desk": State(), "dark": State(dark=True), "phone": State(width=390, height=844, whole=True)}
STATES = {
    "explorer": {
        **DESK,
        "stage": State("#stage=3"),
        "ranks": State("#stage=3&axes=ranks"),
        "compare": State("#compare=1&stage=9"),
        "hubs": State("#list=hubs"),
        "labels": State("#list=labels"),
        "paper": State("#stage=3", width=1000, media="print", whole=True),
    },
    "report": {**DESK, "whole": State(whole=True), "paper": State(width=1000, media="print", whole=True)},
}


def take(tab: Page, page: Path, states: dict[str, State], folder: Path) -> list[Path]:
    """Writes a PNG of each state as ``folder/PAGE-STATE.png``; returns their paths."""
    made = []
    for name, state in states.items():
        tab.emulate(state.dark, state.media)
        tab.resize(state.width, state.height)
        tab.open(page, state.fragment)
        tab.run("await new Promise((done) => setTimeout(done, 800));")  # averages that the page still forms
        made.append(folder / f"{page.stem}-{name}.png")
        tab.screenshot(made[-1], state.whole)
    tab.emulate()
    return made


def main(argv: Sequence[str]) -> int:
    """Runs ``python -m bench screenshots``."""
    parser = argparse.ArgumentParser(prog="python -m bench screenshots", description=__doc__)
    parser.add_argument("pages", nargs="+", type=Path, help="pages of cpr report and cpr explore")
    parser.add_argument("--out", type=Path, default=Path("build/screenshots"), help="folder of the pictures")
    parser.add_argument(
        "--states", default="", metavar="A,B", help="some of the states (default: all of the page's kind)"
    )
    args = parser.parse_args(list(argv))
    missing = [str(page) for page in args.pages if not page.is_file()]
    if missing:
        raise ValueError(f"pages: there is no {missing[0]}")
    with browser() as tab:
        for page in args.pages:
            states = _states(page, args.states)
            print(*take(tab, page, states, args.out), sep="\n")
    return 0


def _states(page: Path, named: str) -> dict[str, State]:
    """Returns the states of the page's kind but for lists that it does not have, or those of them that are named."""
    text = page.read_text(encoding="utf-8")
    known = STATES["explorer" if '<script id="data"' in text else "report"]
    lists = {name: state.fragment.partition("#list=")[2] for name, state in known.items()}
    if not named:
        return {
            name: state
            for name, state in known.items()
            if not lists[name] or f'"name":"{lists[name]}"' in text
        }
    unknown = [name for name in named.split(",") if name not in known]
    if unknown:
        raise ValueError(f"--states: no {unknown[0]!r} of {page}; there is {', '.join(known)}")
    return {name: known[name] for name in named.split(",")}
