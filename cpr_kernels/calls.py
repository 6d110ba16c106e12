"""The arguments of each op as one value, so that a backend is `why_not(call)` and `run(call)`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from .shards import why_not_sharded


class CascadeCall(NamedTuple):
    """Checked arguments of `cpr::cascade_topk` (shapes as in DESIGN 3.1)."""

    queries: Sequence[Tensor]  # V x [B, D_v]
    keys: Sequence[Any]  # V x [N, D_v]: tensors, or ShardedKeys
    stage_weights: Sequence[float]  # [S * V], row-major
    stage_keep: Sequence[int]  # [S]
    query_ids: Tensor | None  # [B] int64
    key_ids: Tensor | None  # [N] int64
    exclude: Tensor | None  # [B, N] bool

    @property
    def sharded(self) -> str | None:
        """Why a backend that sees this process alone cannot run the call; None where the keys are tensors."""
        return why_not_sharded(self.keys[0])


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

    @property
    def cascade(self) -> CascadeCall:
        """The same call over all N entries."""
        return CascadeCall(self.queries, self.keys, *self[3:])

    @property
    def sharded(self) -> str | None:
        """As of the cascade."""
        return self.cascade.sharded


class LossCall(NamedTuple):
    """Checked arguments of `cpr::mil_nce` (shapes as in DESIGN 3.2)."""

    query: Tensor  # [B, D]
    positive: Tensor  # [B, D]
    keys: Any  # [N, D]: a tensor, or ShardedKeys
    positives: Tensor  # [B, P] int64, -1 is padding
    temperature: float
    query_ids: Tensor | None  # [B] int64
    key_ids: Tensor | None  # [N] int64
    use_own: Tensor | None  # [B] bool
    siblings: int  # 1 positives, 2 left out, 0 negatives

    @property
    def sharded(self) -> str | None:
        """Why a backend that sees this process alone cannot run the call; None where the keys are a tensor."""
        return why_not_sharded(self.keys)
