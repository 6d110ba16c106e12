"""Specifies `cpr::cascade_topk` in plain torch. Obvious before fast; every backend is tested against it."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch.calls import CascadeCall, RerankCall

NAME = "reference"
BLOCK_SCORES = 2**24  # of a block of queries


def why_not(call: CascadeCall | RerankCall) -> str | None:
    """Returns None but for a shard, of which the reference would see one rank's entries only."""
    return call.sharded


def scores_dtype(call: CascadeCall) -> torch.dtype:
    """What scores are formed in: float32, or float64 where some view's keys are."""
    return torch.float64 if any(keys.dtype == torch.float64 for keys in call.keys) else torch.float32


def view_scores(query: Tensor, key: Tensor) -> Tensor:
    """Returns inner products [B, N] with exact products: float64, rounded once to float32 for lower features."""
    scores = query.double() @ key.double().T
    return scores if query.dtype == torch.float64 else scores.float()


def stage_scores(call: CascadeCall) -> list[Tensor]:
    """Returns the score of every entry at every stage: S tensors [B, N], views added in order, the bias last."""
    num_views = len(call.queries)
    of_view: dict[int, Tensor] = {}
    scores = []
    for s in range(len(call.stage_keep)):
        total = None
        for v in range(num_views):
            weight = call.stage_weights[s * num_views + v]
            if weight == 0:
                continue
            if v not in of_view:
                of_view[v] = view_scores(call.queries[v], call.keys[v])
            term = of_view[v] * weight
            total = term if total is None else total + term
        assert total is not None  # checks.py refuses a stage whose weights are all 0
        scores.append(total)
    if call.key_bias is not None:
        scores[-1] = scores[-1] + call.key_bias
    return scores


def excluded(call: CascadeCall) -> Tensor:
    """Returns True [B, N] where an entry may never be selected: empty slot, the query's own id, or `exclude`."""
    num_queries, num_keys = call.queries[0].shape[0], call.keys[0].shape[0]
    out = torch.zeros(num_queries, num_keys, dtype=torch.bool, device=call.queries[0].device)
    if call.key_ids is not None:
        out |= call.key_ids[None, :] < 0
        if call.query_ids is not None:
            out |= call.key_ids[None, :] == call.query_ids[:, None]
    if call.exclude is not None:
        out |= call.exclude
    return out


def ranking(scores: Tensor, alive: Tensor) -> Tensor:
    """Returns entries [B, N] by (alive first, score descending, index ascending)."""
    by_score = scores.masked_fill(~alive, 0).argsort(dim=1, descending=True, stable=True)
    dead_last = (~alive).gather(1, by_score).to(torch.uint8).argsort(dim=1, stable=True)
    return by_score.gather(1, dead_last)


@torch.no_grad()
def run(call: CascadeCall) -> tuple[Tensor, Tensor]:
    """Returns `(indices [B, k] int64 padded with -1, scores [B, k] padded with -inf)`, for some queries at a time."""
    num_queries, num_keys = call.queries[0].shape[0], call.keys[0].shape[0]
    count = max(1, BLOCK_SCORES // max(1, num_keys))
    if num_queries <= count:
        return _run_block(call)
    parts = [_run_block(call.part(first, count)) for first in range(0, num_queries, count)]
    indices, scores = (torch.cat(part) for part in zip(*parts))
    return indices, scores


def _run_block(call: CascadeCall) -> tuple[Tensor, Tensor]:
    num_queries = call.queries[0].shape[0]
    k = call.stage_keep[-1]
    device = call.queries[0].device
    indices = torch.full((num_queries, k), -1, dtype=torch.int64, device=device)
    values = torch.full((num_queries, k), -torch.inf, dtype=scores_dtype(call), device=device)

    scores = stage_scores(call)  # S x [B, N]
    alive = ~excluded(call)
    for score in scores:
        alive &= ~score.isnan()

    order = torch.empty(num_queries, 0, dtype=torch.int64, device=device)
    for score, keep in zip(scores, call.stage_keep):
        order = ranking(score, alive)[:, :keep]
        alive &= torch.zeros_like(alive).scatter_(1, order, True)

    width = order.shape[1]  # k, or N where the queue is smaller
    chosen = alive.gather(1, order)
    indices[:, :width] = torch.where(chosen, order, -1)
    values[:, :width] = torch.where(chosen, scores[-1].gather(1, order), -torch.inf)
    return indices, values


@torch.no_grad()
def rerank(call: RerankCall) -> tuple[Tensor, Tensor]:
    """Runs `cpr::cascade_rerank`: the cascade over all entries with those that are no candidate excluded; see `run`."""
    num_queries, num_keys = call.queries[0].shape[0], call.keys[0].shape[0]
    listed = torch.zeros(num_queries, num_keys + 1, dtype=torch.bool, device=call.candidates.device)
    padding = (call.candidates < 0) | (call.candidates >= num_keys)
    listed.scatter_(1, call.candidates.masked_fill(padding, num_keys), True)
    exclude = ~listed[:, :num_keys]
    if call.exclude is not None:
        exclude |= call.exclude
    return run(call.cascade._replace(exclude=exclude))
