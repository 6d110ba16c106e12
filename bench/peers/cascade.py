"""Lists ways to run the cascade: this package, the strongest form in torch, its matmuls alone, and other libraries."""

from __future__ import annotations

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
from .torch_forms import compiled_why_not, narrowed, similarities, stage_plan


def strong_torch(
    queries: dict[str, Tensor],
    keys: dict[str, Tensor],
    plan: list[tuple[str, int]],
    query_ids: Tensor | None,
    key_ids: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Returns all similarities by matmul, then :func:`narrowed`; siblings fall at the first stage."""
    scores = {view: similarities(queries[view], keys[view]) for view in dict.fromkeys(v for v, _ in plan)}
    if query_ids is not None and key_ids is not None:
        scores[plan[0][0]].masked_fill_(siblings(query_ids, key_ids), -torch.inf)
    return narrowed(scores, plan)


def _prepare_ours(table: Table) -> Call:
    schedule = table.workload.schedule
    queries, keys, query_ids, key_ids = table[1:]
    return lambda: cascade_topk(queries, keys, schedule, query_ids=query_ids, key_ids=key_ids)


def _prepare_strong(table: Table) -> Call:
    plan = stage_plan(table)
    return lambda: strong_torch(table.queries, table.keys, plan, table.query_ids, table.key_ids)


def _prepare_compiled(table: Table) -> Call:
    torch._dynamo.reset()
    plan = stage_plan(table)
    fast = torch.compile(strong_torch, dynamic=False, fullgraph=True)
    return lambda: fast(table.queries, table.keys, plan, table.query_ids, table.key_ids)


def _judges(table: Table) -> list[tuple[Tensor, Tensor]]:
    """Returns queries and keys of the views that judge."""
    return [(table.queries[view], table.keys[view]) for view in table.workload.schedule.views]


def _prepare_matmuls(table: Table) -> Call:
    pairs = _judges(table)
    return lambda: [similarities(query, key) for query, key in pairs]


def _prepare_matmuls_reusing(table: Table) -> Call:
    pairs = [(query, key.T, similarities(query, key)) for query, key in _judges(table)]
    return lambda: [torch.mm(query, key, out=out) for query, key, out in pairs]


def _prepare_numpy(table: Table) -> Call:
    plan = stage_plan(table)

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


def peers(settings: Settings) -> list[Peer]:
    """Returns every peer of the cascade, ours first."""
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
