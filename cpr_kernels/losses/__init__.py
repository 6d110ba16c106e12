"""What do I minimise? Tensors in, a loss out; no state, never mines."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypedDict, overload

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from ..dispatch.backends import choose, in_profiles
from ..dispatch.calls import LossCall
from ..dispatch.checks import check_loss
from ..dispatch.graph_break import graph_break
from ..dispatch.sharded_keys import ShardedKeys, broadcast_errors
from ..dispatch.tensor_checks import check_one_kind
from . import native, reference, sharded, triton_backend, weighted
from .autograd import run_directly

__all__ = ["LogitStats", "LossMasks", "MILNCELoss", "mil_nce"]

# in order of preference; each has NAME, why_not(call), sweep(...), keys_gradient(...); sharded has run(call) instead
BACKENDS = (native, triton_backend, sharded, reference)

_REDUCTIONS = ("mean", "sum", "none")


class LossMasks(TypedDict, total=False):
    """Which entries take part in :func:`mil_nce`, and as what; every member may be left out.

    Members:
        query_ids: [B] int64 source of each query.
        key_ids: [N] int64 source of each entry; entries with a negative id take no part. Of a sharded queue: of
            the entries that this rank holds.
        use_own: [B] bool; False takes the own pair out of the numerator (not the denominator) where another
            positive exists.
        siblings: what entries with the query's id are: 1 positives (default), 2 left out of both sums, 0 negatives.
        negatives: [B, M] int64 indices into keys, -1 is padding: entries of the denominator in place of all keys
            (drawn negatives: NCE of IIC, CMC). Each place is a logit, so that an entry counts as often as it is
            drawn; one that `positives` lists counts once, as a positive. Ids rule drawn entries as all others.
        positive_weights: [B, P] float32 (float64 for float64 keys), finite and >= 0: how much each place of `positives`
            counts in the numerator, as a confidence; the denominator does not change. The loss is
            ``logsumexp(all) - log(sum_own,siblings exp(logit) + sum_listed w exp(logit))``: 1 is a positive as without
            weights (equal up to rounding), 0 a negative (bit for bit as if it were not listed). The own pair and
            siblings have weight 1; a repeat has that of its first place. Differentiable in weights > 0. Not with
            `negatives` or a sharded queue. It costs, beside the sweep, [B, P, D] numbers, and where siblings are
            positives a second sweep of the keys.
    """

    query_ids: Tensor | None
    key_ids: Tensor | None
    use_own: Tensor | None
    siblings: int
    negatives: Tensor | None
    positive_weights: Tensor | None


class LogitStats(NamedTuple):
    """What accuracies need of the logits of each query, [B] int64 each; -1 where the loss is NaN.

    Logits rank by (value descending, own pair first, index ascending), as in ``logits.topk``. MoCo's top-5 accuracy
    is ``(own_rank < 5).float().mean()``, CoCLR's ``(positives_in_top5 > 0).float().mean()``, and the share of
    positives among the best five ``positives_in_top5.float().mean() / 5``.
    """

    own_rank: Tensor  # logits that are greater than the own pair's
    positives_in_top1: Tensor
    positives_in_top5: Tensor


def _check_reduction(reduction: str) -> None:
    if reduction not in _REDUCTIONS:
        raise ValueError(f"mil_nce: reduction must be one of {', '.join(_REDUCTIONS)}, got {reduction!r}")


def _reduced(loss: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return loss
    return loss.mean() if reduction == "mean" else loss.sum()


def as_call(
    query: Tensor,
    positive: Tensor,
    keys: Tensor | ShardedKeys,
    positives: Tensor | None = None,
    temperature: float = 0.07,
    **masks: Unpack[LossMasks],
) -> LossCall:
    """The op's arguments; no `positives` is InfoNCE, an empty list for every query. Weights are not among them: they
    choose no backend.
    """
    masks.pop("positive_weights", None)
    if positives is None:
        positives = query.new_empty(
            (query.shape[0] if query.dim() else 0, 0), dtype=torch.int64, layout=torch.strided
        )
    arguments: dict[str, Any] = {"query_ids": None, "key_ids": None, "use_own": None, "siblings": 1, **masks}
    call = LossCall(query, positive, keys, positives, temperature, **arguments)
    check_one_kind("mil_nce", call[:4] + call[5:8] + call[9:])
    return call


def check_call(call: LossCall) -> None:
    """Refuse what the op refuses, with ValueError; also where the keys are sharded."""
    if call.sharded:
        sharded.check(call)
    else:
        check_loss(call)


@overload
def mil_nce(
    query: Tensor,
    positive: Tensor,
    keys: Tensor | ShardedKeys,
    positives: Tensor | None = None,
    temperature: float = 0.07,
    *,
    reduction: str = "mean",
    backend: str = "auto",
    return_stats: Literal[False] = False,
    **masks: Unpack[LossMasks],
) -> Tensor: ...


@overload
def mil_nce(
    query: Tensor,
    positive: Tensor,
    keys: Tensor | ShardedKeys,
    positives: Tensor | None = None,
    temperature: float = 0.07,
    *,
    reduction: str = "mean",
    backend: str = "auto",
    return_stats: Literal[True],
    **masks: Unpack[LossMasks],
) -> tuple[Tensor, LogitStats]: ...


def mil_nce(
    query: Tensor,
    positive: Tensor,
    keys: Tensor | ShardedKeys,
    positives: Tensor | None = None,
    temperature: float = 0.07,
    *,
    reduction: str = "mean",
    backend: str = "auto",
    return_stats: bool = False,
    **masks: Unpack[LossMasks],
) -> Tensor | tuple[Tensor, LogitStats]:
    """MIL-NCE over a queue: ``logsumexp(all logits) - logsumexp(positive logits)`` (Wu et al. 2022, eq. 2).

    The logits of query b are ``[query @ positive, query @ keys.T] / temperature``. Its positives are its own
    ``positive[b]``, the entries that ``positives[b]`` lists and, with ids, the entries of its own source.
    The published `multi_nce_loss` is ``-log((softmax(logits) * mask).sum())``; this is the same number,
    without underflow. Nothing of size B x N is made. With no positives: InfoNCE.

    Loss and gradients of a query are NaN, on every backend, where an inner product that takes part (its own, or
    with an entry that is in its sums) is NaN or infinite in float32: a number that is not finite, or products that
    overflow. What is left out (empty slots, siblings with ``siblings=2``) never counts. Otherwise the loss is finite
    at every temperature: 0 where the own pair is the only one, and at most float32's largest number. A gradient
    may overflow as any float32 result; that of keys wants logits (products over temperature) that float32 holds.

    Args:
        query: [B, D], float32, bfloat16, float16 (or float64, slow), of the keys' dtype or one that it holds; under
            autocast brought to the keys' dtype. Its gradient has its own dtype.
        positive: [B, D], the query's own key, likewise.
        keys: [N, D], the queue; or a view of a :class:`ShardedMultiViewQueue`, of which every rank then calls this
            at the same time with queries of its own (and `backward`, where the keys take a gradient).
        positives: [B, P] int64 indices into keys, -1 is padding, a repeat counts once; None for InfoNCE.
        temperature: divisor of the logits, > 0 in float32: from 1.18e-38 (float64 inputs: 2.3e-308) on.
        reduction: "mean", "sum" or "none" (loss [B]).
        backend: ``"auto"``, or a name of :func:`explain`'s table; one that cannot run is an error.
        return_stats: also return :class:`LogitStats`, taken from the logits as the loss passes over them.
        **masks: which entries take part, and as what: `query_ids`, `key_ids`, `use_own`, `siblings`, `negatives`
            and `positive_weights` of :class:`LossMasks`.

    Returns:
        The loss in float32 (float64 for float64 keys), with `return_stats` a pair of it and the statistics of each
        query; deterministic. Differentiable with respect to query,
        positive and keys: backward, forward mode, second derivatives (in plain torch by blocks of queries; of a
        sharded queue: backward only) and torch.func's transforms. Where the keys take no gradient, neither they
        nor their ids are saved: writing to the queue between the loss and its backward pass is allowed.

    Raises:
        ValueError: an argument that does not fit, named with what was expected and what came.
        RuntimeError: of a sharded queue: a rank has ended, refused its arguments or makes another call. In a third
            derivative, or in a second one of inputs that were written to after the loss.
    """
    _check_reduction(reduction)
    weights = masks.get("positive_weights")
    if isinstance(keys, ShardedKeys):
        if weights is not None:
            raise ValueError("mil_nce: positive_weights cannot be used with a sharded queue; leave them out")
        arguments = (query, positive, keys, positives, temperature)
        loss, stats = _over_shards(backend, keys, return_stats, *arguments, **masks)
    else:
        call = as_call(query, positive, keys, positives, temperature, **masks)
        if not return_stats:
            return _reduced(_loss_of(call, backend, weights), reduction)
        loss, stats = _loss_and_stats_of(call, backend)
        if weights is not None:
            loss = _loss_of(call, backend, weights)
    if not return_stats:
        return _reduced(loss, reduction)
    return _reduced(loss, reduction), LogitStats(*stats.unbind(dim=1))


def _loss_of(call: LossCall, backend: str, weights: Tensor | None = None) -> Tensor:
    """The loss [B], the listed positives weighted where weights are given."""
    if weights is not None:
        if not torch.compiler.is_compiling():  # the op checks then
            check_call(call)
        weighted.check(call, weights)
        return weighted.loss(call, weights, lambda part: _loss_of(part, backend))
    if backend != "auto":
        return torch.ops.cpr._mil_nce_on(*call, backend=backend)
    loss = run_directly(call)
    return torch.ops.cpr.mil_nce(*call) if loss is None else loss


def _loss_and_stats_of(call: LossCall, backend: str) -> tuple[Tensor, Tensor]:
    """The loss [B] and the statistics [B, 3]."""
    found = run_directly(call, want_stats=True) if backend == "auto" else None
    return torch.ops.cpr.mil_nce_stats(*call, backend=backend) if found is None else found


@graph_break
def _over_shards(
    backend: str, keys: ShardedKeys, want_stats: bool, *arguments: Any, **masks: Unpack[LossMasks]
) -> tuple[Tensor, Tensor]:
    """`mil_nce` of a sharded queue, loss [B] and statistics; all ranks learn of a refusal here."""
    with broadcast_errors(keys.shard, "mil_nce"):
        call = as_call(*arguments, **masks)
        check_call(call)
        choose(BACKENDS, call, backend)  # raises for every other name
    with in_profiles("mil_nce", sharded):
        return sharded.run(call, want_stats)


class MILNCELoss(nn.Module):
    """:func:`mil_nce` as a module that holds its settings.

    Args:
        temperature: divisor of the logits, > 0.
        siblings: what entries with the query's id are: 1 positives, 2 left out, 0 negatives.
        reduction: "mean", "sum" or "none".

    Example:
        >>> criterion = MILNCELoss(temperature=0.07)
        >>> loss = criterion(q, k, queue.views["rgb"], positives, query_ids=ids, key_ids=queue.ids)
    """

    def __init__(self, temperature: float = 0.07, *, siblings: int = 1, reduction: str = "mean") -> None:
        super().__init__()
        _check_reduction(reduction)
        if not temperature > 0:
            raise ValueError(f"MILNCELoss: temperature must be > 0, got {temperature}")
        self.temperature = temperature
        self.siblings = siblings
        self.reduction = reduction

    def forward(
        self,
        query: Tensor,
        positive: Tensor,
        keys: Tensor | ShardedKeys,
        positives: Tensor | None = None,
        *,
        return_stats: bool = False,
        **masks: Unpack[LossMasks],
    ) -> Tensor | tuple[Tensor, LogitStats]:
        """The loss; arguments as :func:`mil_nce`, `siblings` by default the module's."""
        masks.setdefault("siblings", self.siblings)
        settings: dict[str, Any] = {"reduction": self.reduction, "return_stats": return_stats}
        return mil_nce(query, positive, keys, positives, self.temperature, **settings, **masks)

    def extra_repr(self) -> str:
        """Settings, for printing the module."""
        return f"temperature={self.temperature}, siblings={self.siblings}, reduction={self.reduction!r}"
