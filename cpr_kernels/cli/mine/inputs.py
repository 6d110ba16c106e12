"""Which arrays are views, ids and labels, of the entries and of the queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .options import Mine
from .tables import Column, open_columns

ID_NAMES = ("ids", "id", "source_ids", "source_id", "source", "video_ids", "video_id", "video", "vid")
WITHOUT = {"ids": "; other rows of the same source count as candidates", "labels": ""}
CLASS_NAMES = ("classes", "class_names")
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
    asked = args.views.split(",") if args.views else given if args.input is None else None
    entries = Side(columns, find_views(columns, asked, "--views"))
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
    asked, asked_queries = getattr(args, kind), getattr(args, f"query_{kind}")
    found = find_columns(entries.columns, asked, guesses, entries.rows, flag)
    if not found:
        if asked_queries not in (None, "none"):
            raise ValueError(f"{query_flag}: the entries have no {kind}; give {flag} too")
        return Names("none" if asked == "none" else f"none found, {flag} names an array" + WITHOUT[kind])
    used = tuple(column.name for column in found)
    others = None
    if queries is not None:
        if asked_queries is None and asked is None and not set(used) <= set(queries.columns):
            return Names(f"not used: the queries have no {', '.join(used)}; {query_flag} names an array")
        wanted = (
            asked_queries if asked_queries is not None else asked if asked is not None else ",".join(used)
        )
        others = find_columns(queries.columns, wanted, (), queries.rows, query_flag)
        if len(others) != len(found):
            raise ValueError(
                f"{query_flag}: {len(found)} column(s) expected, as many as {flag}, got {len(others)}"
            )
    of_keys = [values_of(column, flag) for column in found]
    of_queries = None if others is None else [values_of(column, query_flag) for column in others]
    codes = encode(of_keys, of_queries, flag)
    as_given = [
        columns[0] if len(columns) == 1 else codes.names[code.numpy()]
        for columns, code in ((of_keys, codes.of_keys), (of_queries or of_keys, codes.of_queries))
    ]
    return Names(_in_words(kind, used, codes), used, codes, as_given[0], as_given[1])


def _in_words(kind: str, used: Sequence[str], codes: Codes) -> str:
    text = f"{'+'.join(used)}: {len(codes.names):,} {'sources' if kind == 'ids' else 'classes'}"
    unknown = int((codes.of_keys < 0).sum())
    if unknown:
        text += (
            f"; {unknown:,} entries {'have no id and are never mined' if kind == 'ids' else 'have no label'}"
        )
    return text


def find_views(columns: Mapping[str, Column], asked: Sequence[str] | None, flag: str) -> dict[str, Column]:
    """The embeddings among `columns`: those asked for, else every [N, D] float array of the commonest N.

    Raises:
        ValueError: none found, an unknown name, no [N, D] of numbers, or views of different N.
    """
    if asked is not None:
        views = {name: pick(columns, name, flag) for name in asked}
    else:
        tables = [c for c in columns.values() if c.is_float and len(c.shape) == 2]
        rows = [c.shape[0] for c in tables]
        common = max(rows, key=lambda n: (rows.count(n), n), default=0)
        views = {c.name: c for c in tables if c.shape[0] == common}
        if not views:
            raise ValueError(f"{flag}: no array of shape [N, D] of floats found; there is {listing(columns)}")
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


def find_columns(
    columns: Mapping[str, Column], asked: str | None, guesses: Sequence[str], rows: int, flag: str
) -> list[Column]:
    """The columns of ids or labels: as asked (`a`, `a,b`, `file.npy`, `none`), else the first fitting guess.

    Raises:
        ValueError: an unknown name, or a column that is not one plain value a row.
    """
    if asked is None:
        fitting = (columns[name] for name in guesses if name in columns and columns[name].shape == (rows,))
        return [column for column in fitting if column.is_number or column.dtype in ("str", "bool")][:1]
    if asked == "none":
        return []
    found = []
    for name in asked.split(","):
        is_file = name.endswith(".npy")
        column = next(iter(open_columns(Path(name)).values())) if is_file else pick(columns, name, flag)
        if column.shape != (rows,):
            raise ValueError(
                f"{flag}: {name!r} must have shape [{rows}], one a row, got {list(column.shape)}"
            )
        found.append(column)
    return found


def values_of(column: Column, flag: str) -> np.ndarray:
    """A column as an array of integers or strings: [N].

    Raises:
        ValueError: other values, such as fractions or Python objects.
    """
    if column.dtype in ("object", "bfloat16") or not (column.is_number or column.dtype in ("str", "bool")):
        raise ValueError(f"{flag}: {column.name!r} must hold integers or strings, got {column.dtype}")
    values = np.asarray(column.load())
    if values.dtype.kind == "S":
        values = np.char.decode(values, "utf-8", "replace")
    if values.dtype.kind == "f":
        whole = np.nan_to_num(values, nan=0.5, posinf=0.5, neginf=0.5)
        if (whole % 1 != 0).any():
            raise ValueError(f"{flag}: {column.name!r} must hold integers or strings, got fractions or NaN")
    return values if values.dtype.kind == "U" else values.astype(np.int64)


class Codes(NamedTuple):
    """Values numbered from 0; -1 where unknown (a negative integer or an empty string in a single column)."""

    of_keys: Tensor  # [N] int64
    of_queries: Tensor  # [B] int64; `of_keys` itself where the rows are their own queries
    names: np.ndarray  # the value behind each number: integers, or strings; several columns joined as "a/b"


def encode(keys: Sequence[np.ndarray], queries: Sequence[np.ndarray] | None, flag: str) -> Codes:
    """Numbers the distinct rows of one or several columns, alike on both sides.

    Raises:
        ValueError: integers on one side and strings on the other.
    """
    both = []
    for i, column in enumerate(keys):
        if queries is not None and (column.dtype.kind == "U") != (queries[i].dtype.kind == "U"):
            raise ValueError(f"{flag}: must be integers on both sides, or strings on both sides")
        both.append(column if queries is None else np.concatenate([column, queries[i]]))
    numbered = [np.unique(column, return_inverse=True) for column in both]
    if len(both) == 1:
        names, code = numbered[0][0], numbered[0][1].reshape(-1)
        unknown = names == "" if names.dtype.kind == "U" else names < 0
        skipped = int(unknown.sum())  # sorted, so they come first
        names, code = names[skipped:], np.maximum(code - skipped, -1)
    else:
        table = np.stack([inverse.reshape(-1) for _, inverse in numbered], axis=1)
        rows, code = np.unique(table, axis=0, return_inverse=True)
        words = [values[rows[:, i]].astype(str) for i, (values, _) in enumerate(numbered)]
        names = np.array(["/".join(parts) for parts in zip(*words)], dtype=str)
    all_codes = torch.from_numpy(code.reshape(-1).astype(np.int64))
    of_keys = all_codes[: len(keys[0])].clone()
    return Codes(of_keys, of_keys if queries is None else all_codes[len(keys[0]) :].clone(), names)
