"""Which arrays are views, ids and labels, of the entries and of the queries."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..tables import Column, open_columns
from .options import Mine

ID_NAMES = ("ids", "id", "source_ids", "source_id", "source", "video_ids", "video_id", "video", "vid")
WITHOUT = {"ids": "; other rows of the same source count as candidates", "labels": ""}
CLASS_NAMES = ("classes", "class_names")
UNKNOWN = {"ids": (-1,), "labels": (-1, -100)}  # -100 is what torch.nn.functional.cross_entropy ignores
LABEL_NAMES = ("labels", "label", "targets", "target", "y")


class Side(NamedTuple):
    """The arrays of the entries, or of the queries."""

    columns: dict[str, Column]
    views: dict[str, Column]

    @property
    def rows(self) -> int:
        """How many."""
        return next(iter(self.views.values())).shape[0]


class Names(NamedTuple):
    """The ids, or the labels, of both sides."""

    text: str  # for the summary
    used: tuple[str, ...] = ()  # columns it is made of
    codes: Codes | None = None
    of_keys: np.ndarray | None = None  # [N] as given
    of_queries: np.ndarray | None = None  # [B]


def open_sides(args: Mine) -> tuple[Side, Side | None]:
    """The entries, and the queries where they are others.

    Raises:
        ValueError: files or arrays that are not there or do not fit.
    """
    columns = _open(args.input, args.view, "--view")
    if not columns:
        raise ValueError("give FILE, or --view NAME=FILE.npy (see cpr mine --help)")
    given = [pair.partition("=")[0] for pair in args.view]
    named = args.views.split(",") if args.views else given if args.input is None else None
    entries = Side(columns, find_views(columns, named, "--views"))
    if args.queries is None and not args.query_view:
        for flag, value in (("--query-ids", args.query_ids), ("--query-labels", args.query_labels)):
            if value is not None:
                raise ValueError(f"{flag}: needs --queries or --query-view")
        return entries, None
    others = _open(args.queries, args.query_view, "--query-view")
    queries = Side(others, find_views(others, list(entries.views), "--queries"))
    for name, view in queries.views.items():
        size = entries.views[name].shape[1]
        if view.shape[1] != size:
            raise ValueError(f"--queries: {name!r} has D={view.shape[1]}, but the entries have D={size}")
    return entries, queries


def _open(path: Path | None, pairs: Sequence[str], flag: str) -> dict[str, Column]:
    columns = {} if path is None else open_columns(path)
    for pair in pairs:
        name, equals, file = pair.partition("=")
        if not (equals and name and file):
            raise ValueError(f"{flag}: expected NAME=FILE.npy, got {pair!r}")
        if name in columns:
            raise ValueError(f"{flag}: {name!r} is given twice")
        columns[name] = pick(open_columns(Path(file), name), name, flag)
    return columns


def find_names(kind: str, entries: Side, queries: Side | None, args: Mine) -> Names:
    """The `kind` ("ids" or "labels") that the options name, or that the files' names suggest.

    Raises:
        ValueError: an unknown column, or one that is not one integer or string a row.
    """
    flag, query_flag = f"--{kind}", f"--query-{kind}"
    guesses = ID_NAMES if kind == "ids" else LABEL_NAMES
    named, named_queries = getattr(args, kind), getattr(args, f"query_{kind}")
    if named is None:
        found = guessed_columns(entries, guesses, flag)
    else:
        found = find_columns(entries.columns, named, entries.rows, flag)
    if not found:
        if named_queries not in (None, "none"):
            raise ValueError(f"{query_flag}: the entries have no {kind}; give {flag} too")
        return Names("none" if named == "none" else f"none found, {flag} names an array" + WITHOUT[kind])
    used = tuple(column.name for column in found)
    others = None
    if queries is not None:
        if named_queries is None and named is None and not set(used) <= set(queries.columns):
            return Names(f"not used: the queries have no {', '.join(used)}; {query_flag} names an array")
        wanted = (
            named_queries if named_queries is not None else named if named is not None else ",".join(used)
        )
        others = find_columns(queries.columns, wanted, queries.rows, query_flag)
        if len(others) != len(found):
            raise ValueError(
                f"{query_flag}: {len(found)} column(s) expected, as many as {flag}, got {len(others)}"
            )
    of_keys = [values_of(column, flag) for column in found]
    of_queries = None if others is None else [values_of(column, query_flag) for column in others]
    codes = encode(of_keys, of_queries, flag, UNKNOWN[kind])
    as_given = [
        columns[0] if len(columns) == 1 else codes.names[code.numpy()]
        for columns, code in ((of_keys, codes.of_keys), (of_queries or of_keys, codes.of_queries))
    ]
    return Names(_in_words(kind, used, codes), used, codes, as_given[0], as_given[1])


def printable(name: str) -> str:
    """A name as text that can be written as UTF-8: bytes that were none are shown as ``\\udcff``."""
    return name.encode("utf-8", "backslashreplace").decode()


def _in_words(kind: str, used: Sequence[str], codes: Codes) -> str:
    text = f"{'+'.join(used)}: {len(codes.names):,} {'sources' if kind == 'ids' else 'classes'}"
    unknown = int((codes.of_keys < 0).sum())
    if unknown:
        text += (
            f"; {unknown:,} entries {'have no id and are never mined' if kind == 'ids' else 'have no label'}"
        )
    return text


def find_views(columns: Mapping[str, Column], named: Sequence[str] | None, flag: str) -> dict[str, Column]:
    """The embeddings among `columns`: those named, else every [N, D] float array.

    Raises:
        ValueError: none found, an unknown name, no [N, D] of numbers, or views of different N; or, where none were
            named, an array with rows and columns that is neither a view nor a column of values.
    """
    if named is not None:
        views = {name: pick(columns, name, flag) for name in named}
    else:
        floats = [c for c in columns.values() if c.is_float and len(c.shape) == 2]
        tables = [c for c in floats if c.shape[1] != 1] or floats  # [N, 1] is a column, such as of ids
        rows = [c.shape[0] for c in tables]
        common = max(rows, key=lambda n: (rows.count(n), n), default=0)
        views = {c.name: c for c in tables if c.shape[0] == common}
        if not views:
            raise ValueError(f"{flag}: no array of shape [N, D] of floats found; there is {listing(columns)}")
        _refuse_odd(columns, views, common, flag)
    first = next(iter(views.values()))
    for view in views.values():
        if len(view.shape) != 2 or not view.is_number or view.shape[1] == 0:
            got = f"{view.dtype} {list(view.shape)}"
            raise ValueError(f"{flag}: {view.name!r} must hold numbers of shape [N, D], got {got}")
        if view.shape[0] != first.shape[0]:
            raise ValueError(
                f"{flag}: {view.name!r} has {view.shape[0]} rows, but {first.name!r} has {first.shape[0]}; "
                "row i of every view must be the same clip"
            )
    return views


def _refuse_odd(columns: Mapping[str, Column], views: Mapping[str, Column], rows: int, flag: str) -> None:
    """Raises `ValueError` for an array of two dimensions or more that is no view [N, D], and no column [N, 1]."""
    for column in columns.values():
        if column.name in views or len(column.shape) < 2 or column.shape[1:] == (1,):
            continue
        raise ValueError(
            f"{flag}: {column.name!r} is {column.dtype} {list(column.shape)}, and views are floats of shape "
            f"[N, D], here N={rows}; give --views {','.join(views)} to leave it out"
        )


def pick(columns: Mapping[str, Column], name: str, flag: str) -> Column:
    """The column called `name`.

    Raises:
        ValueError: there is none; lists what is there.
    """
    if name not in columns:
        raise ValueError(f"{flag}: no array {name!r}; there is {listing(columns)}")
    return columns[name]


def listing(columns: Mapping[str, Column]) -> str:
    """The arrays in words: ``rgb float32 [100, 64], label int64 [100]``."""
    return ", ".join(f"{c.name} {c.dtype} {list(c.shape)}" for c in columns.values()) or "nothing"


def guessed_columns(side: Side, guesses: Sequence[str], flag: str) -> list[Column]:
    """The first column among `guesses` that holds one plain value a row; empty where no array is called so.

    Raises:
        ValueError: arrays are called so, and none of them holds one plain value a row.
    """
    called = [side.columns[name] for name in guesses if name in side.columns and name not in side.views]
    fits = {column.name for column in called if _is_column(column, side.rows)}
    # a table of floats is a view that was left out
    called = [c for c in called if c.name in fits or not (c.is_float and len(c.shape) > 1)]
    for column in called:
        if column.name in fits and (column.is_number or column.dtype in ("str", "bool")):
            return [column]
    if called:
        odd = called[0]
        raise ValueError(
            f"{flag}: {odd.name!r} must hold one integer or string a row, shape [{side.rows}], got {odd.dtype} "
            f"{list(odd.shape)}; name another array, or give {flag} none"
        )
    return []


def _is_column(column: Column, rows: int) -> bool:
    return column.shape in ((rows,), (rows, 1))


def find_columns(columns: Mapping[str, Column], named: str, rows: int, flag: str) -> list[Column]:
    """The columns of ids or labels as written: `a`, `a,b`, `file.npy` or `none`.

    Raises:
        ValueError: an unknown name, or a column that is not one plain value a row.
    """
    if named == "none":
        return []
    found = []
    for name in named.split(","):
        is_file = name.endswith(".npy")
        column = next(iter(open_columns(Path(name)).values())) if is_file else pick(columns, name, flag)
        if not _is_column(column, rows):
            raise ValueError(
                f"{flag}: {name!r} must have shape [{rows}], one a row, got {list(column.shape)}"
            )
        found.append(column)
    return found


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
    values = np.asarray(column.load()).reshape(-1)
    if values.dtype.kind == "S":
        return np.char.decode(values, "utf-8", "surrogateescape")
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
