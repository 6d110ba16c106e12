"""Embeddings from a file become what the ops take: centred, L2-normalised, one dtype, block by block."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

BLOCK = 1 << 22  # numbers converted at a time


def mean_row(array: Any) -> Tensor:
    """The mean of the finite rows of a view: [D] float64; 0 where there is none."""
    total, count = torch.zeros(array.shape[1], dtype=torch.float64), 0
    for block in _blocks(array):
        finite = block.isfinite().all(dim=1)
        total += block[finite].double().sum(dim=0)
        count += int(finite.sum())
    return total / max(count, 1)


class Prepared(NamedTuple):
    """A view's rows as the ops take them, and what was odd about them."""

    rows: Tensor  # [N, D]
    not_finite: int  # rows with a NaN or an infinity: all NaN now, so never mined
    zero: int  # rows of zeros: similar to nothing


def prepare(array: Any, *, mean: Tensor | None, normalize: bool, dtype: torch.dtype) -> Prepared:
    """Rows centred by `mean`, L2-normalised and converted, in that order and block by block.

    Args:
        array: [N, D] numpy array (may be memory-mapped) or tensor, of real numbers.
        mean: [D] to subtract, or None.
        normalize: divide each row by its length; rows of zeros stay.
        dtype: float32, bfloat16 or float16.
    """
    rows = torch.empty(array.shape, dtype=dtype)
    not_finite = zero = start = 0
    for block in _blocks(array):
        if mean is not None:
            block = block - mean.to(block.dtype)
        if normalize:
            block = torch.nn.functional.normalize(block, dim=1)
        made = block.to(dtype)
        bad = ~made.isfinite().all(dim=1)
        made[bad] = torch.nan
        not_finite += int(bad.sum())
        zero += int((made == 0).all(dim=1).sum())
        rows[start : start + len(made)] = made
        start += len(made)
    return Prepared(rows, not_finite, zero)


def _native(part: np.ndarray) -> np.ndarray:
    """A copy in memory, in this machine's byte order."""
    return np.array(part, dtype=part.dtype.newbyteorder("="), order="C")


def _blocks(array: Any) -> Iterator[Tensor]:
    """Copies of consecutive rows, float32 (float64 where the array is)."""
    step = max(1, BLOCK // array.shape[1])
    for start in range(0, array.shape[0], step):
        part = array[start : start + step]
        block = part if isinstance(part, Tensor) else torch.from_numpy(_native(part))
        yield block.to(torch.float64 if block.dtype == torch.float64 else torch.float32, copy=True)
