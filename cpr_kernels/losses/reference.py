"""The meaning of `cpr::mil_nce` in plain torch: eq. 2 of Wu et al. 2022 by logsumexp."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..dispatch.calls import LossCall, Sweep

NAME = "reference"
TOP = (1, 5)  # places of the best logits that statistics are about


def why_not(call: LossCall) -> str | None:
    """The reference refuses nothing but a shard, of which it would see one rank's entries only."""
    return call.sharded


class Columns(NamedTuple):
    """How often each logit [B, 1 + N] is in a query's sums; column 0 is the query's own pair."""

    every: Tensor  # int64, of the denominator: 0 or 1, and as often as a drawn negative is listed
    positive: Tensor  # int64, of the numerator


def _listed(lists: Tensor, num_keys: int) -> Tensor:
    """How often each key is listed: [B, N] int64."""
    place = torch.where(
        (lists >= 0) & (lists < num_keys), lists, num_keys
    )  # padding counts for a column of its own
    counts = lists.new_zeros(lists.shape[0], num_keys + 1)
    return counts.scatter_add_(1, place, torch.ones_like(place))[:, :num_keys]


def columns(call: LossCall) -> Columns:
    """Returns how often each logit takes part at all, and among the positives."""
    num_queries, num_keys = call.query.shape[0], call.keys.shape[0]
    positive = _listed(call.positives, num_keys) > 0  # [B, N]
    every = torch.ones_like(positive, dtype=torch.int64)
    if call.negatives is not None:
        every = torch.where(positive, every, _listed(call.negatives, num_keys))
    if call.key_ids is not None:
        every = every * (call.key_ids[None, :] >= 0)
        if call.query_ids is not None:
            sibling = call.key_ids[None, :] == call.query_ids[:, None]
            if call.siblings == 1:
                positive = positive | sibling
            elif call.siblings == 2:
                every = every * ~sibling
    of_positives = every * positive

    own = torch.ones(num_queries, 1, dtype=torch.int64, device=call.query.device)
    own_positive = own
    if call.use_own is not None:
        own_positive = (call.use_own[:, None] | ~of_positives.any(dim=1, keepdim=True)).long()
    return Columns(torch.cat([own, every], dim=1), torch.cat([own_positive, of_positives], dim=1))


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

    def weights(self, call: LossCall, scores: Tensor, counts: Tensor) -> Tensor:
        """Returns d logsumexp / d logits: [B, 1 + N]."""
        logits = (scores - self.top[:, None]) / call.temperature - self.log_mass[:, None]
        return _times(logits.exp(), counts)

    def lse(self, call: LossCall) -> Tensor:
        """Returns the logsumexp [B] of the logits; infinite where the logits leave the dtype."""
        return self.top / call.temperature + self.log_mass


def _times(weights: Tensor, counts: Tensor) -> Tensor:
    """``weights * counts``, 0 where a column is not in the sums whatever its weight."""
    return (weights * counts).masked_fill(counts == 0, 0)


def sums_of(call: LossCall, scores: Tensor, counts: Tensor) -> Sums:
    """Returns the sums over the columns, each as often as it counts; NaN where one of them is."""
    scores = scores.masked_fill(counts == 0, -torch.inf)
    top = scores.detach().amax(dim=1)  # no derivative depends on it
    return Sums(top, (((scores - top[:, None]) / call.temperature).exp() * counts).sum(dim=1).log())


def stats_of(scores: Tensor, counts: Columns, loss: Tensor) -> Tensor:
    """Returns the statistics [B, 3] of `losses.LogitStats`: own rank, positives among the best one and five."""
    above = (counts.every * (scores > scores[:, :1])).sum(dim=1)
    best_first = scores.masked_fill(counts.every == 0, -torch.inf).sort(dim=1, descending=True, stable=True)[
        1
    ]
    ranked, positive = (part.gather(1, best_first) for part in counts)
    before = ranked.cumsum(dim=1) - ranked
    hits = [((k - before).clamp(min=0).minimum(ranked) * (positive > 0)).sum(dim=1) for k in TOP]
    return torch.stack([above, *hits], dim=1).masked_fill(loss.isnan()[:, None], -1)


def _both_sums(call: LossCall) -> tuple[Tensor, Columns, tuple[Sums, Sums]]:
    """Scores, counts and sums of all columns that take part, and of the positive ones."""
    scores, counts = scores_of(call), columns(call)
    every, of_positive = (sums_of(call, scores, part) for part in counts)
    spoilt = every.top * 0  # NaN where a score that takes part is
    return scores, counts, (every, Sums(of_positive.top + spoilt, of_positive.log_mass))


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
    every, positive = columns(call)
    return _times((logits - lse_all[:, None]).exp(), every) - _times(
        (logits - lse_positive[:, None]).exp(), positive
    )


@torch.no_grad()
def sweep(call: LossCall, want_gradient: bool, want_stats: bool = False) -> Sweep:
    """The loss and what its gradients need, from explicit formulas."""
    scores, counts, sums = _both_sums(call)
    of_all, of_positive = (part.weights(call, scores, of_part) for part, of_part in zip(sums, counts))
    weights = of_all - of_positive
    grad_query = weights.new_empty(0, call.query.shape[1])
    if want_gradient:
        positive, keys = (finite_features(t, weights.dtype) for t in (call.positive, call.keys))
        grad_query = (weights[:, :1] * positive + weights[:, 1:] @ keys) / call.temperature
    lse_all, lse_positive = (part.lse(call) for part in sums)
    loss = _loss(call, *sums)
    stats = stats_of(scores, counts, loss) if want_stats else call.positives.new_empty(0, 3)
    return Sweep(loss, lse_all, lse_positive, weights[:, 0].clone(), grad_query, stats)


@torch.no_grad()
def keys_gradient(call: LossCall, grad_loss: Tensor, lse_all: Tensor, lse_positive: Tensor) -> Tensor:
    """d (grad_loss . loss) / d keys: [N, D] in the keys' dtype."""
    weights = (
        weights_of(call, lse_all, lse_positive)[:, 1:] * (grad_loss / call.temperature)[:, None]
    )  # [B, N]
    return (weights.T @ finite_features(call.query, weights.dtype)).to(call.keys.dtype)
