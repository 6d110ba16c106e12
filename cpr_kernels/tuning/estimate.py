"""Estimates how well a schedule or a plan mines, without labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from ..mining import Schedule, cascade_topk
from .agreement import Votes, joined
from .candidates import schedule_text, without_views
from .checks import LEAST_ROWS, check_count, check_ids, check_varied, check_views
from .plan import MiningPlan
from .trial import Trial, draw_sample


def estimate_agreement(
    views: Mapping[str, Tensor],
    how: Schedule | MiningPlan,
    ids: Tensor | None = None,
    *,
    sample: int = 1200,
    seed: int = 0,
) -> float:
    """Returns the leave-one-view-out agreement of a schedule or a plan: the number to watch where labels are missing.

    Rows are mined with one view left out; the agreement is the share of the mined pairs that are mutual neighbours
    (of the nearest 50th) in that view, mean over the views left out, at the power of whitening of the view that makes
    it highest. It is no estimate of PMR itself: where views err independently given the class it grows with PMR, so
    that settings, or epochs, can be compared on the same sample size.

    Args:
        views: ``{view: [N, D_v]}`` as :func:`tune_schedule`. A schedule mines them as they are, a plan as it says.
        how: a :class:`Schedule`, or a :class:`MiningPlan`. Views that it does not use judge too; a view without which
            its last stage has no view left does not.
        ids: [N] int64 source of each row.
        sample: rows that take part, at random.
        seed: of the sample.

    Returns:
        A number from 0 to 1.

    Raises:
        ValueError: as :func:`tune_schedule`; or no view is left to judge.
    """
    op = "estimate_agreement"
    schedule = how.schedule if isinstance(how, MiningPlan) else Schedule(how)
    check_views(op, views, schedule.topk)
    check_varied(op, views)
    check_count(op, max(LEAST_ROWS, 2 * schedule.topk), sample=sample)
    check_count(op, 0, seed=seed)
    schedule.table(tuple(views))  # raises for a view that is not there
    ids = check_ids(op, ids, views, schedule.topk)
    drawn = draw_sample(views, ids, sample, seed)
    raw = {view: table[drawn.rows] for view, table in views.items()}
    return float(votes_for(op, Trial(drawn, schedule.topk), how, raw).agreement())


def votes_for(op: str, trial: Trial, how: Schedule | MiningPlan, raw: Mapping[str, Tensor]) -> Votes:
    """Returns the votes of each view on what a schedule or a plan mines without it, on the rows of a trial.

    Args:
        op: what is called, for the message.
        trial: of a sample.
        how: what mines.
        raw: ``{view: [N, D_v]}`` the sample's rows.

    Raises:
        ValueError: no view is left to judge.
    """
    schedule = how.schedule if isinstance(how, MiningPlan) else Schedule(how)
    votes = []
    for view in trial.judges:
        left = without_views(schedule, trial.left_out_with(view))
        if left is None:
            continue
        ids_left = trial.ids_with(left.views)
        rows = {name: raw[name] for name in left.views}
        if isinstance(how, MiningPlan):
            plan = replace(how, whiten={name: how.whiten[name] for name in left.views}, schedule=left)
            mined, _ = plan.mine(rows, plan.prepare_keys(rows, ids_left), ids_left)
        else:
            mined, _ = cascade_topk(rows, rows, left, query_ids=ids_left, key_ids=ids_left)
        votes.append(trial.vote(view, mined, ids_left))
    if not votes:
        raise ValueError(
            f"{op}: no view is left to judge: the last stage of {schedule_text(schedule)} scores by copies of all views"
        )
    return joined(votes)
