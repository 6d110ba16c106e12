"""Lists peers that are libraries and need a GPU. None is a dependency: what is absent says how to get it.

The adapters follow the libraries' documentation. One that no longer fits its library's release is named with its
error, and the run continues without it.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..harness.inputs import Table
from ..harness.peer import Call, Peer, first_reason, not_installed, siblings
from ..harness.workloads import Workload
from .torch_forms import TEMPERATURE, backward, narrowed, similarities, stage_plan


def one_stage(workload: Workload) -> str | None:
    """Returns why a library that finds the k nearest of one view does not fit."""
    return first_reason(
        None if workload.stages == 1 else "searches one stage of one view",
        None if not workload.ids else "excludes nothing by query",
        None if workload.dtype == "float32" else "is fed float32 features here",
    )


def _only_view(table: Table) -> tuple[Tensor, Tensor, int]:
    """Returns queries, keys and k of the one view that judges."""
    view = table.workload.schedule.views[0]
    return table.queries[view], table.keys[view], table.workload.topk


def _prepare_flashinfer(table: Table) -> Call:
    top_k = importlib.import_module("flashinfer").top_k
    plan = stage_plan(table)

    def pick(scores: Tensor, keep: int, in_order: bool) -> tuple[Tensor, Tensor]:
        values, place = top_k(scores, keep, sorted=in_order)
        return values, place.long()

    def call() -> tuple[Tensor, Tensor]:
        scores = {view: similarities(table.queries[view], table.keys[view]) for view in dict(plan)}
        if table.query_ids is not None and table.key_ids is not None:
            scores[plan[0][0]].masked_fill_(siblings(table.query_ids, table.key_ids), -torch.inf)
        return narrowed(scores, plan, pick)

    return call


def _prepare_cuvs(table: Table) -> Call:
    brute_force = importlib.import_module("cuvs.neighbors.brute_force")
    query, key, k = _only_view(table)
    index = brute_force.build(key, metric="inner_product")

    def call() -> tuple[Tensor, None]:
        _, found = brute_force.search(index, query, k)
        return torch.as_tensor(found, device=query.device).long(), None

    return call


def _faiss_why_not(workload: Workload) -> str | None:
    reason = first_reason(not_installed("faiss", "faiss-gpu"), one_stage(workload))
    if reason is None and not hasattr(importlib.import_module("faiss"), "StandardGpuResources"):
        return "the faiss that is installed has no GPU part (pip install faiss-gpu)"
    return reason


def _prepare_faiss(table: Table) -> Call:
    faiss = importlib.import_module("faiss")
    importlib.import_module("faiss.contrib.torch_utils")  # lets faiss take tensors
    resources = faiss.StandardGpuResources()
    query, key, k = _only_view(table)

    def call() -> tuple[Tensor, Tensor]:
        scores, indices = faiss.knn_gpu(resources, query, key, k, metric=faiss.METRIC_INNER_PRODUCT)
        return indices, scores

    return call


def cascade_peers() -> list[Peer]:
    """Returns libraries that do the cascade's work, or one stage of it, on a GPU."""
    return [
        Peer(
            "torch matmul + flashinfer top_k",
            _prepare_flashinfer,
            lambda w: not_installed("flashinfer", "flashinfer-python"),
        ),
        Peer(
            "cuVS brute force, one stage",
            _prepare_cuvs,
            lambda w: first_reason(not_installed("cuvs", "cuvs-cu13"), one_stage(w)),
            graphable=False,
        ),
        Peer("faiss-gpu, one stage", _prepare_faiss, _faiss_why_not, graphable=False),
    ]


def _prepare_fused(loss_of: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[[Any], Call]:
    """Returns a fused linear cross-entropy as InfoNCE: the classes are the batch's own positives, then the queue."""

    def prepare(inputs: Any) -> Call:
        def call() -> tuple[Tensor, Tensor]:
            classes = torch.cat([inputs.positive, inputs.keys])
            target = torch.arange(len(inputs.query), device=inputs.query.device)
            return backward(inputs.query, loss_of(inputs.query / TEMPERATURE, classes, target))

        return call

    return prepare


def _cut_cross_entropy(query: Tensor, classes: Tensor, target: Tensor) -> Tensor:
    return importlib.import_module("cut_cross_entropy").linear_cross_entropy(query, classes, target)


def _liger(query: Tensor, classes: Tensor, target: Tensor) -> Tensor:
    module = importlib.import_module("liger_kernel.transformers")
    return module.LigerFusedLinearCrossEntropyLoss()(classes, query, target)


def loss_peers(plain_infonce: Callable[[Workload], str | None]) -> list[Peer]:
    """Returns fused losses for GPUs; `plain_infonce` says why a workload is more than InfoNCE."""
    listed = (
        ("cut-cross-entropy", "cut_cross_entropy", "cut-cross-entropy", _cut_cross_entropy),
        ("liger-kernel", "liger_kernel", "liger-kernel", _liger),
    )
    return [
        Peer(
            name,
            _prepare_fused(loss_of),
            lambda w, module=module, package=package: first_reason(  # type: ignore[misc]
                not_installed(module, package), plain_infonce(w)
            ),
            variant="batch too",
            graphable=False,
        )
        for name, module, package, loss_of in listed
    ]
