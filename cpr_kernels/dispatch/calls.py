"""The arguments of each op as one value, so that a backend is `why_not(call)` and `run(call)`."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .sharded_keys import why_not_sharded


def has_unit_inner_stride(tensor: Tensor) -> bool:
    """Returns True where a kernel can read the rows in place: their inner stride is 1."""
    return tensor.is_contiguous() or tensor.stride(1) == 1 or tensor.shape[1] <= 1


def row_contiguous(tensor: Tensor) -> Tensor:
    """The tensor itself when its inner stride is 1, else a contiguous copy."""
    return tensor if has_unit_inner_stride(tensor) else tensor.contiguous()


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _all_contiguous_rows(features: Sequence[Tensor], *masks: Tensor | None) -> bool:
    return all(map(has_unit_inner_stride, features)) and all(
        mask is None or mask.is_contiguous() for mask in masks
    )


def common_dtype(tensors: Sequence[Any]) -> torch.dtype:
    """The least dtype that holds the numbers of all tensors."""
    return functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors))


class CascadeCall(NamedTuple):
    """Holds the checked arguments of `cpr::cascade_topk`."""

    queries: Sequence[Tensor]  # V x [B, D_v]
    keys: Sequence[Any]  # V x [N, D_v]: tensors, or ShardedKeys
    stage_weights: Sequence[float]  # [S * V], row-major
    stage_keep: Sequence[int]  # [S]
    query_ids: Tensor | None  # [B] int64
    key_ids: Tensor | None  # [N] int64
    exclude: Tensor | None  # [B, N] bool
    key_bias: Tensor | None = None  # [N] float32

    @property
    def sharded(self) -> str | None:
        """Why a backend that sees this process alone cannot run the call; None where the keys are tensors."""
        return why_not_sharded(self.keys[0])

    def with_contiguous_rows(self) -> CascadeCall:
        """The same call as kernels can walk it: features and `exclude` with unit inner stride, all else dense."""
        masks = (self.query_ids, self.key_ids, self.exclude, self.key_bias)
        if _all_contiguous_rows((*self.queries, *self.keys), *masks):
            return self
        return self._replace(
            queries=[row_contiguous(query) for query in self.queries],
            keys=[row_contiguous(key) for key in self.keys],
            query_ids=_contiguous(self.query_ids),
            key_ids=_contiguous(self.key_ids),
            exclude=None if self.exclude is None else row_contiguous(self.exclude),
            key_bias=_contiguous(self.key_bias),
        )

    def in_one_dtype(self) -> CascadeCall:
        """The same call with all features in the least dtype that holds them: copies of those in a lower one."""
        dtype = self.queries[0].dtype
        if self.sharded or all(tensor.dtype == dtype for tensor in (*self.queries, *self.keys)):
            return self
        dtype = common_dtype((*self.queries, *self.keys))
        return self._replace(
            queries=[query.to(dtype) for query in self.queries], keys=[key.to(dtype) for key in self.keys]
        )

    def part(self, first: int, count: int) -> CascadeCall:
        """The same call for `count` queries from `first` on; views of the same memory."""
        rows = slice(first, first + count)
        return self._replace(
            queries=[query[rows] for query in self.queries],
            query_ids=None if self.query_ids is None else self.query_ids[rows],
            exclude=None if self.exclude is None else self.exclude[rows],
        )


class RerankCall(NamedTuple):
    """Checked arguments of `cpr::cascade_rerank`: a cascade over listed entries only."""

    queries: Sequence[Tensor]  # V x [B, D_v]
    keys: Sequence[Any]  # V x [N, D_v]: tensors, or ShardedKeys, which no backend reranks
    candidates: Tensor  # [B, C] int64, -1 is padding, a repeat counts once
    stage_weights: Sequence[float]  # [S * V], row-major
    stage_keep: Sequence[int]  # [S]
    query_ids: Tensor | None  # [B] int64
    key_ids: Tensor | None  # [N] int64
    exclude: Tensor | None  # [B, N] bool
    key_bias: Tensor | None = None  # [N] float32

    @property
    def cascade(self) -> CascadeCall:
        """The same call over all N entries."""
        return CascadeCall(self.queries, self.keys, *self[3:])

    @property
    def sharded(self) -> str | None:
        """As of the cascade."""
        return self.cascade.sharded

    def in_one_dtype(self) -> RerankCall:
        """As of the cascade."""
        cascade = self.cascade.in_one_dtype()
        return self._replace(queries=cascade.queries, keys=cascade.keys)


class LossCall(NamedTuple):
    """Holds the checked arguments of `cpr::mil_nce`."""

    query: Tensor  # [B, D]
    positive: Tensor  # [B, D]
    keys: Any  # [N, D]: a tensor, or ShardedKeys
    positives: Tensor  # [B, P] int64, -1 is padding
    temperature: float
    query_ids: Tensor | None  # [B] int64
    key_ids: Tensor | None  # [N] int64
    use_own: Tensor | None  # [B] bool
    siblings: int  # 1 positives, 2 left out, 0 negatives
    negatives: Tensor | None = None  # [B, M] int64, -1 is padding; None: all keys

    @property
    def sharded(self) -> str | None:
        """Why a backend that sees this process alone cannot run the call; None where the keys are a tensor."""
        return why_not_sharded(self.keys)

    def in_one_dtype(self) -> LossCall:
        """The same call with all features in the least dtype that holds them: copies of those in a lower one."""
        features = (self.query, self.positive, self.keys)
        if self.sharded or features[0].dtype == features[1].dtype == features[2].dtype:
            return self
        query, positive, keys = (tensor.to(common_dtype(features)) for tensor in features)
        return self._replace(query=query, positive=positive, keys=keys)

    def with_contiguous_rows(self) -> LossCall:
        """The same call as kernels can walk it: features with unit inner stride, all else without gaps."""
        return self._replace(
            query=row_contiguous(self.query),
            positive=row_contiguous(self.positive),
            keys=row_contiguous(self.keys),
            positives=self.positives.contiguous(),
            query_ids=_contiguous(self.query_ids),
            key_ids=_contiguous(self.key_ids),
            use_own=_contiguous(self.use_own),
            negatives=_contiguous(self.negatives),
        )


class Sweep(NamedTuple):
    """What one pass over the keys leaves for the loss and every gradient."""

    loss: Tensor  # [B]
    lse_all: Tensor  # [B], logsumexp of all logits
    lse_positive: Tensor  # [B], logsumexp of the positive logits
    own_weight: Tensor  # [B], d loss[b] / d (own logit)
    grad_query: Tensor  # [B, D], d loss[b] / d query[b]; [0, D] where it is not wanted
    stats: Tensor  # [B, 3] int64, see `losses.LogitStats`; [0, 3] where they are not wanted
