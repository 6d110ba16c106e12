"""Finds the distinct stage weightings of a schedule: stages of equal weights share one row of scores."""

from __future__ import annotations

from typing import NamedTuple

from ..dispatch.calls import CascadeCall


class Rows(NamedTuple):
    """Holds R distinct weightings over the views that take part."""

    views: tuple[int, ...]  # the call's views that some stage weighs
    weights: tuple[float, ...]  # [R, len(views)], row-major
    row_of_stage: tuple[int, ...]  # [S]
    biased: int  # the row that key_bias is added to, of the last stage alone; -1: none


def plan_rows(call: CascadeCall) -> Rows:
    """Returns the distinct rows of `stage_weights`, in order of first use, without the views that no stage weighs."""
    num_views, last, biased = len(call.queries), len(call.stage_keep) - 1, call.key_bias is not None
    stages = [
        (tuple(map(float, call.stage_weights[s * num_views : (s + 1) * num_views])), biased and s == last)
        for s in range(last + 1)
    ]
    rows = list(dict.fromkeys(stages))  # a biased stage's is the last
    views = tuple(v for v in range(num_views) if any(row[v] != 0 for row, _ in rows))
    weights = tuple(row[v] for row, _ in rows for v in views)
    return Rows(views, weights, tuple(map(rows.index, stages)), len(rows) - 1 if biased else -1)
