"""Reads Parquet, Feather and CSV by pyarrow: a column of lists is a view, and so are columns `rgb_0`, `rgb_1`, ..."""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet

from ...reading.decimals import WITH_A_POINT, decimal_comma
from .column import Column, Rows, Unfit, dtype_name, guarded

NUMBERED = re.compile(r"(?P<view>.*?)[ _.\-\[]?(?P<number>\d+)\]?")
SNIFFED = 1 << 16  # bytes of a CSV that show its delimiter and its header
Take = Callable[[list[str]], pa.Table]  # the columns of a file by name


def parquet(path: Path, name: str) -> list[Column]:
    """Returns the columns of a Parquet file; each is read whole on use."""
    file = pyarrow.parquet.ParquetFile(path)
    count = file.metadata.num_rows

    def take(names: list[str]) -> pa.Table:
        return pyarrow.parquet.read_table(path, columns=names)

    return _columns(path, name, file.schema_arrow, count, take)


def feather(path: Path, name: str) -> list[Column]:
    """Returns the columns of a Feather file, mapped where it is not compressed."""
    try:
        table = pyarrow.feather.read_table(path, memory_map=True)
        table.validate(full=True)  # offsets and lengths of a damaged file would be followed out of it
    except MemoryError as error:
        raise Unfit(
            f"{path}: wants more memory than there is ({error}); it is damaged, or too large"
        ) from error
    return _columns(path, name, table.schema, len(table), table.select)


def delimited(path: Path, name: str) -> list[Column]:
    """Returns the columns of a CSV or TSV in UTF-8; numbers without a header are one view."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        first = file.read(SNIFFED).split("\n")[0].strip("\r")
    delimiter = max("\t" if path.suffix.lower() == ".tsv" else ",", ";", "\t", key=first.count)
    for other in ";\t":
        _refuse_decimal_commas(path, first.split(other) if other in first else [])
    header = next(csv.reader([first], delimiter=delimiter), [])
    if len(set(header)) < len(header) and not _is_data(header):
        raise Unfit(f"{path}: two columns have one name in its header, {header[:8]}")

    def read(names: list[str] | None = None, types: dict[str, Any] | None = None) -> pa.Table:
        return pyarrow.csv.read_csv(
            path,
            pyarrow.csv.ReadOptions(autogenerate_column_names=_is_data(header)),
            pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            pyarrow.csv.ConvertOptions(column_types=types, include_columns=names),
        )

    table = read()
    if _is_data(header):
        table = table.rename_columns([str(i) for i in range(table.num_columns)])
    else:
        table = _as_written(table, read)
    for column in table.columns if delimiter != "," else ():
        if pa.types.is_string(column.type) and len(column):
            _refuse_decimal_commas(path, pc.unique(column.drop_null()).to_pylist())
    return _columns(path, name, table.schema, len(table), table.select)


def _refuse_decimal_commas(path: Path, fields: list[str]) -> None:
    """Raises `Unfit` where fields are all numbers, and some have a comma for the point."""
    if comma := decimal_comma(fields):
        raise Unfit(f"{path}: has numbers with a comma, such as {comma}; {WITH_A_POINT}")


def _is_data(header: list[str]) -> bool:
    """Whether the first line of a CSV is numbers, and not 0, 1, 2, ...: no header."""
    try:
        numbers = [float(word) for word in header]
    except ValueError:
        return False
    return bool(numbers) and numbers != list(range(len(numbers)))


def _as_written(table: pa.Table, read: Callable[..., pa.Table]) -> pa.Table:
    """Keeps columns of integers that are written in another way, such as 007, as strings: 7 is another name."""
    whole = [field.name for field in table.schema if pa.types.is_integer(field.type)]
    if not whole:
        return table
    texts = read(whole, dict.fromkeys(whole, pa.string()))
    for name in whole:
        number = pc.cast(table[name], pa.string())
        if not pc.all(pc.equal(pc.fill_null(number, ""), pc.utf8_trim_whitespace(texts[name]))).as_py():
            table = table.set_column(table.schema.get_field_index(name), name, texts[name])
    return table


def _columns(path: Path, name: str, schema: pa.Schema, count: int, take: Take) -> list[Column]:
    """The columns of a schema; numbered ones are joined into a view, called `name` where they are numbers alone."""
    if len(set(schema.names)) < len(schema.names):
        raise Unfit(f"{path}: two columns have one name")
    groups = _numbered(schema)
    joined = {member for members in groups.values() for member in members}
    found = [_view(path, view or name, members, schema, (count, take)) for view, members in groups.items()]
    found += [_column(path, field, count, take) for field in schema if field.name not in joined]
    if len({column.name for column in found}) < len(found):
        raise Unfit(
            f"{path}: has columns {', '.join(groups)} and numbered ones of the same name; rename them"
        )
    return found


def _numbered(schema: pa.Schema) -> dict[str, list[str]]:
    """{view: its columns in order}: numbers of any kind, at least one a float, numbered from 0 or 1 without a gap."""
    groups: dict[str, dict[int, str]] = defaultdict(dict)
    for field in schema:
        match = NUMBERED.fullmatch(field.name)
        if match and (pa.types.is_floating(field.type) or pa.types.is_integer(field.type)):
            groups[match["view"]].setdefault(int(match["number"]), field.name)
    found = {}
    for view, members in groups.items():
        numbers = sorted(members)
        floats = any(pa.types.is_floating(schema.field(column).type) for column in members.values())
        if (
            len(numbers) > 1
            and floats
            and numbers[0] in (0, 1)
            and numbers[-1] - numbers[0] + 1 == len(numbers)
        ):
            found[view] = [members[number] for number in numbers]
    return found


def _view(path: Path, name: str, members: list[str], schema: pa.Schema, rows: tuple[int, Take]) -> Column:
    count, take = rows
    kind = "float64" if any(pa.types.is_float64(schema.field(one).type) for one in members) else "float32"

    def load() -> Any:
        table = take(members)

        def read(index: Any) -> np.ndarray:
            part = table[index] if isinstance(index, slice) else table.take(pa.array(index))
            made = np.empty((len(part), len(members)), kind)
            for i, column in enumerate(part.columns):
                made[:, i] = pc.cast(column, pa.float64()).to_numpy()
            return made

        return Rows((count, len(members)), read)

    note = f"{name} is {members[0]} to {members[-1]}"
    return Column(name, f"{path}: {name}", (count, len(members)), kind, guarded(path, load), note)


def _column(path: Path, field: pa.Field, count: int, take: Take) -> Column:
    """A column of plain values [N], or of lists of D numbers each [N, D]."""

    def values() -> Any:
        return take([field.name]).column(0)

    where, kind = f"{path}: {field.name}", field.type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _lists(path, field, count, values)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return Column(field.name, where, (count,), "str", guarded(path, lambda: _strings(values())))
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind):
        name = "bool" if pa.types.is_boolean(kind) else dtype_name(np.dtype(kind.to_pandas_dtype()))
        return Column(field.name, where, (count,), name, guarded(path, lambda: _plain(values())))
    return Column(field.name, where, (count,), str(kind), guarded(path, lambda: _strings(values())))


def _plain(values: pa.ChunkedArray) -> np.ndarray:
    """Numbers or booleans; integers with empty places become floats with NaN."""
    return np.asarray(values.to_numpy())


def _strings(values: pa.ChunkedArray) -> np.ndarray:
    """Strings; an empty place is an empty string."""
    return np.array(pc.fill_null(pc.cast(values, pa.large_string()), "").to_pylist(), dtype=str)


def _lists(path: Path, field: pa.Field, count: int, values: Callable[[], Any]) -> Column:
    """Lists of numbers, all of one length D; their lengths are read where the type has none."""
    where, inner = f"{path}: {field.name}", field.type.value_type
    numbers = pa.types.is_floating(inner) or pa.types.is_integer(inner)
    kind = dtype_name(np.dtype(inner.to_pandas_dtype())) if numbers else f"lists of {inner}"
    if not numbers:
        return Column(field.name, where, (count,), kind, values)
    if pa.types.is_fixed_size_list(field.type):
        size = field.type.list_size
    else:
        lengths = pc.unique(pc.list_value_length(values()).drop_null()).to_pylist()
        if len(lengths) > 1:
            raise Unfit(
                f"{where} has lists of {min(lengths)} to {max(lengths)} numbers; expected one length D"
            )
        size = lengths[0] if lengths else 0

    def load() -> np.ndarray:
        column = values()
        if column.null_count:
            raise Unfit(f"{where} has {column.null_count} empty rows; leave them out")
        flat = pc.list_flatten(column).to_numpy()
        return np.asarray(flat).reshape(count, size)

    return Column(field.name, where, (count, size), kind, guarded(path, load))
