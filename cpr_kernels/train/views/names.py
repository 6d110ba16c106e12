"""What figures and logs call a view, and all views together."""

from __future__ import annotations

from collections.abc import Sequence

from . import KNOWN


def together(views: Sequence[str]) -> str:
    """What the sum of all views is called: both, where they are two."""
    return "both" if len(views) == 2 else "all"


def label(name: str) -> str:
    """What a figure calls a view; a name of no known view stays."""
    return KNOWN[name].label if name in KNOWN else name
