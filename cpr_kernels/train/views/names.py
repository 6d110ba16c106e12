"""Names a view, and all views together, in figures and logs."""

from __future__ import annotations

from collections.abc import Sequence

from . import KNOWN


def name_of_all_views(views: Sequence[str]) -> str:
    """Returns the name of the sum of all views: both, where they are two, else all."""
    return "both" if len(views) == 2 else "all"


def label(name: str) -> str:
    """Returns a view's name in figures; a name of no known view is returned as it is."""
    return KNOWN[name].label if name in KNOWN else name
