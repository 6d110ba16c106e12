"""Second-order formulas of MIL-NCE in plain torch.

With logits z, softmaxes P over all and Q over the positives, and w = P - Q: the loss changes by ``sum(w * dz)``, and w
by ``P * (dz - sum(P * dz)) - Q * (dz - sum(Q * dz))``. Queries are taken in blocks, so that nothing of B x N is made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..dispatch.calls import LossCall
from . import reference

NUM_FIELDS = len(LossCall._fields)
PER_QUERY = ("query", "positive", "positives", "query_ids", "use_own", "negatives")
BLOCK_LOGITS = 2**20


class Tangents(NamedTuple):
    """Directions of query, positive and keys; None is zero."""

    query: Tensor | None  # [B, D]
    positive: Tensor | None  # [B, D]
    keys: Tensor | None  # [N, D]


def _blocks(call: LossCall, *directions: Tangents) -> Iterator[tuple[slice, LossCall, list[Tangents]]]:
    """The call and directions in blocks of queries, features in the dtype of the logits, empty slots as zeros."""
    dtype = reference.logits_dtype(call)

    def rows(value: Tensor | None, part: slice) -> Tensor | None:
        return None if value is None else value[part].to(dtype) if value.is_floating_point() else value[part]

    keys = call.keys.to(dtype)
    if call.key_ids is not None:
        keys = keys.masked_fill((call.key_ids < 0)[:, None], 0)
    of_keys = [None if along.keys is None else along.keys.to(dtype) for along in directions]
    count = max(1, BLOCK_LOGITS // (keys.shape[0] + 1))
    for first in range(0, call.query.shape[0], count):
        part = slice(first, first + count)
        masks: dict[str, Any] = {name: rows(getattr(call, name), part) for name in PER_QUERY}
        moved = [
            Tangents(rows(along.query, part), rows(along.positive, part), along_keys)
            for along, along_keys in zip(directions, of_keys)
        ]
        yield part, call._replace(keys=keys, **masks), moved


def _softmaxes(call: LossCall) -> tuple[Tensor, Tensor]:
    """Softmaxes [B, 1 + N] of the logits that take part, and of the positive ones."""
    logits = reference.logits_of(call)
    of_all, of_positives = (
        (logits + counts.clamp(min=1).log()).masked_fill(counts == 0, -torch.inf).softmax(dim=1)
        for counts in reference.columns(call)
    )
    return of_all, of_positives


def _products(query: Tensor, positive: Tensor | None, keys: Tensor | None, like: LossCall) -> Tensor:
    """``[query @ positive, query @ keys.T]``, [B, 1 + N]; zeros for None."""
    rows, num_keys = like.query.shape[0], like.keys.shape[0]
    own = query.new_zeros(rows, 1) if positive is None else (query * positive).sum(dim=1, keepdim=True)
    return torch.cat([own, query.new_zeros(rows, num_keys) if keys is None else query @ keys.T], dim=1)


def _along(call: LossCall, tangents: Tangents) -> Tensor:
    """How the logits change along the tangents: [B, 1 + N]."""
    change = _products(call.query, tangents.positive, tangents.keys, call)
    if tangents.query is not None:
        change = change + _products(tangents.query, call.positive, call.keys, call)
    return change / call.temperature


def _weights_along(of_all: Tensor, of_positive: Tensor, change: Tensor) -> Tensor:
    """How d loss / d logits changes when the logits do: [B, 1 + N]."""
    spread = [p * (change - (p * change).sum(dim=1, keepdim=True)) for p in (of_all, of_positive)]
    return spread[0] - spread[1]


def _split(flat: Sequence[Any]) -> tuple[LossCall, list[Tangents]]:
    """A call and the tangents that follow its fields."""
    rest = flat[NUM_FIELDS:]
    return LossCall(*flat[:NUM_FIELDS]), [Tangents(*rest[i : i + 3]) for i in range(0, len(rest), 3)]


def directional(*flat: Any) -> Tensor:
    """The loss's derivative [B] along tangents; `flat` is a call's fields and the tangents."""
    call, (tangents,) = _split(flat)
    parts = [call.query.new_zeros(0, dtype=reference.logits_dtype(call))]  # where there is no query
    for _, block, (along,) in _blocks(call, tangents):
        of_all, of_positives = _softmaxes(block)
        parts.append(((of_all - of_positives) * _along(block, along)).sum(dim=1))
    return torch.cat(parts)


def curvature(*flat: Any) -> Tensor:
    """The loss's second derivative [B] along two directions; `flat` is a call's fields and both tangents."""
    call, directions = _split(flat)
    parts = [call.query.new_zeros(0, dtype=reference.logits_dtype(call))]  # where there is no query
    for _, block, (one, two) in _blocks(call, *directions):
        of_all, of_positives = _softmaxes(block)
        weights = _weights_along(of_all, of_positives, _along(block, one))
        each = (weights * _along(block, two)).sum(dim=1)
        for a, b in ((one, two), (two, one)):
            if a.query is not None:
                change = _products(a.query, b.positive, b.keys, block)
                each = each + ((of_all - of_positives) * change).sum(dim=1) / call.temperature
        parts.append(each)
    return torch.cat(parts)


class _Second(NamedTuple):
    """What a block of queries adds to the derivatives of a directional derivative."""

    each: Tensor  # [b], the directional derivative
    query: Tensor  # [b, D]
    positive: Tensor  # [b, D]
    keys: Tensor | None  # [N, D]


def _second_of_block(block: LossCall, along: Tangents, grad_loss: Tensor, wants_keys: bool) -> _Second:
    of_all, of_positives = _softmaxes(block)
    weights, change = of_all - of_positives, _along(block, along)
    each = (weights * change).sum(dim=1)
    scale = (grad_loss / block.temperature)[:, None]
    moved, weights = _weights_along(of_all, of_positives, change) * scale, weights * scale
    query = moved[:, :1] * block.positive + moved[:, 1:] @ block.keys
    positive = moved[:, :1] * block.query
    keys = moved[:, 1:].T @ block.query if wants_keys else None
    if along.positive is not None:
        query = query + weights[:, :1] * along.positive
    if along.keys is not None:
        query = query + weights[:, 1:] @ along.keys
    if along.query is not None:
        positive = positive + weights[:, :1] * along.query
        keys = None if keys is None else keys + weights[:, 1:].T @ along.query
    return _Second(each, query, positive, keys)


def second(wants_keys: bool, grad_loss: Tensor, *flat: Any) -> tuple[Tensor | None, ...]:
    """The loss's derivative [B] along tangents, and the derivatives of ``grad_loss @`` it by query, positive, keys."""
    call, (tangents,) = _split(flat)
    dtype = reference.logits_dtype(call)
    nothing = call.query.new_zeros(0, call.query.shape[1], dtype=dtype)
    parts = [(nothing[:, 0], nothing, nothing)]
    of_keys = torch.zeros_like(call.keys, dtype=dtype) if wants_keys else None
    for part, block, (along,) in _blocks(call, tangents):
        added = _second_of_block(block, along, grad_loss[part], wants_keys)
        of_keys = None if of_keys is None or added.keys is None else of_keys + added.keys
        parts.append(added[:3])
    each, of_query, of_positive = (torch.cat(column) for column in zip(*parts))
    return (
        each,
        of_query.to(call.query.dtype),
        of_positive.to(call.positive.dtype),
        None if of_keys is None else of_keys.to(call.keys.dtype),
    )
