"""Reads HDF5 by h5py: every data set, in parts on use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from .column import Column, Rows, Unfit, dtype_name, reading


def hdf5(path: Path, _name: str) -> list[Column]:
    """Returns the data sets of a file; of those in groups, names are paths: ``train/rgb``."""
    found: list[Column] = []
    file = h5py.File(path, "r")

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            found.append(_column(path, name, item))

    file.visititems(visit)
    if not found:
        raise Unfit(f"{path}: holds no data sets")
    return found


def _column(path: Path, name: str, data: Any) -> Column:
    text = h5py.check_string_dtype(data.dtype) is not None
    shape = tuple(data.shape or ())
    where = f"{path}: {name}"

    def read(index: Any) -> Any:
        with reading(path):
            return data[index]

    def load() -> Any:
        if text:
            with reading(path):
                return np.array(data.asstr("utf-8", "surrogateescape")[()], dtype=str)
        return Rows(shape, read) if len(shape) > 1 else read(())

    return Column(name, where, shape, "str" if text else dtype_name(data.dtype), load)
