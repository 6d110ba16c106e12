"""The arguments of each op as one value, so that a backend is `why_not(call)` and `run(call)`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class CascadeCall(NamedTuple):
    """Checked arguments of `cpr::cascade_topk` (shapes as in DESIGN 3.1)."""

    queries: Sequence[Tensor]  # V x [B, D_v]
    keys: Sequence[Tensor]  # V x [N, D_v]
    stage_weights: Sequence[float]  # [S * V], row-major
    stage_keep: Sequence[int]  # [S]
    query_ids: Tensor | None  # [B] int64
    key_ids: Tensor | None  # [N] int64
    exclude: Tensor | None  # [B, N] bool


class RerankCall(NamedTuple):
    """Checked arguments of `cpr::cascade_rerank`: a cascade over listed entries only."""

    queries: Sequence[Tensor]  # V x [B, D_v]
    keys: Sequence[Tensor]  # V x [N, D_v]
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


class LossCall(NamedTuple):
    """Checked arguments of `cpr::mil_nce` (shapes as in DESIGN 3.2)."""

    query: Tensor  # [B, D]
    positive: Tensor  # [B, D]
    keys: Tensor  # [N, D]
    positives: Tensor  # [B, P] int64, -1 is padding
    temperature: float
    query_ids: Tensor | None  # [B] int64
    key_ids: Tensor | None  # [N] int64
    use_own: Tensor | None  # [B] bool
    siblings: int  # 1 positives, 2 left out, 0 negatives
