"""What held-out rows say of heads: retrieval where there are labels, agreement of the views where there are not."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ... import cascade_topk, coclr_schedule
from ...metrics import true_positives
from ...tuning import estimate_agreement
from ...tuning.steps import joint_schedule

ALL = "all views"
KS = (1, 5)


def together(views: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the views, and where there are several all of them side by side: inner products are their sum."""
    found = dict(views)
    if len(views) > 1:
        found[ALL] = torch.cat(list(views.values()), dim=1)
    return found


def hits(
    queries: Mapping[str, Tensor], gallery: Mapping[str, Tensor], query_labels: Tensor, gallery_labels: Tensor
) -> dict[str, Tensor]:
    """Returns ``{view: [B, K]}``, True where the k-th nearest of a query has its label, :data:`ALL` among the views.

    Rows are of length 1; K is the largest of :data:`KS`. A label of -1 is unknown, and never right.
    """
    rows, keys = together(queries), together(gallery)
    found = {}
    for view in rows:
        nearest, _ = cascade_topk({view: rows[view]}, {view: keys[view]}, coclr_schedule(view, max(KS)))
        found[view] = true_positives(nearest, query_labels, gallery_labels)
    return found


def recall(right: Mapping[str, Tensor]) -> dict[str, dict[int, float]]:
    """Returns ``{view: {k: R@k}}`` of what :func:`hits` returned."""
    return {view: {k: float(of[:, :k].any(dim=1).float().mean()) for k in KS} for view, of in right.items()}


def agreement(views: Mapping[str, Tensor], sources: Tensor, seed: int) -> float:
    """Returns how far the views agree on each row's nearest 5 of other sources: a number without labels.

    :func:`cpr_kernels.estimate_agreement` of the joint score.
    """
    return estimate_agreement(views, joint_schedule(tuple(views), 5), sources, seed=seed)
