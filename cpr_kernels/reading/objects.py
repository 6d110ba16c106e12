"""Reads NumPy's arrays of Python objects where these are strings or whole numbers, as pandas gives them; no code that a
pickle names is ever run.
"""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import IO, Any

import numpy as np

NUMPY = {
    "numpy",
    "numpy.core.multiarray",
    "numpy._core.multiarray",
}  # the modules that an array's pickle names
NAMES = {"_reconstruct", "ndarray", "dtype"}


class _Inert:
    """Stands for every class and function of a pickled array, and keeps the state that it is given."""

    state: Any = None

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Plain(pickle._Unpickler):  # Python's own: the one in C makes room for as many objects as a file says
    def find_class(self, module: str, name: str) -> Any:
        """Gives `_Inert` for what an array of objects is made of."""
        if module in NUMPY and name in NAMES:
            return _Inert
        raise pickle.UnpicklingError(f"{module}.{name}")


def plain_objects(file: IO[bytes]) -> np.ndarray | None:
    """Returns an array of objects, at whose pickle the file is, as strings, whole numbers or truth values.

    It is None where there are others. None and NaN beside strings are empty strings, as missing values of pandas.
    """
    try:
        state = _Plain(file).load().state
        _, shape, _, columns_first, values = state
        if not isinstance(values, list) or columns_first is not False or math.prod(shape) != len(values):
            return None
        made = _of_one_kind(values)
        return None if made is None else made.reshape(shape)
    except Exception:  # a damaged pickle raises anything
        return None


def _of_one_kind(values: list[Any]) -> np.ndarray | None:
    kinds = {type(value) for value in values}
    if str in kinds and kinds <= {str, float, type(None)}:
        if any(isinstance(value, float) and not math.isnan(value) for value in values):
            return None
        return np.array([value if isinstance(value, str) else "" for value in values], dtype=str)
    if kinds == {bool}:
        return np.array(values)
    if kinds == {int}:
        return np.array(values, np.uint64 if max(values) > np.iinfo(np.int64).max else np.int64)
    return None


def objects_of(path: Path, member: str | None = None) -> np.ndarray | None:
    """Returns the array of objects of an `.npy` file, or of a member of an `.npz`, as `plain_objects`."""
    from .zips import opened

    with path.open("rb") as file:
        if member is None:
            return _after_header(file)
        with opened(file, packed=True) as archive, archive.open(f"{member}.npy") as part:
            return _after_header(part)


def _after_header(file: IO[bytes]) -> np.ndarray | None:
    version = np.lib.format.read_magic(file)
    {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version](file)
    return plain_objects(file)
