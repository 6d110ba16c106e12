"""Ways to run the cascade: this package, torch as well as it goes, its matmuls alone, and other libraries."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from cpr_kernels import cascade_topk

from ..harness.inputs import Table
from ..harness.peer import (
    MATMULS,
    OURS,
    STRONG,
    Call,
    Peer,
    Settings,
    first_reason,
    not_installed,
    siblings,
)
from ..harness.workloads import Workload
from . import gpu as gpu_peers
from . import published


def similarities(query: Tensor, key: Tensor) -> Tensor:
    """Inner products [B, N] in float32, whatever the dtype of the features."""
    if query.dtype == torch.float32:
        return query @ key.T
    if query.is_cuda:
        return torch.mm(query, key.T, out_dtype=torch.float32)
    return query.float() @ key.float().T


def _plan(table: Table) -> list[tuple[str, int]]:
    """The judging view and the count of every stage."""
    return [(str(stage.view), stage.keep) for stage in table.workload.schedule]


def torch_topk(scores: Tensor, keep: int, in_order: bool) -> tuple[Tensor, Tensor]:
    """Values and places of the highest, per row."""
    return scores.topk(keep, dim=1, sorted=in_order)


def narrowed(
    scores: dict[str, Tensor],
    plan: list[tuple[str, int]],
    pick: Callable[[Tensor, int, bool], tuple[Tensor, Tensor]] = torch_topk,
) -> tuple[Tensor, Tensor]:
    """The cascade on scores {view: [B, N]}: topk and gather per stage, only of views that judge again.

    The strongest form known in plain torch: no features are gathered, nothing but the result is sorted, no
    loop over queries.
    """
    index = None
    for stage, (view, keep) in enumerate(plan):
        values, place = pick(scores[view], keep, stage == len(plan) - 1)
        later = {name for name, _ in plan[stage + 1 :]} - {view}
        scores = {name: scores[name].gather(1, place) for name in later}
        scores[view] = values
        index = place if index is None else index.gather(1, place)
    assert index is not None
    return index, scores[plan[-1][0]]


def strong_torch(
    queries: dict[str, Tensor],
    keys: dict[str, Tensor],
    plan: list[tuple[str, int]],
    query_ids: Tensor | None,
    key_ids: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """All similarities by matmul, then :func:`narrowed`; siblings fall at the first stage."""
    scores = {view: similarities(queries[view], keys[view]) for view in dict.fromkeys(v for v, _ in plan)}
    if query_ids is not None and key_ids is not None:
        scores[plan[0][0]].masked_fill_(siblings(query_ids, key_ids), -torch.inf)
    return narrowed(scores, plan)


def _prepare_ours(table: Table) -> Call:
    schedule = table.workload.schedule
    queries, keys, query_ids, key_ids = table[1:]
    return lambda: cascade_topk(queries, keys, schedule, query_ids=query_ids, key_ids=key_ids)


def _prepare_strong(table: Table) -> Call:
    plan = _plan(table)
    return lambda: strong_torch(table.queries, table.keys, plan, table.query_ids, table.key_ids)


def _prepare_compiled(table: Table) -> Call:
    torch._dynamo.reset()
    plan = _plan(table)
    fast = torch.compile(strong_torch, dynamic=False, fullgraph=True)
    return lambda: fast(table.queries, table.keys, plan, table.query_ids, table.key_ids)


def _judges(table: Table) -> list[tuple[Tensor, Tensor]]:
    """Queries and keys of the views that judge."""
    return [(table.queries[view], table.keys[view]) for view in table.workload.schedule.views]


def _prepare_matmuls(table: Table) -> Call:
    pairs = _judges(table)
    return lambda: [similarities(query, key) for query, key in pairs]


def _prepare_matmuls_reusing(table: Table) -> Call:
    pairs = [(query, key.T, similarities(query, key)) for query, key in _judges(table)]
    return lambda: [torch.mm(query, key, out=out) for query, key, out in pairs]


def _prepare_numpy(table: Table) -> Call:
    plan = _plan(table)

    def call() -> tuple[Tensor, Tensor]:
        scores = {view: similarities(table.queries[view], table.keys[view]) for view in dict(plan)}
        if table.query_ids is not None and table.key_ids is not None:
            scores[plan[0][0]].masked_fill_(siblings(table.query_ids, table.key_ids), -torch.inf)
        left = {view: score.numpy() for view, score in scores.items()}
        index = np.arange(next(iter(left.values())).shape[1])[None, :]
        for view, keep in plan:
            dropped = left[view].shape[1] - keep
            place = np.argpartition(left[view], dropped, axis=1)[:, dropped:]
            left = {name: np.take_along_axis(score, place, axis=1) for name, score in left.items()}
            index = np.take_along_axis(np.broadcast_to(index, (len(place), index.shape[1])), place, axis=1)
        best_first = np.argsort(left[plan[-1][0]], axis=1)[:, ::-1]
        found = [np.take_along_axis(part, best_first, axis=1) for part in (index, left[plan[-1][0]])]
        return torch.from_numpy(found[0]), torch.from_numpy(found[1])

    return call


def _numpy_why_not(workload: Workload) -> str | None:
    return None if workload.num_keys <= 1 << 17 else "takes seconds a call here"


def _faiss_why_not(workload: Workload) -> str | None:
    return first_reason(
        not_installed("faiss", "faiss-cpu"),
        None if workload.stages == 1 else "searches one stage of one view",
        None if not workload.ids else "excludes nothing by query",
    )


def _prepare_faiss(table: Table) -> Call:
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    (query, key), k = _judges(table)[0], table.workload.topk
    arrays = query.numpy(), key.numpy()

    def call() -> tuple[Tensor, Tensor]:
        scores, indices = faiss.knn(*arrays, k, metric=faiss.METRIC_INNER_PRODUCT)
        return torch.from_numpy(indices), torch.from_numpy(scores)

    return call


def _float32_only(workload: Workload) -> str | None:
    return None if workload.dtype == "float32" else "matmul into float32 buffers takes float32 features"


def compiled_why_not(settings: Settings, workload: Workload) -> str | None:
    """Compiling takes seconds a shape, so only the shapes of the design's table are compiled."""
    return first_reason(
        None if settings.compiled else "left out (--no-compile or --quick)",
        None if workload.tier == "table" else "compiled for the table's shapes only",
    )


def peers(settings: Settings) -> list[Peer]:
    """Every peer of the cascade, ours first."""
    listed = [
        Peer(OURS, _prepare_ours, checked="exact"),
        Peer(STRONG, _prepare_strong),
        Peer(MATMULS, _prepare_matmuls, checked="part"),
        Peer(f"{MATMULS}, reused output", _prepare_matmuls_reusing, _float32_only, checked="part"),
        Peer(
            f"{STRONG}, compiled",
            _prepare_compiled,
            lambda w: compiled_why_not(settings, w),
            warms_itself=True,
        ),
        published.peer(settings),
    ]
    if settings.device == "cpu":
        listed += [
            Peer("torch matmul + numpy argpartition", _prepare_numpy, _numpy_why_not),
            Peer("faiss, one stage", _prepare_faiss, _faiss_why_not),
        ]
    else:
        listed += gpu_peers.cascade_peers()
    return listed
