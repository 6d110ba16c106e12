"""Describes one array of a file: known by its header, read in parts on use."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

FLOATS = ("float16", "bfloat16", "float32", "float64")


class Unfit(ValueError):
    """A file that is read, and holds what no table holds: one line that says what to do."""


class Column(NamedTuple):
    """One array of a file, known by its header and read on first use."""

    name: str
    where: str  # for messages: "features.npz: flow"
    shape: tuple[int, ...]
    dtype: str  # float32, bfloat16, int64, str, object, ...
    load: Callable[[], Any]  # array, tensor or `Rows`: sliced by rows, read in parts where its format can
    note: str = ""  # how the file was understood, where that is a choice

    @property
    def is_float(self) -> bool:
        """Floating point of a kind that can be mined."""
        return self.dtype in FLOATS

    @property
    def is_number(self) -> bool:
        """Real numbers of any kind."""
        return self.is_float or self.dtype.startswith(("int", "uint"))


class Rows:
    """Reads rows on use; indexed like an array: by a slice, or by an increasing array of row numbers.

    Args:
        shape: of all rows.
        read: gives the rows of a slice with step 1, or of an int64 array.
    """

    def __init__(self, shape: tuple[int, ...], read: Callable[[Any], Any]) -> None:
        self.shape, self._read = shape, read

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: slice | np.ndarray) -> Any:
        if isinstance(index, slice):
            start, stop, _ = index.indices(len(self))
            return self._read(slice(start, max(start, stop)))
        return self._read(np.asarray(index, dtype=np.int64))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype=dtype)


def dtype_name(dtype: np.dtype[Any]) -> str:
    """Returns float32, int64, ..., str for strings and bytes, object for what would be unpickled."""
    return "str" if dtype.kind in "US" else "object" if dtype.hasobject else dtype.name


def of_array(name: str, where: str, array: np.ndarray, note: str = "") -> Column:
    """Returns the column of an array in memory."""
    return Column(name, where, array.shape, dtype_name(array.dtype), lambda: array, note)


def of_tensor(name: str, where: str, tensor: Tensor) -> Column:
    """Returns the column of a tensor; of one without rows in memory (sparse, meta), its dtype says so."""
    plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    kind = str(tensor.dtype).removeprefix("torch.")
    return Column(
        name, where, tuple(tensor.shape), kind if plain else f"{tensor.layout} {tensor.device}", tensor.detach
    )


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns whatever a reader raises on a foreign file into one line that names the file."""
    try:
        yield
    except (Unfit, ImportError, MemoryError):
        raise
    except Exception as error:
        kind = path.suffix or "table"
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"{path}: not a readable {kind} file ({said})") from error


def guarded(path: Path, load: Callable[[], Any]) -> Callable[[], Any]:
    """Returns `load` with its errors named as by `reading`."""

    def checked() -> Any:
        with reading(path):
            return load()

    return checked


def counted(numbers: Sequence[int]) -> str:
    """Returns the range of some counts: ``8``, or ``3 to 12``."""
    least, most = min(numbers), max(numbers)
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"
