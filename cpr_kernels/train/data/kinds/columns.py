"""Reads the rows of a CSV of videos: what separates its columns, and which of them say what."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from ....reading.decimals import WITH_A_POINT
from ....video_files import ENDINGS
from ... import TrainError
from .annotations import KINETICS, Line

COLUMNS = "path[,label,split,group,start,end]"
CALLED = {  # {column: what other programs call it}; of several that are there, the first counts
    "path": "path filename file_name filepath file_path video video_path video_file clip_path",
    "label": "label class labels class_name label_name category action",
    "split": "split subset set partition",
    "group": "group",
    "start": "start start_time t_start start_sec start_seconds begin",
    "end": "end end_time t_end end_sec end_seconds stop",
}
DELIMITERS = ",;\t"
WHOLE_LINE = "\x1f"  # a delimiter that no path has


def csv_lines(table: Path, text: str, folder: Path) -> tuple[list[tuple[int, Line]], list[str]]:
    """Returns the rows of a CSV with their line numbers, under our names of columns or Kinetics', and the columns that
    are not used.

    A list of paths, or of paths and labels, needs no header. `folder`: what its paths are below.

    Raises:
        TrainError: no header that names a path, two columns of one name, or a row with more fields than the header.
        csv.Error: no CSV.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    delimiter, bare = _shape(text, folder)
    reader = csv.DictReader(io.StringIO(text), bare, delimiter=delimiter)
    columns = [(name or "").strip().lower() for name in reader.fieldnames or ()]
    if twice := next((name for name in columns if name and columns.count(name) > 1), None):
        raise TrainError(f"videos: {table} has two columns {twice}; rename one")
    meaning = _meaning(columns)
    if not meaning:
        raise TrainError(f"videos: {table} needs a header with {COLUMNS}, got {sorted(columns)}")
    lines = []
    for row in reader:
        if any(map(str.strip, row.get(None) or ())):  # fields beyond the header's
            raise TrainError(
                f"videos: {table} line {reader.line_num} has more fields than its header; put a text with "
                f"{delimiter!r} in quotes, and {WITH_A_POINT}"
            )
        fields = {(name or "").strip().lower(): (value or "").strip() for name, value in row.items() if name}
        lines.append((reader.line_num, {ours: fields.get(theirs, "") for ours, theirs in meaning.items()}))
    return lines, [name for name in columns if name and name not in meaning.values()]


def _meaning(columns: Sequence[str]) -> dict[str, str]:
    """{our name: the column that is called so}; empty where none names a path."""
    if set(columns) >= KINETICS:
        return {name: name for name in (*sorted(KINETICS), "label", "split") if name in columns}
    found = {
        ours: next((name for name in names.split() if name in columns), "") for ours, names in CALLED.items()
    }
    return {ours: name for ours, name in found.items() if name} if found["path"] else {}


def _shape(text: str, folder: Path) -> tuple[str, list[str] | None]:
    """What separates the columns of a CSV, and their names where it has no header.

    A header is one by the first of comma, semicolon and tab; else the first line is a path, or a path and a label.
    """
    headers = {one: next(csv.reader(io.StringIO(text), delimiter=one), []) for one in DELIMITERS}
    for delimiter, header in headers.items():
        if _meaning([name.strip().lower() for name in header]):
            return delimiter, None
    first = text.partition("\n")[0].strip()
    if (len(headers[","]) == 1 and _ends_as_video(headers[","][0])) or _is_file(folder, first):
        if _ends_as_video(headers["\t"][0]) and len(headers["\t"]) == 2:
            return "\t", ["path", "label"]
        return WHOLE_LINE, ["path"]
    for delimiter, header in headers.items():
        if len(header) == 2 and _ends_as_video(header[0]) and not _ends_as_video(header[1]):
            return delimiter, ["path", "label"]
    return DELIMITERS[0], None


def _ends_as_video(name: str) -> bool:
    return Path(name.strip()).suffix.lower() in ENDINGS


def _is_file(folder: Path, name: str) -> bool:
    try:
        return bool(name) and _ends_as_video(name) and (folder / name).is_file()
    except OSError:  # a line that is too long for a name
        return False
