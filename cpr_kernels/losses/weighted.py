"""Weights of the listed positives in `mil_nce`, in torch around the op, so that every backend's kernels serve."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..dispatch.calls import LossCall
from ..dispatch.checks import check_positives_in_range
from . import reference

Sweep = Callable[[LossCall], Tensor]  # the loss [B] of a call


def check(call: LossCall, weights: Tensor) -> None:
    """Refuses weights that do not fit a checked call.

    Raises:
        ValueError: naming the argument, what was expected and what came.
    """
    if not isinstance(weights, Tensor) or weights.dtype != reference.logits_dtype(call):
        kind = weights.dtype if isinstance(weights, Tensor) else type(weights).__name__
        raise ValueError(f"mil_nce: positive_weights must be {reference.logits_dtype(call)}, got {kind}")
    if weights.shape != call.positives.shape or weights.device != call.positives.device:
        raise ValueError(
            f"mil_nce: positive_weights must have the shape {list(call.positives.shape)} and device of positives, "
            f"got {list(weights.shape)} on {weights.device}"
        )
    if call.negatives is not None:
        raise ValueError("mil_nce: positive_weights cannot be used with negatives; give one of them")
    fits = ((weights >= 0) & weights.isfinite()).all()
    if weights.device.type != "cpu" or torch.compiler.is_compiling():
        torch._assert_async(fits, "mil_nce: positive_weights must be finite and >= 0")
        return
    if not torch._C._functorch.is_functorch_wrapped_tensor(fits) and not bool(fits):
        wrong = weights[~((weights >= 0) & weights.isfinite())][0].item()
        raise ValueError(f"mil_nce: positive_weights must be finite and >= 0, got {wrong}")
    check_positives_in_range(call.positives, call.keys.shape[0])


def counted(call: LossCall) -> Tensor:
    """Returns which places of `positives` add their weight: [B, P] bool.

    Each entry once, at its first place; no padding, no empty slot, and no entry of the query's own id, which is a
    positive of weight 1 or left out already (`siblings=0`: an entry as any other).
    """
    listed = call.positives
    counts = (listed >= 0) & (listed < call.keys.shape[0])
    earlier = torch.ones_like(listed[:1, :, None] == listed[:1, None, :]).tril(-1)  # [1, P, P]
    counts = counts & ~((listed[:, :, None] == listed[:, None, :]) & earlier).any(dim=2)
    if call.key_ids is not None and call.keys.shape[0]:
        key_ids = call.key_ids[torch.where(counts, listed, 0)]
        counts = counts & (key_ids >= 0)
        if call.query_ids is not None and call.siblings != 0:
            counts = counts & (key_ids != call.query_ids[:, None])
    return counts


def loss(call: LossCall, weights: Tensor, sweep: Sweep) -> Tensor:
    """Returns ``logsumexp(all) - log(sum over own and siblings exp(logit) + sum over listed w exp(logit))``: [B].

    With x the logsumexp of ``log w + logit`` over the listed and y that of the other positives it is the loss without
    listed positives, less ``log(1 + exp(x - y))``; y is the own logit, to which, with siblings as positives, the
    difference of two sweeps is added.
    """
    dtype = reference.logits_dtype(call)
    query = call.query.to(dtype)
    alone = call._replace(positives=call.positives[:, :0])
    own = (query * call.positive.to(dtype)).sum(dim=1) / call.temperature
    with_siblings = call.siblings == 1 and call.query_ids is not None and call.key_ids is not None
    of_own = sweep(
        alone._replace(siblings=0, use_own=None) if with_siblings else alone._replace(use_own=None)
    )
    without, others = (sweep(alone), None) if with_siblings else (of_own, own)
    if others is None:
        others = own + (of_own - without)

    counts = counted(call) & (weights > 0)
    some = counts.any(dim=1)
    place = torch.where(counts, call.positives, 0)
    keys = call.keys[place] if call.keys.shape[0] else call.keys.new_zeros(*place.shape, query.shape[1])
    keys = torch.where(counts[:, :, None], keys.to(dtype), 0)  # what does not count may be NaN
    logits = (query[:, None, :] * keys).sum(dim=2) / call.temperature  # [B, P]
    logits = logits + torch.where(counts, weights, 1).log()
    # rows without any: finite numbers in place of a logsumexp over nothing, whose gradient is NaN
    logits = torch.where(counts | ~some[:, None], logits, -torch.inf)
    listed = logits.logsumexp(dim=1) if logits.shape[1] else torch.zeros_like(own)
    result = torch.where(some, without - torch.logaddexp(listed - others, torch.zeros_like(own)), without)
    if call.use_own is None:
        return result
    instead = some & ~call.use_own & ~_has_sibling(call, with_siblings)
    return torch.where(instead, of_own + own - listed, result)


def _has_sibling(call: LossCall, with_siblings: bool) -> Tensor:
    """Returns which queries have a positive by their id, without a table of B x N: [B] bool."""
    if not with_siblings or call.query_ids is None or call.key_ids is None:
        return torch.zeros(call.query.shape[0], dtype=torch.bool, device=call.query.device)
    return torch.isin(call.query_ids, call.key_ids) & (call.query_ids >= 0)
