"""Which videos does a list name, whole or in segments? A CSV, a bare list of paths, or ActivityNet's JSON."""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ...reading.records import as_record, read_json
from ...video_files import ENDINGS, PassedOver, walk
from .. import TrainError
from .kinds.annotations import (
    KINETICS,
    Line,
    files_by_id,
    is_address,
    json_lines,
    kinetics_lines,
    list_lines,
    split_of,
    stem_of,
)
from .layouts import Labels, split_named
from .segments import WHOLE, Segment, segment_of

COLUMNS = "path[,label,split,group,start,end]"
DELIMITERS = ",;\t"
WHOLE_LINE = "\x1f"  # a delimiter that no path has
DECIMALS = "; write decimals with a point"
DECIMAL_COMMA = re.compile(r"\s*\d+,\d+\s*")


class Row(NamedTuple):
    """One sample of a list: its path as written, and what the list says of it; empty where it says nothing."""

    name: str
    label: str = ""
    split: str = ""
    group: str = ""
    segment: Segment = WHOLE


def read_list(table: Path, labels: Labels, root: Path | None = None) -> tuple[list[Row], PassedOver]:
    """Returns the samples of a list, and what was passed over: rows without a path, without a label where others have
    one, and repeated ones.

    The header of a CSV names its columns: `path`, and optionally `label` (or `class`), `split`, `group`, and `start`
    and `end` of a segment, in seconds from the first frame on. A list of paths alone needs no header. UTF-8, or UTF-16
    that begins with its mark. A file called `.json` is ActivityNet's (see `_activity_net`), Kinetics' or
    Something-Something's, and mmaction2's `path label` is read too; see `annotations`. Where those give no split, it is
    in the list's name. `root`: the folder that names are below, by default the list's.

    Raises:
        TrainError: no such header, another encoding, a split or a segment that is none.
    """
    try:
        text = text_of(table)
        if table.suffix.lower() == ".json":
            body = read_json(text)
            public = json_lines(body, files_by_id(root or table.parent), labels != "none")
            if public is None:
                return _activity_net(table, _database(table, body), labels)
            return _public(table, *public, labels)
        if (plain := list_lines(text)) is not None:
            return _public(table, plain, [], labels)
        lines = list(_lines(table, text))
        if lines and lines[0][1].keys() >= KINETICS:
            files = files_by_id(root or table.parent)
            return _public(table, *kinetics_lines((line for _, line in lines), files), labels)
    except (ValueError, csv.Error):
        raise TrainError(
            f"videos: {table} is a file, and no CSV in UTF-8; give a folder of videos, a CSV with the columns "
            f"{COLUMNS}, or ActivityNet's JSON"
        ) from None
    return _public(table, [line for _, line in lines], [], labels, [number for number, _ in lines])


def _public(
    table: Path, lines: list[Line], passed_over: PassedOver, labels: Labels, numbers: Sequence[int] = ()
) -> tuple[list[Row], PassedOver]:
    """The rows of a list's lines, whose `numbers` count from 1; what gives no split has that of the list's name."""
    named = split_of(table)
    numbered = [
        (number, {**line, "split": line.get("split") or named})
        for number, line in zip(numbers or itertools.count(1), lines)
    ]
    rows, further = _rows(table, numbered, labels)
    return rows, passed_over + further


def _rows(
    table: Path, lines: list[tuple[int, dict[str, str]]], labels: Labels
) -> tuple[list[Row], PassedOver]:
    rows: dict[str, Row] = {}
    passed_over: PassedOver = []
    named = _class_names(table, lines) if labels != "none" else {}
    has_labels = any(named.values())
    for number, line in lines:
        name, label = line.get("path", ""), named.get(_label_in(line), "")
        written = line.get("split", "")
        split = split_named(written) if written else ""
        if split is None:
            raise TrainError(
                f"videos: {table} line {number}: split must be train, val or test, got {written!r}"
            )
        times = line.get("start", ""), line.get("end", "")
        segment = segment_of(*times)
        if segment is None:
            raise TrainError(
                f"videos: {table} line {number}: start and end must be seconds with 0 <= start < end, got {times[0]!r} "
                f"and {times[1]!r}{DECIMALS if any(map(DECIMAL_COMMA.fullmatch, times)) else ''}"
            )
        if is_address(name):
            passed_over.append((name, "an address, no file"))
        elif not name or (has_labels and not label):
            passed_over.append((f"{table.name} line {number}", "path or label is empty"))
        elif (first := rows.get(segment.id(name))) is not None:
            other = f" with different labels: {first.label} and {label}," if first.label != label else ":"
            passed_over.append((segment.id(name), f"listed twice{other} line {number}"))
        else:
            rows[segment.id(name)] = Row(name, label, split, line.get("group", ""), segment)
    return list(rows.values()), passed_over


def _class_names(table: Path, lines: list[tuple[int, dict[str, str]]]) -> dict[str, str]:
    """The classes that the labels of a list name: {label: class}.

    Where all labels are numbers, 2.0 is 2, and negative ones and nan mean none.

    Raises:
        TrainError: all are numbers and one is not whole.
    """
    labels = dict.fromkeys(_label_in(line) for _, line in lines)
    try:
        numbers = {label: float(label) for label in labels if label}
    except ValueError:
        return {label: label for label in labels}
    odd = next((label for label, number in numbers.items() if number != number // 1 and number > 0), None)
    if odd is not None:
        raise TrainError(
            f"videos: {table} has labels such as {odd}: numbers that are no classes; give names or whole numbers, or "
            "add --labels none"
        )
    return {label: str(int(number)) if number >= 0 else "" for label, number in numbers.items()}


def _label_in(line: dict[str, str]) -> str:
    return line.get("label") or line.get("class") or ""


def _lines(table: Path, text: str) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a CSV as {column: text}, with their line numbers."""
    first = next(csv.reader(io.StringIO(text)), [])
    bare = len(first) == 1 and Path(first[0].strip()).suffix.lower() in ENDINGS
    delimiter = WHOLE_LINE if bare else _delimiter(text)
    reader = csv.DictReader(io.StringIO(text, newline=""), ["path"] if bare else None, delimiter=delimiter)
    columns = [(name or "").strip().lower() for name in reader.fieldnames or ()]
    if twice := next((name for name in columns if name and columns.count(name) > 1), None):
        raise TrainError(f"videos: {table} has two columns {twice}; rename one")
    if "path" not in columns and not set(columns) >= KINETICS:
        raise TrainError(f"videos: {table} needs a header with {COLUMNS}, got {sorted(columns)}")
    for row in reader:
        if any(map(str.strip, row.get(None) or ())):  # fields beyond the header's
            raise TrainError(
                f"videos: {table} line {reader.line_num} has more fields than its header; put a text with "
                f"{delimiter!r} in quotes, and write decimals with a point"
            )
        yield reader.line_num, {(k or "").strip().lower(): (v or "").strip() for k, v in row.items() if k}


def _delimiter(text: str) -> str:
    """What separates the columns of a CSV: the first of comma, semicolon and tab by which its header is one."""
    for delimiter in DELIMITERS:
        header = next(csv.reader(io.StringIO(text), delimiter=delimiter), [])
        columns = {name.strip().lower() for name in header}
        if "path" in columns or columns >= KINETICS:
            return delimiter
    return DELIMITERS[0]


@dataclass(frozen=True)
class _Annotation:
    """Holds one segment of a video in ActivityNet's JSON; other fields are passed over."""

    label: str = ""
    segment: list[float | int | str | None] = field(default_factory=list)


@dataclass(frozen=True)
class _Facts:
    """Holds what ActivityNet's JSON says of a video."""

    subset: str = ""
    annotations: list[_Annotation] | None = None


def _database(table: Path, body: Any) -> dict[str, _Facts]:
    """Returns the videos of ActivityNet's JSON, every field checked.

    Raises:
        TrainError: another JSON.
    """
    database = body.get("database") if isinstance(body, dict) else None
    if not isinstance(database, dict):
        raise TrainError(f'videos: {table} is a JSON file without ActivityNet\'s "database" of videos')
    try:
        return as_record(database, dict[str, _Facts])
    except ValueError as error:
        raise TrainError(
            f"videos: {table} is no JSON file of ActivityNet's: {error}, in its database"
        ) from None


def _activity_net(table: Path, database: dict[str, _Facts], labels: Labels) -> tuple[list[Row], PassedOver]:
    """The segments of ``{"database": {id: {"subset", "annotations": [{"label", "segment": [start, end]}]}}}``.

    The videos are files called `<id>` or `v_<id>` with a video's ending, anywhere below the list's folder.
    """
    files = {stem_of(name): name for name in walk(table.parent)[0]}
    rows: dict[str, Row] = {}
    passed_over: PassedOver = []
    for video, facts in database.items():
        name = files.get(video) or files.get(f"v_{video}")
        annotations = facts.annotations or []
        split = split_named(facts.subset)
        if name is None or not annotations or split is None:
            reason = "missing file" if name is None else "no segments" if not annotations else "in no split"
            passed_over.append((video, reason))
            continue
        for note in annotations:
            times = (*note.segment, None, None)[:2]
            segment = segment_of(*times)
            label = note.label if labels != "none" else ""
            if segment is None or (labels != "none" and not label):
                passed_over.append((video, f"segment or label is none: {list(times)} {label}"))
            elif segment.id(name) in rows:
                passed_over.append((segment.id(name), "listed twice"))
            else:
                rows[segment.id(name)] = Row(name, label, split, "", segment)
    return list(rows.values()), passed_over


def text_of(path: Path) -> str:
    """The text of a list: UTF-8 with or without a byte-order mark, or UTF-16 with one.

    Raises:
        UnicodeError: another encoding.
    """
    body = path.read_bytes()
    marks = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    text = body.decode("utf-16" if body.startswith(marks) else "utf-8-sig")
    if "\0" in text:
        raise UnicodeError("a zero byte: UTF-16 without its mark, or no text")
    return text
