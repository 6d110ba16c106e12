"""Which videos are in this data set, and what do their names say? Folders and CSV lists, labels, sources,
splits.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

from .. import TrainError
from .splits import by_official_lists

SPLITS = ("train", "test")
UCF_NAME = re.compile(r"^v_(?P<name>.+)_g(?P<group>\d+)_c(?P<clip>\d+)$")
# HMDB51: source, class, visible parts, camera motion, people, view, quality, clip number
HMDB_NAME = re.compile(r"^(?P<source>.+)_[fhlu]_(cm|nm)_np\d_(ba|bl|br|fr|le|ri)_(bad|goo|med)_\d+$")
UCF_TEST_GROUPS = range(1, 8)  # split 1 of UCF101 tests on groups 1 to 7
TEST_SHARE = 0.25


@dataclass(frozen=True)
class Source:
    """One video file. `group` names the footage it was cut from: files of one group are siblings."""

    id: str
    path: Path
    label: str
    group: str
    split: str = ""


def list_sources(
    videos: Path, splits: Path | None = None, fold: int = 1
) -> tuple[list[Source], list[tuple[str, str]]]:
    """The videos of a folder or of a CSV list, sorted by id, and what was passed over as (name, reason).

    A folder holds one folder a class (`folder/<class>/<file>`), optionally below `train` and `test`.
    A CSV has a header with `path` and `label`, and optionally `split` (train or test) and `group`; its paths
    are relative to the CSV. Names like `v_Archery_g01_c02` give the group, and the official split 1 of
    UCF101. Otherwise a quarter of each class's groups, chosen by a hash of their names, is the test split.
    `splits`, a folder of official lists (UCF101's or HMDB51's), decides for number `fold` of its splits, and leaves
    out what it does not list.
    """
    if not videos.exists():
        raise TrainError(f"videos: {videos} does not exist; give a folder with one folder a class, or a CSV")
    try:
        listed, passed_over = _from_csv(videos) if videos.is_file() else _from_folder(videos)
    except (UnicodeDecodeError, csv.Error):
        raise TrainError(
            f"videos: {videos} is a file, and no CSV in UTF-8; give a folder with one folder a class, or a CSV with "
            "the columns path and label"
        ) from None
    if not listed:
        raise TrainError(
            f"videos: no video found in {videos}; expected {videos.name}/<class>/<video> "
            "or a CSV with the columns path and label"
        )
    listed.sort(key=lambda source: source.id)
    if splits is None:
        return with_splits(listed), passed_over
    listed, unlisted = by_official_lists(listed, splits, fold)
    return listed, passed_over + unlisted


def group_of(label: str, stem: str) -> str:
    """The source footage of a file: class and group for UCF101 names, the film for HMDB51's, else the file itself."""
    if match := UCF_NAME.match(stem):
        return f"{label}/g{match['group']}"
    match = HMDB_NAME.match(stem)
    return f"{label}/{match['source']}" if match else f"{label}/{stem}"


def with_splits(sources: list[Source]) -> list[Source]:
    """Gives every source without a split one, whole groups at a time: siblings never face each other."""
    groups_of_class: dict[str, set[str]] = defaultdict(set)
    for source in sources:
        if not source.split:
            groups_of_class[source.label].add(source.group)
    test_groups: set[str] = set()
    for groups in groups_of_class.values():
        ranked = sorted(groups, key=lambda group: hashlib.sha1(group.encode()).hexdigest())
        wanted = max(1, round(len(ranked) * TEST_SHARE)) if len(ranked) > 1 else 0
        test_groups.update(ranked[:wanted])
    return [
        source if source.split else replace(source, split=_split(source, test_groups)) for source in sources
    ]


def _split(source: Source, test_groups: set[str]) -> str:
    match = UCF_NAME.match(source.path.stem)
    in_test = int(match["group"]) in UCF_TEST_GROUPS if match else source.group in test_groups
    return "test" if in_test else "train"


def _from_folder(root: Path) -> tuple[list[Source], list[tuple[str, str]]]:
    listed, passed_over = [], []
    for path in sorted(root.rglob("*")):
        relative = path.relative_to(root)
        if path.is_dir() and not path.name.startswith(".") and not any(path.iterdir()):
            passed_over.append((f"{relative.as_posix()}/", "empty folder"))
        if not path.is_file() or any(part.startswith(".") for part in relative.parts):
            continue
        parts = list(relative.parts)
        split = parts.pop(0) if parts[0] in SPLITS and len(parts) > 2 else ""
        if len(parts) < 2:
            passed_over.append((relative.as_posix(), "not inside a class folder"))
            continue
        label = "/".join(parts[:-1])
        listed.append(Source(relative.as_posix(), path, label, group_of(label, path.stem), split))
    return listed, passed_over


def _from_csv(table: Path) -> tuple[list[Source], list[tuple[str, str]]]:
    listed: dict[str, Source] = {}
    passed_over: list[tuple[str, str]] = []
    with table.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        columns = set(reader.fieldnames or ())
        label_column = "label" if "label" in columns else "class"
        if not {"path", label_column} <= columns:
            raise TrainError(
                f"videos: {table} needs a header with path,label[,split,group], got {sorted(columns)}"
            )
        for row in reader:
            name, label = (row["path"] or "").strip(), (row[label_column] or "").strip()
            split, group = (row.get("split") or "").strip(), (row.get("group") or "").strip()
            if split not in ("", *SPLITS):
                raise TrainError(
                    f"videos: {table} line {reader.line_num}: split must be train or test, got {split!r}"
                )
            if not name or not label:
                passed_over.append((f"{table.name} line {reader.line_num}", "path or label is empty"))
            elif name in listed:
                passed_over.append((name, f"listed twice (line {reader.line_num})"))
            else:
                group = f"{label}/{group}" if group else group_of(label, Path(name).stem)
                listed[name] = Source(name, table.parent / name, label, group, split)
    return list(listed.values()), passed_over
