"""Which videos does a list name, whole or in segments? A CSV, a bare list of paths, or ActivityNet's JSON."""

from __future__ import annotations

import codecs
import csv
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ...reading.decimals import WITH_A_POINT, decimal_comma
from ...reading.records import as_record, read_json
from ...video_files import PassedOver
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
)
from .kinds.columns import COLUMNS, csv_lines
from .layouts import Labels, split_named
from .segments import WHOLE, Segment, segment_of


class Row(NamedTuple):
    """One sample of a list: its path as written, and what the list says of it; empty where it says nothing."""

    name: str
    label: str = ""
    split: str = ""
    group: str = ""
    segment: Segment = WHOLE


class List(NamedTuple):
    """What a list names: its samples, what was passed over, and the columns that are not used."""

    rows: list[Row]
    passed_over: PassedOver
    unused: Sequence[str] = ()


def read_list(table: Path, labels: Labels, root: Path | None = None) -> List:
    """Returns the samples of a list, and what was passed over: rows without a path, without a label where others have
    one, and repeated ones.

    The header of a CSV names its columns: `path`, and optionally `label`, `split`, `group`, and `start` and `end` of a
    segment, in seconds from the first frame on, or as other programs call them (see `columns.CALLED`). A list of paths
    alone, or of paths and labels, needs no header. UTF-8, or UTF-16
    that begins with its mark. A file called `.json` is ActivityNet's (see `_activity_net`), Kinetics' or
    Something-Something's, and mmaction2's `path label` is read too; see `annotations`. Where those give no split, it is
    in the list's name. `root`: the folder that names are below, by default the list's.

    Raises:
        TrainError: no such header, another encoding, a split or a segment that is none.
    """
    folder = root or table.parent
    try:
        text = text_of(table)
        if table.suffix.lower() == ".json":
            body = read_json(text)
            files, repeats = files_by_id(folder)
            public = json_lines(body, files, labels != "none")
            if public is None:
                rows, passed_over = _activity_net(_database(table, body), files, labels)
                return List(rows, passed_over + repeats)
            return _public(table, public[0], public[1] + repeats, labels)
        if (plain := list_lines(text)) is not None:
            return _public(table, plain, [], labels)
        lines, unused = csv_lines(table, text, folder)
        if lines and lines[0][1].keys() >= KINETICS:
            files, repeats = files_by_id(folder)
            made, passed_over = kinetics_lines((line for _, line in lines), files)
            return _public(table, made, passed_over + repeats, labels)._replace(unused=unused)
    except (ValueError, csv.Error):
        raise TrainError(
            f"videos: {table} is a file, and no CSV in UTF-8; give a folder of videos, a CSV with the columns "
            f"{COLUMNS}, or ActivityNet's JSON"
        ) from None
    numbers = [number for number, _ in lines]
    return _public(table, [line for _, line in lines], [], labels, numbers)._replace(unused=unused)


def _public(
    table: Path, lines: list[Line], passed_over: PassedOver, labels: Labels, numbers: Sequence[int] = ()
) -> List:
    """The rows of a list's lines, whose `numbers` count from 1; what gives no split has that of the list's name."""
    named = split_of(table)
    numbered = [
        (number, {**line, "split": line.get("split") or named})
        for number, line in zip(numbers or itertools.count(1), lines)
    ]
    rows, further = _rows(table, numbered, labels)
    return List(rows, passed_over + further)


def _rows(
    table: Path, lines: list[tuple[int, dict[str, str]]], labels: Labels
) -> tuple[list[Row], PassedOver]:
    rows: dict[str, Row] = {}
    passed_over: PassedOver = []
    named = _class_names(table, lines) if labels != "none" else {}
    has_labels = any(named.values())
    for number, line in lines:
        name, label = line.get("path", ""), named.get(line.get("label", ""), "")
        written = line.get("split", "")
        split = split_named(written) if written else ""
        if split is None:
            raise TrainError(
                f"videos: {table} line {number}: split must be train, val or test, got {written!r}"
            )
        times = line.get("start", ""), line.get("end", "")
        segment = segment_of(*times)
        if segment is None:
            comma = decimal_comma([time for time in times if time])
            raise TrainError(
                f"videos: {table} line {number}: start and end must be seconds with 0 <= start < end, got {times[0]!r} "
                f"and {times[1]!r}{f'; {WITH_A_POINT}' if comma else ''}"
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
    labels = dict.fromkeys(line.get("label", "") for _, line in lines)
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


def _activity_net(
    database: dict[str, _Facts], files: dict[str, str], labels: Labels
) -> tuple[list[Row], PassedOver]:
    """The segments of ``{"database": {id: {"subset", "annotations": [{"label", "segment": [start, end]}]}}}``.

    The videos are files called `<id>` or `v_<id>` with a video's ending, anywhere below the list's folder or the root.
    """
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
