"""What do the folders above a video say? Its split, wherever the level of the splits is, and its class."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from .. import TrainError

Labels = Literal["auto", "folder", "none"]
Folders = tuple[str, ...]  # the names of the folders from the root down to a video
SPLIT_NAMES = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "eval": "val", "evaluation": "val", "test": "test", "testing": "test", "trainval": "train", "holdout": "test",
    "heldout": "test",
}  # fmt: skip
_FURTHER = "set|split|list|videos?|clips?|data|frames"  # words beside a split's that say no more
_SPLIT_FOLDER = re.compile(
    rf"(?:(?:{_FURTHER})[ _.-])?({'|'.join(SPLIT_NAMES)})(?:[ _.-]?(?:{_FURTHER})|[_-]\d+)?"
)
_NUMBER = re.compile(r"v?\d+(?:x\d+)?(?:px|p|fps)?(?![^\W\d_])")  # 256, 256x256, 256px, v2
_WORD = re.compile(r"[^\W\d_]+")


@dataclass
class Layout:
    """The split and the class of each folder of videos; why those of other folders are passed over; and what a person
    should know of how they were read. An empty class: the video has none. An empty split: the folders tell none.
    """

    places: dict[Folders, tuple[str, str]] = field(default_factory=dict)  # {folders: (split, class)}
    passed_over: dict[Folders, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def split_named(name: str) -> str | None:
    """train, val or test where a folder's or a list's word means one: `Valid`, `TRAINING`, `videos_val`, `test_256`."""
    match = _SPLIT_FOLDER.fullmatch(unicodedata.normalize("NFC", name).strip().casefold())
    return SPLIT_NAMES[match[1]] if match else None


def _split_inside(name: str) -> tuple[str, str] | None:
    """The split among the words of a folder's name, and its other words: `k400_train` is ("train", "k")."""
    words = _WORD.findall(_NUMBER.sub(" ", unicodedata.normalize("NFC", name).casefold()))
    splits = {split for word in words if (split := split_named(word))}
    if not splits or (len(splits) > 1 and splits != {"train", "val"}):
        return None
    rest = [word for word in words if not split_named(word) and not re.fullmatch(_FURTHER, word)]
    return "train" if len(splits) > 1 else splits.pop(), " ".join(rest)


def read_layout(counts: dict[Folders, int], labels: Labels) -> Layout:
    """Returns what the folders of a data set mean; `counts`: how many videos each of them holds itself.

    Splits may be at any one level (`train/<class>/`, `<class>/val/`, `k400/train/<class>/`); the other levels are the
    class. A folder among classes that is called like a split is a class, and a note says so.

    Raises:
        TrainError: with `labels` auto, where most videos are in no class folder but some are.
    """
    layout = Layout()
    found = _split_level(list(counts), layout.notes)
    rest = {folders: folders for folders in counts}
    splits = dict.fromkeys(counts, "")
    if found is not None:
        rest, splits = _without_splits(list(counts), *found, layout)
    labels_of = {folders: _label(parts) if labels != "none" else "" for folders, parts in rest.items()}
    _note_odd_labels(labels_of.values(), layout.notes)
    loose = sum(counts[folders] for folders, label in labels_of.items() if not label)
    inside = sum(counts[folders] for folders in labels_of) - loose
    if labels == "auto" and inside and loose > inside:
        raise TrainError(
            f"videos: {loose:,} videos are in no class folder, and {inside:,} are in one; add --labels none to take "
            "all without classes, or --labels folder to take only those in folders"
        )
    unlabelled = labels == "none" or (labels == "auto" and not inside)
    for folders, label in labels_of.items():
        if label or unlabelled:
            layout.places[folders] = (splits[folders], label)
        else:
            layout.passed_over[folders] = "not inside a class folder"
    if labels == "auto" and not inside and loose:
        layout.notes.append("no class folders: the data set has no classes")
    return layout


def _split_level(folders: Sequence[Folders], notes: list[str]) -> tuple[int, dict[str, str]] | None:
    """The level at which folders are splits, and the split of each name there: all of them are called like one, or two
    or more below every parent, or all have a split's word beside others that they share.
    """
    found: list[tuple[int, dict[str, str]]] = []
    for level in range(max(map(len, folders), default=0)):
        children: dict[Folders, set[str]] = defaultdict(set)
        for path in folders:
            if len(path) > level:
                children[path[:level]].add(path[level])
        names = set().union(*children.values())
        called = {name: split for name in sorted(names) if (split := split_named(name))}
        others = sorted(names - set(called))
        fewest = min(len({called[name] for name in below & called.keys()}) for below in children.values())
        if called and (not others or fewest > 1):
            found.append((level, called))
        elif inside := _splits_inside(names, notes):
            found.append((level, inside))
        elif called:
            notes.append(
                f"folder {', '.join(called)} is taken for a class, since it is beside {', '.join(others[:3])}; where "
                "it is a split, move the others away or list the videos in a CSV"
            )
    if not found:
        return None
    return next(((level, splits) for level, splits in found if len(set(splits.values())) > 1), found[0])


def _splits_inside(names: Iterable[str], notes: list[str]) -> dict[str, str]:
    """The splits of folders called `k400_train`, `k400_val`: every name has a split's word, two of them differ, and
    their other words are the same; empty where that is not so, with a note where some are like that.
    """
    parts = {name: _split_inside(name) for name in sorted(names)}
    alike: dict[str, dict[str, str]] = defaultdict(dict)  # {other words: {name: split}}
    for name, part in parts.items():
        if part:
            alike[part[1]][name] = part[0]
    splits = {name: split for group in alike.values() for name, split in group.items()}
    if len(splits) == len(parts) and len(set(splits.values())) > 1 and len(alike.keys() - {""}) <= 1:
        return splits
    for group in alike.values():
        if len(set(group.values())) > 1:
            notes.append(
                f"folders {', '.join(list(group)[:3])} have names of splits in them and are taken for classes; where "
                "they are splits, call them train and test or list the videos in a CSV"
            )
    return {}


def _without_splits(
    folders: Sequence[Folders], level: int, called: dict[str, str], layout: Layout
) -> tuple[dict[Folders, Folders], dict[Folders, str]]:
    """The folders that make the class, and the split, of each folder that is in one."""
    splits: dict[Folders, str] = {}
    for path in folders:
        if len(path) > level and path[level] in called:
            splits[path] = called[path[level]]
        else:
            layout.passed_over[path] = "beside the split folders"
    parts = {path: path[:level] + path[level + 1 :] for path in splits}
    deep = [path for path in parts if len(parts[path]) > level]
    if deep and all(split_named(parts[path][level]) == splits[path] for path in deep):  # train/train/<class>
        parts.update({path: parts[path][:level] + parts[path][level + 1 :] for path in deep})
    if len({path[:level] for path in parts}) == 1 and any(len(kept) > level for kept in parts.values()):
        parts = {path: kept[level:] for path, kept in parts.items()}  # one folder around all says nothing
    return parts, splits


def _label(parts: Sequence[str]) -> str:
    """The class that folder names make; a folder in one of its own name is the same class."""
    names = [unicodedata.normalize("NFC", name) for name in parts]
    return "/".join(name for i, name in enumerate(names) if i == 0 or name != names[i - 1])


def _note_odd_labels(labels: Iterable[str], notes: list[str]) -> None:
    """Classes that may be one: they differ in case alone, or one is in the other; and splits left in their names."""
    distinct = sorted({label for label in labels if label})
    alike: dict[str, list[str]] = defaultdict(list)
    for label in distinct:
        alike[label.casefold()].append(label)
    for group in alike.values():
        if len(group) > 1:
            notes.append(f"classes {' and '.join(group)} differ in case only: they stay different classes")
    left = [label for label in distinct if "/" in label and any(map(split_named, label.split("/")))]
    if left:
        notes.append(
            f"class {left[0]} has the name of a split in it; where it is one, list the videos in a CSV"
        )
    known = set(distinct)
    if inner := next((label for label in distinct if label.rpartition("/")[0] in known), None):
        notes.append(
            f"class {inner} is a folder inside of class {inner.rpartition('/')[0]}, and another class; where it is the "
            "same, move its videos up or list them in a CSV"
        )
    if len(distinct) == 1:
        notes.append(
            f"there is one class only, {distinct[0]}; add --labels none where the folder is no class"
        )
