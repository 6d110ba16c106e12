"""Which videos train, which test, by the official lists? UCF101's and HMDB51's formats, as their archives hold them."""

from __future__ import annotations

from pathlib import Path

from ... import TrainError

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


def _ucf_entries(path: Path, split: str, classes: set[str]) -> list[tuple[str, str]]:
    entries = []
    for number, line in enumerate(_text(path).splitlines(), start=1):
        line = line.replace("\\", "/")
        name = line.strip().rsplit(None, 1)[0] if split == "train" and line.strip() else line.strip()
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
    for number, line in enumerate(_text(path).splitlines(), start=1):
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
    return {line.split(" ", 1)[1].strip() for line in _text(path).splitlines() if " " in line.strip()}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeError:
        raise TrainError(f"splits: {path} is no text in UTF-8; take the official list again") from None
