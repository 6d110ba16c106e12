"""Numbers ids and labels of any kind, no two values the same number."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..tables import Column


def as_given(column: Column) -> np.ndarray:
    """The values of a plain column: [N]; bytes as strings, those that are not UTF-8 as surrogates."""
    values = np.asarray(column.load()).reshape(-1)
    return np.char.decode(values, "utf-8", "surrogateescape") if values.dtype.kind == "S" else values


def values_of(column: Column, flag: str) -> np.ndarray:
    """A column as an array of integers (int64, or uint64 where int64 is too small) or of strings: [N].

    Bytes that are not UTF-8 become surrogates, each its own, so that different bytes stay different strings.

    Raises:
        ValueError: other values, such as fractions or Python objects, or whole numbers that their own type rounds.
    """
    if column.dtype == "object":
        raise ValueError(
            f"{flag}: {column.name!r} must hold integers or strings, got object: Python objects are never unpickled; "
            "save it as np.array(values, dtype=str)"
        )
    if column.dtype == "bfloat16" or not (column.is_number or column.dtype in ("str", "bool")):
        raise ValueError(f"{flag}: {column.name!r} must hold integers or strings, got {column.dtype}")
    values = as_given(column)
    if values.dtype.kind == "U":
        return values
    if values.dtype.kind == "f":
        _refuse_rounded(values, column, flag)
    large = values.dtype == np.uint64 and len(values) and values.max() > np.iinfo(np.int64).max
    return values.astype(np.uint64 if large else np.int64)


def _refuse_rounded(values: np.ndarray, column: Column, flag: str) -> None:
    """Raises `ValueError` for fractions, and for whole numbers so large that this float type holds not all of them."""
    whole = np.nan_to_num(values, nan=0.5, posinf=0.5, neginf=0.5)
    if (whole % 1 != 0).any():
        raise ValueError(f"{flag}: {column.name!r} must hold integers or strings, got fractions or NaN")
    exact = 2 ** (np.finfo(values.dtype).nmant + 1)
    if (np.abs(values) > exact).any():
        raise ValueError(
            f"{flag}: {column.name!r} holds numbers beyond {exact:,}, which {column.dtype} rounds: different ones may "
            "be equal now; save them as integers or strings"
        )


class Codes(NamedTuple):
    """Values numbered from 0; -1 where unknown (-1 or an empty string in a single column)."""

    of_keys: Tensor  # [N] int64
    of_queries: Tensor  # [B] int64; `of_keys` itself where the rows are their own queries
    names: np.ndarray  # the value behind each number: integers, or strings; several columns joined as "a/b"


def encode(
    keys: Sequence[np.ndarray],
    queries: Sequence[np.ndarray] | None,
    flag: str,
    unknown: Sequence[int] = (-1,),
) -> Codes:
    """Numbers the distinct rows of one or several columns, alike on both sides, no two values the same number.

    `unknown`: integers that stand for no value, in a single column; other negative integers are values like any.

    Raises:
        ValueError: integers on one side and strings on the other.
    """
    both = []
    for i, column in enumerate(keys):
        if queries is not None and (column.dtype.kind == "U") != (queries[i].dtype.kind == "U"):
            raise ValueError(f"{flag}: must be integers on both sides, or strings on both sides")
        both.append(column if queries is None else np.concatenate(_one_type(column, queries[i])))
    numbered = [np.unique(column, return_inverse=True) for column in both]
    if len(both) == 1:
        names, code = numbered[0][0], numbered[0][1].reshape(-1)
        known = names != "" if names.dtype.kind == "U" else ~_any_of(names, unknown)
        code = np.where(known, np.cumsum(known) - 1, -1)[code]
        names = names[known]
    else:
        table = np.stack([inverse.reshape(-1) for _, inverse in numbered], axis=1)
        rows, code = np.unique(table, axis=0, return_inverse=True)
        names = _joined([values[rows[:, i]].astype(str) for i, (values, _) in enumerate(numbered)])
    all_codes = torch.from_numpy(code.reshape(-1).astype(np.int64))
    of_keys = all_codes[: len(keys[0])].clone()
    return Codes(of_keys, of_keys if queries is None else all_codes[len(keys[0]) :].clone(), names)


def _one_type(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two columns as one type that holds the values of both; NumPy alone would round int64 and uint64 to floats."""
    if first.dtype == second.dtype or first.dtype.kind == "U":
        return first, second
    negative = any(len(column) and column.min() < 0 for column in (first, second))
    kind = object if negative else np.uint64
    return first.astype(kind), second.astype(kind)


def _any_of(values: np.ndarray, numbers: Sequence[int]) -> np.ndarray:
    """Where values [N] are one of some integers: [N] bool."""
    found = np.zeros(len(values), dtype=bool)
    for number in numbers:
        found |= np.asarray(values == number, dtype=bool)
    return found


def _joined(words: Sequence[np.ndarray]) -> np.ndarray:
    """Several columns of strings as one: "a/b", or as JSON lists where that would make two rows equal."""
    rows = list(zip(*words))
    names = ["/".join(parts) for parts in rows]
    if len(set(names)) < len(names):
        names = [json.dumps(list(map(str, parts))) for parts in rows]
    return np.array(names, dtype=str)
