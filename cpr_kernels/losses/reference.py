"""The meaning of `cpr::mil_nce` in plain torch: eq. 2 of Wu et al. 2022 by logsumexp."""

from __future__ import annotations

from typing import NamedTuple

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
    """Returns what logits are computed in: float32, or float64 where the keys are, which hold the other features."""
    return torch.float64 if call.keys.dtype == torch.float64 else torch.float32


def finite_features(features: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns the features with zeros in place of NaN and infinity, so that a weight of 0 adds 0."""
    return features.to(dtype).nan_to_num(0.0, 0.0, 0.0)


def scores_of(call: LossCall) -> Tensor:
    """Returns all scores [B, 1 + N] in the logits' dtype, the own pair first; NaN in place of infinity too."""
    dtype = logits_dtype(call)
    query, positive, keys = (t.to(dtype) for t in (call.query, call.positive, call.keys))
    own = (query * positive).sum(dim=1, keepdim=True)  # [B, 1]
    scores = torch.cat([own, query @ keys.T], dim=1)
    return torch.where(scores.isfinite(), scores, torch.nan)


def logits_of(call: LossCall) -> Tensor:
    """Returns all logits [B, 1 + N], the own pair first."""
    return scores_of(call) / call.temperature


class Sums(NamedTuple):
    """A logsumexp over some of a query's columns, in two parts, so that no temperature makes it overflow."""

    top: Tensor  # [B] highest score
    log_mass: Tensor  # [B] log of the sum of exp((score - top) / temperature)

    def weights(self, call: LossCall, scores: Tensor, mask: Tensor) -> Tensor:
        """Returns d logsumexp / d logits: [B, 1 + N]."""
        logits = (scores - self.top[:, None]) / call.temperature - self.log_mass[:, None]
        return logits.exp().masked_fill(~mask, 0)

    def lse(self, call: LossCall) -> Tensor:
        """Returns the logsumexp [B] of the logits; infinite where the logits leave the dtype."""
        return self.top / call.temperature + self.log_mass


def sums_of(call: LossCall, scores: Tensor, mask: Tensor) -> Sums:
    """Returns the sums over the columns in `mask`; NaN where one of them is."""
    scores = scores.masked_fill(~mask, -torch.inf)
    top = scores.detach().amax(dim=1)  # no derivative depends on it
    return Sums(top, ((scores - top[:, None]) / call.temperature).exp().sum(dim=1).log())


def _both_sums(call: LossCall) -> tuple[Tensor, tuple[Tensor, Tensor], tuple[Sums, Sums]]:
    """Scores, masks and sums of all columns that take part, and of the positive ones."""
    scores, masks = scores_of(call), columns(call)
    every, of_positive = (sums_of(call, scores, mask) for mask in masks)
    spoilt = every.top * 0  # NaN where a score that takes part is
    return scores, masks, (every, Sums(of_positive.top + spoilt, of_positive.log_mass))


def _loss(call: LossCall, every: Sums, positive: Sums) -> Tensor:
    gap = (every.top - positive.top) / call.temperature
    return gap.clamp(max=torch.finfo(gap.dtype).max) + (every.log_mass - positive.log_mass)


def run(call: LossCall) -> Tensor:
    """`loss [B]`, the definition; differentiable by autograd where all inputs are finite."""
    _, _, sums = _both_sums(call)
    return _loss(call, *sums)


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
    scores, masks, sums = _both_sums(call)
    of_all, of_positive = (part.weights(call, scores, mask) for part, mask in zip(sums, masks))
    weights = of_all - of_positive
    grad_query = weights.new_empty(0, call.query.shape[1])
    if want_gradient:
        positive, keys = (finite_features(t, weights.dtype) for t in (call.positive, call.keys))
        grad_query = (weights[:, :1] * positive + weights[:, 1:] @ keys) / call.temperature
    lse_all, lse_positive = (part.lse(call) for part in sums)
    return Sweep(_loss(call, *sums), lse_all, lse_positive, weights[:, 0].clone(), grad_query)


@torch.no_grad()
def keys_gradient(call: LossCall, grad_loss: Tensor, lse_all: Tensor, lse_positive: Tensor) -> Tensor:
    """d (grad_loss . loss) / d keys: [N, D] in the keys' dtype."""
    weights = (
        weights_of(call, lse_all, lse_positive)[:, 1:] * (grad_loss / call.temperature)[:, None]
    )  # [B, N]
    return (weights.T @ finite_features(call.query, weights.dtype)).to(call.keys.dtype)
