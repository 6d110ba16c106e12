"""Which arrays are views, ids and labels, of the entries and of the queries."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..tables import READS, Column, open_columns
from ..tables.pooling import Pool
from .codes import Codes, encode, values_of
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
    columns = _open(args.input, args.view, "--view", args.pool)
    if not columns:
        raise ValueError("give FILE, or --view NAME=FILE (see cpr mine --help)")
    given = [pair.partition("=")[0] for pair in args.view]
    named = args.views.split(",") if args.views else given if args.input is None else None
    entries = Side(columns, find_views(columns, named, "--views"))
    if args.queries is None and not args.query_view:
        for flag, value in (("--query-ids", args.query_ids), ("--query-labels", args.query_labels)):
            if value is not None:
                raise ValueError(f"{flag}: needs --queries or --query-view")
        return entries, None
    others = _open(args.queries, args.query_view, "--query-view", args.pool)
    queries = Side(others, find_views(others, list(entries.views), "--queries"))
    for name, view in queries.views.items():
        size = entries.views[name].shape[1]
        if view.shape[1] != size:
            raise ValueError(f"--queries: {name!r} has D={view.shape[1]}, but the entries have D={size}")
    return entries, queries


def _open(path: Path | None, pairs: Sequence[str], flag: str, pool: Pool) -> dict[str, Column]:
    columns = {} if path is None else open_columns(path, pool=pool)
    for pair in pairs:
        name, equals, file = pair.partition("=")
        if not (equals and name and file):
            raise ValueError(f"{flag}: expected NAME=FILE, got {pair!r}")
        if name in columns:
            raise ValueError(f"{flag}: {name!r} is given twice")
        opened = open_columns(Path(file), name, pool)
        view = _only_view(opened, name, flag)
        beside = [c for c in opened.values() if len(c.shape) == 1 and c.shape == view.shape[:1]]
        for column in beside:
            if column.name in columns:
                _refuse_other_rows(columns[column.name], column, flag)
        columns = {**columns, name: view, **{c.name: c for c in beside if c.name not in columns}}
    return columns


def _only_view(columns: Mapping[str, Column], name: str, flag: str) -> Column:
    """The array called `name`, or under this name the only one that may be a view."""
    views = [column for column in columns.values() if column.is_float and len(column.shape) == 2]
    if name not in columns and len(views) == 1:
        return views[0]._replace(name=name)
    return pick(columns, name, flag)


def _refuse_other_rows(first: Column, second: Column, flag: str) -> None:
    """Raises `ValueError` where a column that two files of views have is not the same in both."""
    values = [np.asarray(column.load()) for column in (first, second)]
    if values[0].shape != values[1].shape or (values[0] != values[1]).any():
        differ = values[0].shape == values[1].shape and int((values[0] != values[1]).argmax())
        what = f"row {differ} has {values[0][differ]} and {values[1][differ]}" if differ is not False else (
            f"{len(values[0])} and {len(values[1])} rows"
        )  # fmt: skip
        raise ValueError(
            f"{flag}: row i of every view must be the same clip, but {first.name!r} of {first.where} and of "
            f"{second.where} differ: {what}"
        )


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
    given = [
        columns[0] if len(columns) == 1 else codes.names[code.numpy()]
        for columns, code in ((of_keys, codes.of_keys), (of_queries or of_keys, codes.of_queries))
    ]
    return Names(_in_words(kind, used, codes), used, codes, given[0], given[1])


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
    """Raises `ValueError` for an array that is no view [N, D], no column [N] or [N, 1], no names of classes, no single
    value, and not called like ids or labels, of which more is said elsewhere.
    """
    for column in columns.values():
        single = math.prod(column.shape) <= 1 or column.name in CLASS_NAMES
        if column.name in views or single or column.shape in ((rows,), (rows, 1)):
            continue
        if len(column.shape) == 1 and column.name in (*ID_NAMES, *LABEL_NAMES):
            continue
        raise ValueError(
            f"{flag}: {column.name!r} is {column.dtype} {list(column.shape)}, and views are floats of shape "
            f"[N, D], columns [N], here N={rows}; give --views {','.join(views)} to leave it out"
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
    """The columns of ids or labels as written: `a`, `a,b`, a file or `none`.

    Raises:
        ValueError: an unknown name, or a column that is not one plain value a row.
    """
    if named == "none":
        return []
    found = []
    for name in named.split(","):
        is_file = name not in columns and Path(name).suffix.lower() in READS
        column = _only_column(Path(name), flag) if is_file else pick(columns, name, flag)
        if not _is_column(column, rows):
            raise ValueError(
                f"{flag}: {name!r} must have shape [{rows}], one a row, got {list(column.shape)}"
            )
        found.append(column)
    return found


def _only_column(path: Path, flag: str) -> Column:
    """The array of a file that holds one."""
    columns = open_columns(path)
    if len(columns) > 1:
        raise ValueError(f"{flag}: {path} must hold one array, got {listing(columns)}")
    return next(iter(columns.values()))


def plain_columns(side: Side) -> dict[str, Column]:
    """The columns of one number, string or truth value a row."""
    return {
        column.name: column
        for column in side.columns.values()
        if _is_column(column, side.rows) and column.name not in side.views
        and (column.dtype in ("str", "bool") or (column.is_number and column.dtype != "bfloat16"))
    }  # fmt: skip
