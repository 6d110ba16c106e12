"""Computes what a share of the keys adds to each query's sums in plain torch, on any device, by blocks of queries."""

from __future__ import annotations

from collections.abc import Iterator

import numpy
import torch
from torch import Tensor

from ..dispatch.calls import LossCall
from . import native, reference

BLOCK_SCORES = 2**24  # of a block of queries
LARGEST = torch.finfo(torch.float32).max


def scale_of(temperature: float) -> float:
    """Returns the factor of scores in float32, as the kernels have it."""
    return min(float(numpy.float32(1) / numpy.float32(temperature)), LARGEST)


def _blocks(call: LossCall) -> Iterator[slice]:
    """Yields the queries in parts whose scores fit a block; one empty part where there is no query."""
    rows = call.query.shape[0]
    count = max(1, BLOCK_SCORES // max(1, call.keys.shape[0]))
    yield from (slice(first, first + count) for first in range(0, max(rows, 1), count))


def _part(call: LossCall, part: slice) -> LossCall:
    query_ids = None if call.query_ids is None else call.query_ids[part]
    query, positive, listed = (t[part] for t in (call.query, call.positive, call.positives))
    return call._replace(query=query, positive=positive, positives=listed, query_ids=query_ids, use_own=None)


def share(call: LossCall, want_gradient: bool, own: Tensor | None = None) -> native.Share:
    """Returns what `native.share` does."""
    parts = [
        _share(_part(call, part), want_gradient, None if own is None else own[part]) for part in _blocks(call)
    ]
    return native.Share(*(torch.cat(column) for column in zip(*parts)))


def _share(call: LossCall, want_gradient: bool, own: Tensor | None) -> native.Share:
    scale = scale_of(call.temperature)
    scores = reference.scores_of(call)[:, 1:]
    every, positive = (counts[:, 1:] for counts in reference.columns(call))
    keys = reference.finite_features(call.keys, torch.float32)
    sums, attended, spoilt = [], [], None
    for counts in (every, positive):
        # a column of its own, for a rank may hold no entry
        tops = torch.nn.functional.pad(scores.masked_fill(counts == 0, -torch.inf), (1, 0), value=-torch.inf)
        top = tops.amax(dim=1)
        top = torch.where(top == -torch.inf, 0, top)
        spoilt = top * 0 if spoilt is None else spoilt  # NaN where a score that takes part is
        top = top + spoilt
        weights = (((scores - top[:, None]) * scale).exp() * counts).masked_fill(counts == 0, 0)
        sums += [top, weights.sum(dim=1) + spoilt]
        attended.append(weights @ keys if want_gradient else weights[:, :0])
    ranks = scores.new_empty(0, 2, dtype=torch.int32)
    best = scores.new_empty(0, native.BEST)
    if own is not None:
        ranks, best = _ranks(scores, every, positive, own)
    return native.Share(torch.stack(sums, dim=1), torch.stack(attended, dim=1), ranks, best)


def _ranks(scores: Tensor, every: Tensor, positive: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """Returns scores above the own pair's with the positives among the best as bits [m, 2], and the best [m, 5]."""
    above = (every * (scores > own[:, None])).sum(dim=1)
    room = (0, native.BEST)  # the share may be shorter
    scores = torch.nn.functional.pad(scores.masked_fill(every == 0, -torch.inf), room, value=-torch.inf)
    best, order = (part[:, : native.BEST] for part in scores.sort(dim=1, descending=True, stable=True))
    hits = torch.nn.functional.pad(positive, room).gather(1, order).clamp(max=1)
    flags = (hits << torch.arange(native.BEST, device=hits.device)).sum(dim=1)
    return torch.stack([above, flags], dim=1).int(), best


def keys_gradient(call: LossCall, grad_loss: Tensor, lse_all: Tensor, lse_positive: Tensor) -> Tensor:
    """Returns d (grad_loss . loss) / d keys: [n, D] in the keys' dtype, summed over blocks of queries in order."""
    total = torch.zeros(call.keys.shape, dtype=torch.float32, device=call.keys.device)
    for part in _blocks(call):
        some = _part(call, part)
        weights = reference.weights_of(some, lse_all[part], lse_positive[part])[:, 1:]
        weights = weights * (grad_loss[part] / call.temperature)[:, None]
        total += weights.T @ reference.finite_features(some.query, torch.float32)
    return total.to(call.keys.dtype)
