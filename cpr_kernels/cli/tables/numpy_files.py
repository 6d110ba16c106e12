"""Reads `.npz` and `.npy`; a `.npy` is mapped into memory, not loaded."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from .column import Column, Unfit, dtype_name, guarded

HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def npz(path: Path, _name: str) -> list[Column]:
    """Returns the arrays of an archive; each is read whole on use."""
    found = []
    with zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            with archive.open(member) as file:
                version = np.lib.format.read_magic(file)
                if version not in HEADERS:  # field names outside latin-1: no table of ours
                    continue
                shape, _, dtype = HEADERS[version](file)
            name = member.removesuffix(".npy")
            found.append(_member(path, name, shape, dtype))
    return found


def _member(path: Path, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Column:
    def load() -> Any:
        with np.load(path, allow_pickle=False) as archive:
            return archive[name]

    return Column(name, f"{path}: {name}", shape, dtype_name(dtype), guarded(path, load))


def npy(path: Path, name: str) -> list[Column]:
    """Returns the array of a file, mapped."""

    def load() -> Any:
        return np.load(path, mmap_mode="r", allow_pickle=False)

    try:
        array = load()
    except ValueError as error:
        if "object" not in str(error).lower():
            raise
        raise Unfit(f"{path}: holds Python objects; save plain numbers or strings") from error
    return [Column(name, str(path), array.shape, dtype_name(array.dtype), guarded(path, load))]
