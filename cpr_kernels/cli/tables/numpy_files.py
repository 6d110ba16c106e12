"""Reads `.npz` and `.npy`; a `.npy` is mapped into memory, not loaded. Objects are read where they are plain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ...reading.arrays import npy_file, npz_headers
from ...reading.objects import objects_of
from .column import Column, Unfit, dtype_name, guarded, of_array


def npz(path: Path, _name: str) -> list[Column]:
    """Returns the arrays of an archive; each is read whole on use."""
    return [_member(path, name, header.shape, header.dtype) for name, header in npz_headers(path).items()]


def _member(path: Path, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Column:
    if dtype.hasobject and (plain := objects_of(path, name)) is not None:
        return of_array(name, f"{path}: {name}", plain)

    def load() -> Any:
        with np.load(path, allow_pickle=False) as archive:
            return archive[name]

    return Column(name, f"{path}: {name}", shape, dtype_name(dtype), guarded(path, load))


def npy(path: Path, name: str) -> list[Column]:
    """Returns the array of a file, mapped."""

    def load() -> Any:
        return np.load(path, mmap_mode="r", allow_pickle=False)

    header = npy_file(path)
    if header is not None and header.dtype.hasobject and (plain := objects_of(path)) is not None:
        return [of_array(name, str(path), plain)]
    if header is None or header.dtype.hasobject:
        raise Unfit(f"{path}: holds Python objects or named fields; save plain numbers or strings")
    return [Column(name, str(path), header.shape, dtype_name(header.dtype), guarded(path, load))]
