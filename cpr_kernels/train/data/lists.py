"""Which videos does a list name? A CSV with a header, or a bare list of paths."""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ...video_files import ENDINGS, PassedOver
from .. import TrainError
from .layouts import Labels, split_named

COLUMNS = "path[,label,split,group]"


class Row(NamedTuple):
    """One video of a list: its path as written, and what the list says of it; empty where it says nothing."""

    name: str
    label: str = ""
    split: str = ""
    group: str = ""


def read_list(table: Path, labels: Labels) -> tuple[list[Row], PassedOver]:
    """Returns the videos of a CSV, and what was passed over: rows without a path, without a label where others have
    one, and repeated ones.

    The header names the columns: `path`, and optionally `label` (or `class`), `split` and `group`; a list of paths
    alone needs no header. UTF-8, or UTF-16 that begins with its mark.

    Raises:
        TrainError: no such header, another encoding, or a split that is none.
    """
    rows: dict[str, Row] = {}
    passed_over: PassedOver = []
    lines = _lines(table)
    has_labels = labels != "none" and any(_label_in(line) for _, line in lines)
    for number, line in lines:
        name, label = line.get("path", ""), _label_in(line) if labels != "none" else ""
        written = line.get("split", "")
        split = split_named(written) if written else ""
        if split is None:
            raise TrainError(
                f"videos: {table} line {number}: split must be train, val or test, got {written!r}"
            )
        if not name or (has_labels and not label):
            passed_over.append((f"{table.name} line {number}", "path or label is empty"))
        elif name in rows:
            passed_over.append((name, f"listed twice: line {number}"))
        else:
            rows[name] = Row(name, label, split, line.get("group", ""))
    return list(rows.values()), passed_over


def _label_in(line: dict[str, str]) -> str:
    return line.get("label") or line.get("class") or ""


def _lines(table: Path) -> list[tuple[int, dict[str, str]]]:
    """The rows of a CSV as {column: text}, with their line numbers."""
    try:
        return list(_rows_of(table, text_of(table)))
    except (UnicodeError, csv.Error):
        raise TrainError(
            f"videos: {table} is a file, and no CSV in UTF-8; give a folder of videos, or a CSV with the columns "
            f"{COLUMNS}"
        ) from None


def _rows_of(table: Path, text: str) -> Iterator[tuple[int, dict[str, str]]]:
    first = next(csv.reader(io.StringIO(text)), [])
    bare = len(first) == 1 and Path(first[0].strip()).suffix.lower() in ENDINGS
    reader = csv.DictReader(io.StringIO(text, newline=""), ["path"] if bare else None)
    columns = [(name or "").strip() for name in reader.fieldnames or ()]
    if "path" not in columns:
        raise TrainError(f"videos: {table} needs a header with {COLUMNS}, got {sorted(columns)}")
    for row in reader:
        values = {(name or "").strip(): (value or "").strip() for name, value in row.items() if name}
        yield reader.line_num, values


def text_of(path: Path) -> str:
    """The text of a list: UTF-8 with or without a byte-order mark, or UTF-16 with one.

    Raises:
        UnicodeError: another encoding.
    """
    body = path.read_bytes()
    marks = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    return body.decode("utf-16" if body.startswith(marks) else "utf-8-sig")
