"""Measures how much of the exact cascade an index finds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ..arguments import as_call
from ..schedule import Schedule
from .index import FaissIndex
from .settings import SearchReport


class FaissRecall(NamedTuple):
    """Says how much of the exact cascade an index finds."""

    first_stage: float  # of the entries that the exact stage 1 keeps, the share that the index leaves in
    topk: float  # of the exact cascade's final entries, the share that comes out
    same_queries: float  # queries whose final entries are all the same
    report: SearchReport


def faiss_recall(
    index: FaissIndex,
    queries: Mapping[str, Tensor],
    keys: Mapping[str, Tensor],
    schedule: Schedule,
    **masks: Tensor | None,
) -> FaissRecall:
    """Measures an index against the exact cascade on queries of your own (a few dozen suffice).

    An empty slot of the exact result (-1) counts as found where the index leaves it empty too.

    Args:
        index: a :class:`FaissIndex`.
        queries: as :func:`cpr_kernels.cascade_topk`, like `keys`, `schedule` and `masks`.

    Raises:
        ValueError: as :meth:`FaissIndex.cascade_topk`.
    """
    schedule = Schedule(schedule)

    def found(stages: Schedule) -> Tensor:
        indices, _ = index.cascade_topk(queries, keys, stages, **masks)
        exact, _ = torch.ops.cpr.cascade_topk(*as_call(queries, keys, stages, **masks))
        return overlap(exact, indices)

    first, last = found(Schedule(schedule[:1])), found(schedule)
    return FaissRecall(
        float(first.mean()), float(last.mean()), float((last == 1).float().mean()), index.report
    )


def overlap(exact: Tensor, found: Tensor) -> Tensor:
    """Returns the share [B] of each query's entries in `exact` [B, k] that are in `found` [B, m].

    -1 is no entry; the share is 1 where `exact` has none.
    """
    hits = [
        torch.isin(e[e >= 0], f[f >= 0]).sum() / max(int((e >= 0).sum()), 1) for e, f in zip(exact, found)
    ]
    none = (exact < 0).all(dim=1)
    return torch.stack(hits).masked_fill(none, 1.0) if hits else torch.ones(1)
