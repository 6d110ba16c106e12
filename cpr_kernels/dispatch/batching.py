"""What the batching rules of torch.func.vmap share: a batch folded into the rows, or one call after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


def fold(value: Tensor | None, dim: int | None, size: int) -> Tensor | None:
    """[size * B, ...] of a batch of [B, ...] along `dim`; None for a value that every call shares."""
    if value is None:
        return None
    batch = value.expand(size, *value.shape) if dim is None else value.movedim(dim, 0)
    return batch.flatten(0, 1)


def unfold(value: Tensor, size: int) -> Tensor:
    """[size, B, ...] of [size * B, ...]."""
    return value.reshape(size, value.shape[0] // size, *value.shape[1:])


def looped(
    function: Callable[..., Any], size: int, in_dims: Sequence[Any], inputs: Sequence[Any]
) -> tuple[Any, Any]:
    """`function` of each of `size` calls in turn, results stacked, and the dimension of each result's batch."""

    def call(i: int) -> Any:
        def select(value: Any, dim: int | None) -> Any:
            if dim is None:
                return value
            return value.select(dim, i) if size else value.sum(dim).to(value.dtype)  # of nothing: zeros

        return function(*pytree.tree_map(select, tuple(inputs), tuple(in_dims)))

    results = [call(i) for i in range(max(size, 1))]
    stack = torch.stack if size else lambda parts: torch.stack(parts)[:0]
    if isinstance(results[0], Tensor):
        return stack(results), 0
    stacked = tuple(None if part[0] is None else stack(part) for part in zip(*results))
    return stacked, tuple(None if part is None else 0 for part in stacked)
