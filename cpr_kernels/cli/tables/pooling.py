"""Reduces arrays of several steps a sample to one row a sample: [N, T, D], or one array [T, D] a video."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from .column import Column, Rows, Unfit, counted, of_array

Pool = Literal["mean", "max", "none"]
BLOCK = 1 << 22  # numbers reduced at a time
MANY = 16  # arrays of one shape in a file: more are one a video, fewer are views


def pooled(column: Column, pool: Pool) -> Column:
    """Returns floats [N, T, D] as [N, D], reduced over T; any other column, and all with `pool` none, as it is."""
    if pool == "none" or len(column.shape) != 3 or not column.is_float:
        return column
    count, steps, size = column.shape
    if not steps:
        return column
    step = max(1, BLOCK // (steps * max(size, 1)))

    def load() -> Rows:
        array = column.load()

        def read(index: Any) -> np.ndarray:
            rows = np.arange(index.start, index.stop) if isinstance(index, slice) else index
            made = np.empty((len(rows), size), np.float64 if column.dtype == "float64" else np.float32)
            for start in range(0, len(rows), step):
                part = rows[start : start + step]
                whole = len(part) and int(part[-1]) - int(part[0]) + 1 == len(part)
                taken = array[int(part[0]) : int(part[-1]) + 1] if whole else array[part]
                made[start : start + len(part)] = reduced(taken, 1, pool)
            return made

        return Rows((count, size), read)

    kind = "float64" if column.dtype == "float64" else "float32"
    note = f"{column.name} is the {pool} over {steps:,} steps of {list(column.shape)}"
    return column._replace(shape=(count, size), dtype=kind, load=load, note=note)


def reduced(array: Any, axis: int, pool: Pool) -> np.ndarray:
    """Returns the mean or maximum over an axis, in float32 (float64 where the array is)."""
    if isinstance(array, Tensor):
        array = array.to(torch.float64 if array.dtype == torch.float64 else torch.float32).numpy()
    array = np.asarray(array)
    array = array.astype(np.float64 if array.dtype == np.float64 else np.float32)
    return array.max(axis=axis) if pool == "max" else array.mean(axis=axis)


def is_one_a_video(columns: Sequence[Column]) -> bool:
    """Whether a file's arrays are one a video, not views: floats [D] or [T, D] of one D, of different T or many."""
    if len(columns) < 2 or not all(c.is_float and len(c.shape) in (1, 2) and c.shape[0] for c in columns):
        return False
    if len({column.shape[-1] for column in columns}) > 1:
        return False
    steps = {column.shape[:-1] for column in columns}
    return len(steps) > 1 or steps == {()} or len(columns) > MANY


def stacked(name: str, where: str, parts: Mapping[str, Column], pool: Pool) -> Column:
    """Returns one array a video as a view [N, D]: each [D] as it is, each [T, D] reduced over T.

    Raises:
        Unfit: arrays of other shapes or kinds, or several steps with `pool` none.
    """
    arrays = list(parts.values())
    size = arrays[0].shape[-1] if arrays[0].shape else 0
    for video, array in parts.items():
        if (
            not array.is_float
            or len(array.shape) not in (1, 2)
            or 0 in array.shape
            or array.shape[-1] != size
        ):
            raise Unfit(
                f"{where}: {video!r} is {array.dtype} {list(array.shape)}; expected floats of shape [{size}] or "
                f"[T, {size}], as in {next(iter(parts))!r}"
            )
    steps = [array.shape[0] if len(array.shape) == 2 else 1 for array in arrays]
    if pool == "none" and max(steps) > 1:
        raise Unfit(f"{where}: its arrays have {counted(steps)} steps; give --pool mean or --pool max")
    kind = "float64" if any(array.dtype == "float64" for array in arrays) else "float32"

    def read(index: Any) -> np.ndarray:
        rows = range(index.start, index.stop) if isinstance(index, slice) else index.tolist()
        made = np.empty((len(rows), size), kind)
        for i, row in enumerate(rows):
            loaded = arrays[row].load()
            made[i] = reduced(loaded[:], 0, pool) if len(arrays[row].shape) == 2 else loaded[:]
        return made

    note = f"{name} is one array a video of {len(arrays):,}"
    if max(steps) > 1:
        note += f", the {pool} over {counted(steps)} steps"
    return Column(name, where, (len(arrays), size), kind, lambda: Rows((len(arrays), size), read), note)


def names_of(videos: list[str], where: str) -> list[Column]:
    """Returns the column `video` of names [N], and `label` of their folders where all are in one."""
    made: list[Any] = [of_array("video", where, np.array(videos, dtype=str))]
    folders = [video.rpartition("/")[0] for video in videos]
    if all(folders):
        made.append(of_array("label", where, np.array(folders, dtype=str)))
    if len(set(videos)) < len(videos):
        raise Unfit(f"{where}: a video is there twice")
    return made
