"""Finds the distinct stage weightings of a schedule: stages of equal weights share one row of scores."""

from __future__ import annotations

from typing import NamedTuple

from ..dispatch.calls import CascadeCall


class Rows(NamedTuple):
    """Holds R distinct weightings over the views that take part."""

    views: tuple[int, ...]  # the call's views that some stage weighs
    weights: tuple[float, ...]  # [R, len(views)], row-major
    row_of_stage: tuple[int, ...]  # [S]


def plan_rows(call: CascadeCall) -> Rows:
    """Returns the distinct rows of `stage_weights`, in order of first use, without the views that no stage weighs."""
    num_views = len(call.queries)
    stages = [
        tuple(float(w) for w in call.stage_weights[s * num_views : (s + 1) * num_views])
        for s in range(len(call.stage_keep))
    ]
    rows = list(dict.fromkeys(stages))
    views = tuple(v for v in range(num_views) if any(row[v] != 0 for row in rows))
    weights = tuple(row[v] for row in rows for v in views)
    return Rows(views, weights, tuple(rows.index(stage) for stage in stages))
