"""Who are my positives? Indices in, indices out; no gradients, no state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ..dispatch.backends import choose
from ..dispatch.graph_break import graph_break
from ..dispatch.sharded_keys import ShardedKeys, broadcast_errors, shard_of
from . import native, reference, sharded, triton_backend
from .arguments import Keys, as_call, as_rerank_call, check_call
from .faiss import backend as faiss_backend
from .faiss.index import FaissIndex
from .faiss.plan import FaissPlan, plan_faiss
from .faiss.recall import FaissRecall, faiss_recall
from .faiss.settings import RebuildPolicy, SearchReport, SearchSettings, Staleness
from .schedule import Schedule, Stage, coclr_schedule, cpr_schedule, oracle_schedule, parse_schedule

__all__ = [
    "CascadeTrace",
    "FaissIndex",
    "FaissPlan",
    "FaissRecall",
    "RebuildPolicy",
    "Schedule",
    "SearchReport",
    "SearchSettings",
    "Stage",
    "StageTrace",
    "Staleness",
    "cascade_rerank",
    "cascade_topk",
    "cascade_trace",
    "coclr_schedule",
    "cpr_schedule",
    "faiss_recall",
    "oracle_schedule",
    "parse_schedule",
    "plan_faiss",
]

# In order of preference; each has NAME, why_not(call), run(call).
# Backends after `reference` are never chosen by auto; request them by name.
BACKENDS = (native, triton_backend, sharded, reference, faiss_backend)
RERANK_BACKENDS = (native, triton_backend, reference)  # likewise, with rerank(call)


class StageTrace(NamedTuple):
    """Holds the survivors of one stage, best first."""

    stage: Stage
    indices: Tensor  # [B, keep] int64, padded with -1
    scores: Tensor  # [B, keep] float32, this stage's scores, padded with -inf


class CascadeTrace(tuple[StageTrace, ...]):
    """Holds one :class:`StageTrace` per stage, in order."""

    def counts(self) -> Tensor:
        """Counts the survivors of each query after each stage: [B, S] int64."""
        return torch.stack([(stage.indices >= 0).sum(dim=1) for stage in self], dim=1)


def cascade_topk(
    queries: Mapping[str, Tensor],
    keys: Keys,
    schedule: Schedule,
    *,
    query_ids: Tensor | None = None,
    key_ids: Tensor | None = None,
    exclude: Tensor | None = None,
    key_bias: Tensor | None = None,
    backend: str | FaissIndex = "auto",
) -> tuple[Tensor, Tensor]:
    """Mines positives: stage after stage, keeps the queue entries most similar in one view, then in another.

    For one stage and nothing excluded: ``(queries[v] @ keys[v].T).topk(k)``. In general, starting from the
    eligible entries, stage ``s`` keeps the ``keep`` highest by (score descending, index ascending), where the
    score is ``sum(weight * queries[view] @ keys[view].T)`` over the stage's views, at the last stage plus
    ``key_bias``; the last stage's survivors come out in that order (Wu et al. 2022, section 3.2).

    Args:
        queries: ``{view: [B, D_v]}``, float32, bfloat16, float16 (or float64, slow), of the keys' dtype or one that it
            holds; under autocast brought to the keys' dtype.
        keys: ``{view: [N, D_v]}``, the queue. Where the views differ in dtype, the lower ones are copied into the
            highest. Or the `views` of a :class:`ShardedMultiViewQueue`, of which every
            rank then calls this at the same time with queries of its own.
        schedule: a :class:`Schedule`, as made by :func:`cpr_schedule`, :func:`coclr_schedule`,
            :func:`oracle_schedule` or by hand.
        query_ids: [B] int64 source of each query; entries of the same source are never selected.
        key_ids: [N] int64 source of each entry; a negative id is an empty slot, never selected. Of a sharded
            queue: of the entries that this rank holds.
        exclude: [B, N] bool; True is never selected. Prefer ids: this is the only B x N array involved.
        key_bias: [N] float32, added to the last stage's score in float32, as the last operation: minus half of a hub
            term (CSLS), or a penalty for entries mined often. +inf comes first, -inf last; an entry whose bias is NaN
            is never selected. Of a sharded queue: of the entries that this rank holds.
        backend: ``"auto"``, or a name of :func:`explain`'s table; one that cannot run is an error. Or a
            :class:`FaissIndex` over these keys, which then proposes the survivors of stage 1.

    Returns:
        ``indices [B, k]`` int64 padded with -1, and ``scores [B, k]`` of the last stage, padded with -inf, in
        float32 (float64 where the keys are). The result depends on the scores alone, not on batch split, threads,
        device or run. An entry with a NaN score at any stage is never selected. No graph is recorded.

    Raises:
        ValueError: an argument that does not fit, named with what was expected and what came.
        RuntimeError: of a sharded queue: a rank has ended, refused its arguments or makes another call.
    """
    if backend == "auto" and exclude is None:
        mined = native.run_directly(queries, keys, schedule, query_ids, key_ids, key_bias)
        if mined is not None:
            return mined
    for key in keys.values():
        if isinstance(key, ShardedKeys):
            requested = backend if isinstance(backend, str) else faiss_backend.NAME
            arguments = (queries, keys, schedule, query_ids, key_ids, exclude, key_bias)
            return _over_shards(key, requested, *arguments)
    if not isinstance(backend, str):
        if not isinstance(backend, FaissIndex):
            raise ValueError(
                "cascade_topk: backend must be 'auto', a backend's name or a FaissIndex, got "
                f"{type(backend).__name__}; FaissIndex.from_faiss adopts an index of FAISS itself"
            )
        tables = cast(Mapping[str, Tensor], keys)
        masks = {"query_ids": query_ids, "key_ids": key_ids, "exclude": exclude, "key_bias": key_bias}
        return backend.cascade_topk(queries, tables, schedule, None, **masks)
    call = as_call(queries, keys, schedule, query_ids, key_ids, exclude, key_bias)
    if backend == "auto":
        return torch.ops.cpr.cascade_topk.default(*call)
    return torch.ops.cpr._cascade_topk_on(*call, backend=backend)


@graph_break
def _over_shards(key: ShardedKeys, backend: str, *arguments: Any) -> tuple[Tensor, Tensor]:
    """Runs `cascade_topk` over a sharded queue, one of whose views is `key`; an error of one rank reaches all."""
    with broadcast_errors(key.shard, "cascade_topk"):
        shard_of(arguments[1].values(), "cascade_topk")  # raises where some views are not sharded
        call = as_call(*arguments)
        check_call(call)
        chosen = choose(BACKENDS, call, backend)
    return chosen.run(call)


def cascade_rerank(
    queries: Mapping[str, Tensor],
    keys: Keys,
    schedule: Schedule,
    candidates: Tensor,
    *,
    query_ids: Tensor | None = None,
    key_ids: Tensor | None = None,
    exclude: Tensor | None = None,
    key_bias: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Runs the cascade over a list of candidates per query instead of the whole queue; it finishes an index search.

    Equals :func:`cascade_topk` with every entry excluded that the query's list does not name, at a cost that
    does not depend on N. With every entry listed it is `cascade_topk`, on CPU bit for bit also for real-valued
    features.

    Args:
        queries: as :func:`cascade_topk`.
        keys: as :func:`cascade_topk`; only listed entries are read.
        schedule: as :func:`cascade_topk`; a count beyond the candidates keeps them all.
        candidates: [B, C] int64 entries of the queue in any order, padded with -1; a repeat counts once. On
            CUDA tensors an index of N or more counts as padding, since looking would wait for the device.
        query_ids: as :func:`cascade_topk`.
        key_ids: as :func:`cascade_topk`.
        exclude: as :func:`cascade_topk`. Prefer -1 in `candidates`: nothing of size B x N is then involved.
        key_bias: as :func:`cascade_topk`.
        backend: as :func:`cascade_topk`.

    Returns:
        ``indices [B, k]`` and ``scores [B, k]`` as :func:`cascade_topk`: a function of the set of candidates,
        not of their order. Nothing of size B x C x D is made.

    Raises:
        ValueError: an argument that does not fit, or a candidate out of range.
    """
    masks = {"query_ids": query_ids, "key_ids": key_ids, "exclude": exclude, "key_bias": key_bias}
    call = as_rerank_call(queries, keys, schedule, candidates, **masks)
    if backend == "auto":
        return torch.ops.cpr.cascade_rerank.default(*call)
    return torch.ops.cpr._cascade_rerank_on(*call, backend=backend)


def cascade_trace(
    queries: Mapping[str, Tensor],
    keys: Keys,
    schedule: Schedule,
    *,
    query_ids: Tensor | None = None,
    key_ids: Tensor | None = None,
    exclude: Tensor | None = None,
) -> CascadeTrace:
    """Returns who survives each stage, for figures: runs the cascade on each prefix of the schedule. Slow, exact.

    Arguments as :func:`cascade_topk`. The last stage's indices are `cascade_topk`'s.
    """
    stages = Schedule(schedule)
    traced = []
    for s in range(len(stages)):
        prefix = Schedule(stages[: s + 1])
        mined = cascade_topk(queries, keys, prefix, query_ids=query_ids, key_ids=key_ids, exclude=exclude)
        traced.append(StageTrace(stages[s], *mined))
    return CascadeTrace(traced)
