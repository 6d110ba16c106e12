"""Embeddings from a file become what the ops take: centred, L2-normalised, one dtype, block by block.

Rows that do not fit into memory are mapped: the file's own where nothing is done to them, else a temporary file's.
"""

from __future__ import annotations

import math
import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

BLOCK = 1 << 22  # numbers converted at a time
MEMORY = (Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current"))


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


class Preparing(NamedTuple):
    """How the rows of a view become what the ops take.

    mean: [D] to subtract, or None.
    normalize: divide each row by its length; rows of zeros stay.
    dtype: float32, bfloat16 or float16.
    scratch: folder of a temporary file for rows that do not fit into half of the free memory.
    """

    mean: Tensor | None
    normalize: bool
    dtype: torch.dtype
    scratch: Path


def prepare(array: Any, how: Preparing) -> Prepared:
    """Returns rows centred, L2-normalised and converted, in that order and block by block.

    Args:
        array: [N, D] numpy array (may be memory-mapped) or tensor, of real numbers; read in slices of rows.
        how: what is done to them.
    """
    mean, normalize, dtype = how.mean, how.normalize, how.dtype
    if mean is None and not normalize and (mapped := _as_it_is(array, dtype)) is not None:
        return mapped
    rows = empty_rows(tuple(array.shape), dtype, how.scratch)
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


def _as_it_is(array: Any, dtype: torch.dtype) -> Prepared | None:
    """A mapped array of this dtype without a copy; None of another, and where a row is not finite."""
    if not isinstance(array, np.memmap) or not array.dtype.isnative or not array.flags.c_contiguous:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the mapping is read-only, and so is all use of it
        rows = torch.from_numpy(array)
    if rows.dtype != dtype:
        return None
    zero = 0
    for block in _blocks(array):
        if not block.isfinite().all():
            return None
        zero += int((block == 0).all(dim=1).sum())
    return Prepared(rows, 0, zero)


def empty_rows(shape: tuple[int, ...], dtype: torch.dtype, scratch: Path) -> Tensor:
    """Returns rows to be written: in memory where they take at most half of what is free, else in a mapped temporary
    file in the folder `scratch`, which the system pages out as it needs and which vanishes with the process.

    Raises:
        OSError: no folder `scratch`, or too little space there.
    """
    size = math.prod(shape) * dtype.itemsize
    if size <= free_memory() // 2:
        return torch.empty(shape, dtype=dtype)
    if not scratch.is_dir():
        raise ValueError(
            f"--scratch: the folder {scratch} does not exist; {size / 1e9:.1f} GB are needed there"
        )
    with tempfile.NamedTemporaryFile(dir=scratch, prefix="cpr-rows-") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)  # a full disk is an error here, not a signal later
        except OSError as error:
            raise ValueError(
                f"--scratch: {scratch} has no {size / 1e9:.1f} GB for the prepared rows ({error.strerror}); name "
                "another folder, or take --dtype bfloat16"
            ) from error
        return torch.from_file(file.name, shared=True, size=math.prod(shape), dtype=dtype).reshape(shape)


def free_memory() -> int:
    """Returns the bytes of memory that this process may still take, of the machine and of its control group."""
    machine, limit, current = MEMORY
    lines = machine.read_text().splitlines() if machine.is_file() else []
    free = next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), 1 << 62)
    if limit.is_file() and current.is_file() and (most := limit.read_text().strip()) != "max":
        free = min(free, max(0, int(most) - int(current.read_text())))
    return free


def nan_rows(rows: Tensor) -> Tensor:
    """Returns which rows hold a NaN, block by block: [N] bool."""
    step = max(1, BLOCK // max(rows.shape[1], 1))
    return (
        torch.cat([part.isnan().any(dim=1) for part in rows.split(step)])
        if len(rows)
        else rows.new_zeros(0).bool()
    )


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
