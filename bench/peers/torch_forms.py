"""Holds plain torch code that several peers share: scores, the cascade on scores, the loss's backward pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..harness.inputs import Table
from ..harness.peer import Settings, first_reason
from ..harness.workloads import Workload

TEMPERATURE = 0.07


def similarities(query: Tensor, key: Tensor) -> Tensor:
    """Returns inner products [B, N] in float32, whatever the dtype of the features."""
    if query.dtype == torch.float32:
        return query @ key.T
    if query.is_cuda:
        return torch.mm(query, key.T, out_dtype=torch.float32)
    return query.float() @ key.float().T


def stage_plan(table: Table) -> list[tuple[str, int]]:
    """Returns the judging view and the count of every stage."""
    return [(str(stage.view), stage.keep) for stage in table.workload.schedule]


def torch_topk(scores: Tensor, keep: int, in_order: bool) -> tuple[Tensor, Tensor]:
    """Returns values and places of the highest scores per row."""
    return scores.topk(keep, dim=1, sorted=in_order)


def narrowed(
    scores: dict[str, Tensor],
    plan: list[tuple[str, int]],
    pick: Callable[[Tensor, int, bool], tuple[Tensor, Tensor]] = torch_topk,
) -> tuple[Tensor, Tensor]:
    """Runs the cascade on scores {view: [B, N]}: topk and gather per stage, only of views that judge again.

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


def backward(query: Tensor, loss: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the loss and its gradient for the query."""
    query.grad = None
    loss.backward()
    assert query.grad is not None
    return loss.detach(), query.grad


def compiled_why_not(settings: Settings, workload: Workload) -> str | None:
    """Returns why a peer under torch.compile does not run: compiling takes seconds a shape, so it is for the
    design's table only.
    """
    return first_reason(
        None if settings.compiled else "left out (--no-compile or --quick)",
        None if workload.tier == "table" else "compiled for the table's shapes only",
    )
