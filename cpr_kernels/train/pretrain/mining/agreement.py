"""Watches mining without labels: how far the views agree on what is mined among the entries of the memory."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from .... import MiningPlan, Schedule, estimate_agreement
from ....progress import say
from ...runtime import ranks

SAMPLE = 1000  # entries that take part: a fifth of a second on two cores, once an epoch


def measured_agreement(
    how: Schedule | MiningPlan | None, views: Mapping[str, Tensor], ids: Tensor, seed: int
) -> dict[str, float]:
    """Returns {"mined": leave-one-view-out agreement} of a schedule or plan on the entries of a memory.

    It is empty where nothing is mined, and where the views cannot judge, whose reason is printed: a view that is the
    same in all entries, or a schedule that one view decides among copies of it. Ranks hold the same entries, so that
    only the first one measures. The sample is a function of the seed.

    Args:
        how: what the run mines by; None measures nothing.
        views: ``{view: [N, D]}``, the memory's entries.
        ids: [N] int64 source of each entry, -1 for an empty slot.
        seed: of the sample.
    """
    if how is None or ranks.rank():
        return {}
    held = {view: rows.float() for view, rows in views.items()}
    try:
        return {"mined": estimate_agreement(held, how, ids, sample=SAMPLE, seed=seed)}
    except ValueError as error:
        say(f"the agreement of what is mined is not measured: {error}")
        return {}
