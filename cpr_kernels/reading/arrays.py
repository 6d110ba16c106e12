"""Reads NumPy's files: headers and sizes are checked before an array is made, and nothing is unpickled."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from .memory import refuse_larger_than_memory
from .zips import opened


class Header(NamedTuple):
    """Says what an array is, before it is read."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def npy_header(file: IO[bytes], size: int) -> Header | None:
    """Returns the header of an array that begins here and is `size` bytes long with it; None for named fields.

    Raises:
        ValueError: no header, one that NumPy cannot read, or an array larger than what follows.
    """
    try:
        version = np.lib.format.read_magic(file)
        if version == (3, 0):  # names of fields outside latin-1
            return None
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, _, dtype = read[version](file)
    except Exception as error:  # NumPy evaluates and tokenises the text: many kinds
        raise ValueError(f"its header cannot be read ({type(error).__name__}: {error})") from None
    if any(isinstance(n, bool) or n < 0 for n in shape):
        raise ValueError(f"its header says shape {list(shape)}")
    needed = math.prod(shape) * dtype.itemsize
    if not dtype.hasobject and needed > size - file.tell():
        raise ValueError(
            f"its header says {dtype} {list(shape)}, {needed:,} bytes, and {size - file.tell():,} follow: cut short"
        )
    if not dtype.hasobject:
        refuse_larger_than_memory(f"{dtype} {list(shape)}", needed)
    return Header(shape, dtype)


def npz_headers(path: Path) -> dict[str, Header]:
    """Returns {name: header} of the arrays of an `.npz`, without those of named fields.

    Raises:
        ValueError: no zip file of arrays, or a member that `zips.opened` refuses.
    """
    found: dict[str, Header] = {}
    with path.open("rb") as file, opened(file, packed=True) as archive:
        for info in archive.infolist():
            with archive.open(info) as member:
                try:
                    header = npy_header(member, info.file_size)
                except ValueError as error:
                    raise ValueError(f"member {info.filename!r}: {error}") from None
            if header is not None:
                found[info.filename.removesuffix(".npy")] = header
    return found


def read_npz(path: Path, wanted: Mapping[str, tuple[str, int]]) -> dict[str, np.ndarray]:
    """Returns the arrays of an `.npz` that `wanted` names, of the kind and the number of dimensions that it says.

    Args:
        path: the file.
        wanted: {name: (kinds, dimensions)}; kinds are letters of `numpy.dtype.kind`, such as "iu" or "f".

    Raises:
        ValueError: damaged, or an array that is missing or another.
    """
    headers = npz_headers(path)
    arrays: dict[str, np.ndarray] = {}
    try:
        with np.load(path, allow_pickle=False) as file:
            for name, (kinds, dims) in wanted.items():
                if name not in headers:
                    raise ValueError(f"it lacks {name!r}")
                arrays[name] = array = file[name]
                if array.dtype.kind not in kinds or array.ndim != dims:
                    raise ValueError(
                        f"{name!r} is {array.dtype} {list(array.shape)}, not of {dims} dimension(s)"
                    )
    except ValueError:
        raise
    except Exception as error:  # zlib, zip, memory: many kinds
        raise ValueError(f"it is damaged ({type(error).__name__}: {error})") from None
    return arrays


def npy_file(path: Path) -> Header | None:
    """Returns the header of an `.npy` file; raises as `npy_header`."""
    with path.open("rb") as file:
        return npy_header(file, os.fstat(file.fileno()).st_size)
