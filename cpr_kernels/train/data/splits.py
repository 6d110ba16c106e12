"""Which videos train, which test, by the official lists? UCF101's and HMDB51's formats, as their archives hold them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .. import TrainError

if TYPE_CHECKING:
    from .sources import Source

HMDB_FILE = "*_test_split{fold}.txt"
HMDB_SPLITS = {"1": "train", "2": "test", "0": ""}  # 0: in neither, of this split


def official_splits(lists: Path, fold: int = 1) -> dict[str, str]:
    """{name of a video without its ending: train or test}, from a folder of split lists.

    UCF101: `trainlist01.txt`, `testlist01.txt` (`Class/v_Class_g08_c01.avi 1`), and `classInd.txt` when it is there,
    against which the classes are checked. HMDB51: `<class>_test_split1.txt` (`name.avi 1`: 1 trains, 2 tests, 0 is in
    neither).

    Raises:
        TrainError: no such lists, a line that is none, a class that classInd.txt does not know, or a video in both.
    """
    if not lists.is_dir():
        raise TrainError(f"splits: {lists} is no folder; give the one that holds the official lists")
    ucf = [(lists / f"{split}list{fold:02}.txt", split) for split in ("train", "test")]
    hmdb = sorted(lists.glob(HMDB_FILE.format(fold=fold)))
    if all(path.is_file() for path, _ in ucf):
        listed = [entry for path, split in ucf for entry in _ucf_entries(path, split, _classes(lists))]
    elif hmdb:
        listed = [entry for path in hmdb for entry in _hmdb_entries(path)]
    else:
        raise TrainError(
            f"splits: {lists} holds no lists of split {fold}; expected trainlist{fold:02}.txt and "
            f"testlist{fold:02}.txt (UCF101) or <class>_test_split{fold}.txt (HMDB51)"
        )
    splits: dict[str, str] = {}
    for stem, split in listed:
        if splits.setdefault(stem, split) != split:
            raise TrainError(f"splits: {lists} lists {stem} for training and for testing in split {fold}")
    return splits


def by_official_lists(
    sources: list[Source], lists: Path, fold: int
) -> tuple[list[Source], list[tuple[str, str]]]:
    """The listed videos with their splits, and those passed over: in no list, and how many listed ones are missing."""
    splits = official_splits(lists, fold)
    kept, passed_over, seen = [], [], set()
    for source in sources:
        split = splits.get(source.path.stem, "")
        seen.add(source.path.stem)
        if split:
            kept.append(replace(source, split=split))
        else:
            passed_over.append((source.id, f"in no list of split {fold}"))
    missing = [stem for stem, split in splits.items() if split and stem not in seen]
    if not kept:
        raise TrainError(
            f"splits: none of the {len(sources)} videos is listed in {lists} (split {fold}); the lists name videos "
            f"like {next(iter(splits), 'none')!r}, the folder holds {sources[0].path.stem!r}"
        )
    if missing:
        passed_over.append(
            (f"split {fold}", f"{len(missing):,} listed videos are missing, such as {missing[0]}")
        )
    return kept, passed_over


def _ucf_entries(path: Path, split: str, classes: set[str]) -> list[tuple[str, str]]:
    entries = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        name = line.strip().rsplit(" ", 1)[0] if split == "train" else line.strip()
        if not name:
            continue
        label, slash, _ = name.partition("/")
        if not slash or (classes and label not in classes):
            known = "Class/video.avi" if not slash else "a class of classInd.txt"
            raise TrainError(f"splits: {path.name} line {number}: expected {known}, got {line.strip()!r}")
        entries.append((Path(name).stem, split))
    return entries


def _hmdb_entries(path: Path) -> list[tuple[str, str]]:
    entries = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if not line.strip():
            continue
        name, _, mark = line.strip().rpartition(" ")
        if mark not in HMDB_SPLITS or not name:
            raise TrainError(
                f"splits: {path.name} line {number}: expected a name and 0, 1 or 2, got {line.strip()!r}"
            )
        entries.append((Path(name.strip()).stem, HMDB_SPLITS[mark]))
    return entries


def _classes(lists: Path) -> set[str]:
    path = lists / "classInd.txt"
    if not path.is_file():
        return set()
    return {line.split(" ", 1)[1].strip() for line in path.read_text().splitlines() if " " in line.strip()}
