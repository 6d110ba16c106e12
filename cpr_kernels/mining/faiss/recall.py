"""Measures how much of the exact cascade an index finds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ..arguments import as_call
from ..schedule import Schedule
from .effort import overlap
from .index import FaissIndex
from .settings import SearchReport, SearchSettings


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

    def found(stages: Schedule, settings: SearchSettings | None = None) -> Tensor:
        indices, _ = index.cascade_topk(queries, keys, stages, settings, **masks)
        exact, _ = torch.ops.cpr.cascade_topk(*as_call(queries, keys, stages, **masks))
        return overlap(exact, indices)

    last, report = found(schedule), index.report
    first = found(Schedule(schedule[:1]), index.settings_for(schedule, keys)[0])
    return FaissRecall(float(first.mean()), float(last.mean()), float((last == 1).float().mean()), report)
