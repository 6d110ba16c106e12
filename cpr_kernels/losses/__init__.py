"""What do I minimise? Tensors in, a loss out; no state, never mines."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..dispatch.backends import choose
from ..dispatch.calls import LossCall
from ..dispatch.checks import check_loss
from ..dispatch.graph_break import graph_break
from ..dispatch.sharded_keys import ShardedKeys, broadcast_errors
from ..dispatch.tensor_checks import check_one_kind
from . import native, reference, sharded, triton_backend
from .autograd import run_directly

__all__ = ["MILNCELoss", "mil_nce"]

# in order of preference; each has NAME, why_not(call), sweep(...), keys_gradient(...); sharded has run(call) instead
BACKENDS = (native, triton_backend, sharded, reference)

_REDUCTIONS = ("mean", "sum", "none")


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
    query_ids: Tensor | None = None,
    key_ids: Tensor | None = None,
    use_own: Tensor | None = None,
    siblings: int = 1,
) -> LossCall:
    """The op's arguments; no `positives` is InfoNCE, an empty list for every query."""
    if positives is None:
        positives = query.new_empty(
            (query.shape[0] if query.dim() else 0, 0), dtype=torch.int64, layout=torch.strided
        )
    check_one_kind("mil_nce", (query, positive, keys, positives, query_ids, key_ids, use_own))
    return LossCall(query, positive, keys, positives, temperature, query_ids, key_ids, use_own, siblings)


def check_call(call: LossCall) -> None:
    """Refuse what the op refuses, with ValueError; also where the keys are sharded."""
    if call.sharded:
        sharded.check(call)
    else:
        check_loss(call)


def mil_nce(
    query: Tensor,
    positive: Tensor,
    keys: Tensor | ShardedKeys,
    positives: Tensor | None = None,
    temperature: float = 0.07,
    *,
    query_ids: Tensor | None = None,
    key_ids: Tensor | None = None,
    use_own: Tensor | None = None,
    siblings: int = 1,
    reduction: str = "mean",
    backend: str = "auto",
) -> Tensor:
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
        query_ids: [B] int64 source of each query.
        key_ids: [N] int64 source of each entry; entries with a negative id take no part. Of a sharded queue: of
            the entries that this rank holds.
        use_own: [B] bool; False takes the own pair out of the numerator (not the denominator) where another
            positive exists.
        siblings: what entries with the query's id are: 1 positives, 2 left out of both sums, 0 negatives.
        reduction: "mean", "sum" or "none" (loss [B]).
        backend: ``"auto"``, or a name of :func:`explain`'s table; one that cannot run is an error.

    Returns:
        The loss in float32 (float64 for float64 keys); deterministic. Differentiable with respect to query,
        positive and keys: backward, forward mode, second derivatives (in plain torch by blocks of queries; of a
        sharded queue: backward only) and torch.func's transforms. Where the keys take no gradient, neither they
        nor their ids are saved: writing to the queue between the loss and its backward pass is allowed.

    Raises:
        ValueError: an argument that does not fit, named with what was expected and what came.
        RuntimeError: of a sharded queue: a rank has ended, refused its arguments or makes another call. In a third
            derivative, or in a second one of inputs that were written to after the loss.
    """
    _check_reduction(reduction)
    if isinstance(keys, ShardedKeys):
        arguments = (query, positive, keys, positives, temperature, query_ids, key_ids, use_own, siblings)
        return _reduced(_over_shards(backend, keys, *arguments), reduction)
    call = as_call(query, positive, keys, positives, temperature, query_ids, key_ids, use_own, siblings)
    if backend == "auto":
        loss = run_directly(call)
        return _reduced(torch.ops.cpr.mil_nce(*call) if loss is None else loss, reduction)
    return _reduced(torch.ops.cpr._mil_nce_on(*call, backend=backend), reduction)


@graph_break
def _over_shards(backend: str, keys: ShardedKeys, *arguments: Any) -> Tensor:
    """`mil_nce` of a sharded queue, loss [B]; all ranks learn of a refusal here."""
    with broadcast_errors(keys.shard, "mil_nce"):
        call = as_call(*arguments)
        check_call(call)
        choose(BACKENDS, call, backend)  # raises for every other name
    return sharded.run(call)


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
        query_ids: Tensor | None = None,
        key_ids: Tensor | None = None,
        use_own: Tensor | None = None,
    ) -> Tensor:
        """The loss; arguments as :func:`mil_nce`."""
        return mil_nce(
            query,
            positive,
            keys,
            positives,
            self.temperature,
            query_ids=query_ids,
            key_ids=key_ids,
            use_own=use_own,
            siblings=self.siblings,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        """Settings, for printing the module."""
        return f"temperature={self.temperature}, siblings={self.siblings}, reduction={self.reduction!r}"
