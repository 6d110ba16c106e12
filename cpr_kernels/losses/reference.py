"""The meaning of `cpr::mil_nce` in plain torch: eq. 2 of Wu et al. 2022 by logsumexp."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch.calls import LossCall, Sweep

NAME = "reference"


def why_not(call: LossCall) -> str | None:
    """The reference refuses nothing but a shard, of which it would see one rank's entries only."""
    return call.sharded


def columns(call: LossCall) -> tuple[Tensor, Tensor]:
    """Which logits [B, 1 + N] take part at all, and which are positives. Column 0 is the query's own pair."""
    num_queries, num_keys = call.query.shape[0], call.keys.shape[0]
    device = call.query.device
    taking_part = torch.ones(num_queries, num_keys, dtype=torch.bool, device=device)
    listed = torch.zeros(num_queries, num_keys + 1, dtype=torch.bool, device=device)
    in_range = (call.positives >= 0) & (call.positives < num_keys)
    # padding writes into a column of its own, which is cut off: [B, N]
    positive = listed.scatter_(1, torch.where(in_range, call.positives, num_keys), True)[:, :num_keys]
    if call.key_ids is not None:
        taking_part &= call.key_ids[None, :] >= 0
        if call.query_ids is not None:
            sibling = call.key_ids[None, :] == call.query_ids[:, None]
            if call.siblings == 1:
                positive = positive | sibling
            elif call.siblings == 2:
                taking_part &= ~sibling
    positive = positive & taking_part

    own = torch.ones(num_queries, 1, dtype=torch.bool, device=device)
    own_positive = own
    if call.use_own is not None:
        own_positive = call.use_own[:, None] | ~positive.any(dim=1, keepdim=True)
    return torch.cat([own, taking_part], dim=1), torch.cat([own_positive, positive], dim=1)


def logits_dtype(call: LossCall) -> torch.dtype:
    """What logits are computed in: float32, or float64 where the keys are, which hold the other features' numbers."""
    return torch.float64 if call.keys.dtype == torch.float64 else torch.float32


def logits_of(call: LossCall) -> Tensor:
    """All logits [B, 1 + N] in their own dtype, the own pair first."""
    dtype = logits_dtype(call)
    query, positive, keys = (t.to(dtype) for t in (call.query, call.positive, call.keys))
    own = (query * positive).sum(dim=1, keepdim=True)  # [B, 1]
    return torch.cat([own, query @ keys.T], dim=1) / call.temperature


def logsumexps(call: LossCall) -> tuple[Tensor, Tensor]:
    """Logsumexp [B] over all logits that take part, and over the positive ones."""
    logits = logits_of(call)
    taking_part, is_positive = columns(call)
    lse_all = logits.masked_fill(~taking_part, -torch.inf).logsumexp(dim=1)
    lse_positive = logits.masked_fill(~is_positive, -torch.inf).logsumexp(dim=1)
    return lse_all, lse_positive


def run(call: LossCall) -> Tensor:
    """`loss [B]`, the definition; differentiable by autograd."""
    lse_all, lse_positive = logsumexps(call)
    return lse_all - lse_positive


def weights_of(call: LossCall, lse_all: Tensor, lse_positive: Tensor) -> Tensor:
    """d loss[b] / d logit[b, j] for all columns: [B, 1 + N]."""
    logits = logits_of(call)
    taking_part, is_positive = columns(call)
    of_all = (logits - lse_all[:, None]).exp().masked_fill(~taking_part, 0)
    of_positive = (logits - lse_positive[:, None]).exp().masked_fill(~is_positive, 0)
    return of_all - of_positive


@torch.no_grad()
def sweep(call: LossCall, want_gradient: bool) -> Sweep:
    """The loss and what its gradients need, from explicit formulas."""
    lse_all, lse_positive = logsumexps(call)
    weights = weights_of(call, lse_all, lse_positive)
    grad_query = weights.new_empty(0, call.query.shape[1])
    if want_gradient:
        positive, keys = call.positive.to(weights.dtype), call.keys.to(weights.dtype)
        grad_query = (weights[:, :1] * positive + weights[:, 1:] @ keys) / call.temperature
    return Sweep(lse_all - lse_positive, lse_all, lse_positive, weights[:, 0].clone(), grad_query)


@torch.no_grad()
def keys_gradient(call: LossCall, grad_loss: Tensor, lse_all: Tensor, lse_positive: Tensor) -> Tensor:
    """d (grad_loss . loss) / d keys: [N, D] in the keys' dtype."""
    weights = (
        weights_of(call, lse_all, lse_positive)[:, 1:] * (grad_loss / call.temperature)[:, None]
    )  # [B, N]
    return (weights.T @ call.query.to(weights.dtype)).to(call.keys.dtype)
