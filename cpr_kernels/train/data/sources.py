"""Which videos are in this data set, and what do their names say? Folders and lists, labels, sources, splits."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from os.path import normpath, realpath
from pathlib import Path
from typing import NamedTuple

from ...progress import waiting
from ...reading.records import many_objects
from ...video_files import ENDINGS, PassedOver, by_reason, first_of_each, walk
from .. import TrainError
from .kinds.annotations import is_address, split_of, stem_of
from .kinds.columns import COLUMNS
from .kinds.shards import Member, read_shard, shards_in
from .kinds.splits import official_splits
from .layouts import Labels, read_layout
from .lists import read_list
from .segments import WHOLE, Segment

UCF_NAME = re.compile(r"^v_(?P<name>.+)_g(?P<group>\d+)_c(?P<clip>\d+)$")
# HMDB51: source, class, visible parts, camera motion, people, view, quality, clip number
HMDB_NAME = re.compile(r"^(?P<source>.+)_[fhlu]_(cm|nm)_np\d_(ba|bl|br|fr|le|ri)_(bad|goo|med)_\d+$")
UCF_TEST_GROUPS = range(1, 8)  # split 1 of UCF101 tests on groups 1 to 7
TEST_SHARE = 0.25
ROOT_HINT = "; --root FOLDER names the folder that a list's files are below"
NO_LABELS = "no labels: the data set has no classes"


class Stamp(NamedTuple):
    """Size and time of change of a file: what tells a changed one from an unchanged one."""

    bytes: int
    changed_ns: int


class Source(NamedTuple):
    """One sample: a video file, or a segment of one. `label` is empty where it has no class. `group` names the footage
    it was cut from: samples of one group are siblings, and so are all segments of a file. `split` is train, test, or
    val: kept apart from both.
    """

    id: str
    file: str
    label: str
    group: str
    split: str = ""
    segment: Segment = WHOLE
    member: Member | None = None  # where it is in `file`, a tar
    stamp: Stamp | None = None  # of the file when it was listed; None: it is missing

    @property
    def path(self) -> Path:
        """Its file."""
        return Path(self.file)

    @property
    def stem(self) -> str:
        """The name of its file, without a video's ending."""
        return stem_of(self.file)


class Listing(NamedTuple):
    """The videos of a data set sorted by id, what was passed over as (name, reason), and how it was all understood."""

    sources: list[Source]
    passed_over: PassedOver
    notes: list[str]


@many_objects()
def list_sources(
    videos: Path | Sequence[Path],
    splits: Path | None = None,
    fold: int = 1,
    labels: Labels = "auto",
    root: Path | None = None,
) -> Listing:
    """Returns the videos of a folder or of a list, or of several.

    A folder holds one folder a class, and optionally folders of splits above or below them; see `read_layout`. A list
    is a CSV, or ActivityNet's JSON; see `read_list`; its paths are relative to it. Without class folders or a label
    column, and with `labels` none, videos have no class. A folder of numbered pictures is a video. `root` is the folder
    that the paths of lists are below.

    Where neither says the split: names like `v_Archery_g01_c02` give the official split 1 of UCF101, and else a
    quarter of each class's groups, chosen by a hash of their names, is the test split; videos without a class train.
    Validation videos are the test split where there is no other, else they are kept apart. `splits`, a folder of
    official lists (UCF101's or HMDB51's), decides for number `fold` of its splits, and leaves out what it does not
    list. A file that is listed twice, by links or otherwise, is taken once, for testing where it is listed for both.

    Raises:
        TrainError: nothing there, a list that cannot be read, or folders that cannot be understood.
    """
    given = [videos] if isinstance(videos, Path) else list(videos)
    with waiting("list videos"):
        listed = _joined([_listed(one, labels, root) for one in given])
    videos = given[0] if len(given) == 1 else Path(", ".join(map(str, given)))
    if not listed.sources:
        why = by_reason(listed.passed_over)
        raise TrainError(
            f"videos: no video found in {videos}{f' (passed over: {why})' if why else ''}; expected "
            f"{videos.name}/<class>/<video>, {videos.name}/<video>, or a CSV with the columns {COLUMNS}"
            f"{ROOT_HINT if 'missing file' in why else ''}; videos end in {' '.join(sorted(ENDINGS))}"
        )
    sources, passed_over = listed.sources, list(listed.passed_over)
    if splits is not None:
        sources, unlisted = by_official_lists(sources, splits, fold)
        passed_over += unlisted
    sources, notes = _settled_validation(with_splits(sources))
    sources, repeats = _without_repeats(sources)
    notes += _segments_on_both_sides(sources)
    return Listing(sorted(sources, key=lambda one: one.id), passed_over + repeats, listed.notes + notes)


def _listed(videos: Path, labels: Labels, root: Path | None) -> Listing:
    """The videos of one folder or list."""
    if is_address(str(videos)):
        raise TrainError(
            f"videos: {videos} is an address, and only files are read; copy it here first, as by `aws s3 sync`"
        )
    if not videos.exists():
        raise TrainError(f"videos: {videos} does not exist; give a folder of videos, or a CSV with {COLUMNS}")
    if videos.is_file():
        tar = videos.suffix.lower() == ".tar"
        return _from_shards([videos], labels) if tar else _from_list(videos, labels, root)
    listed = _from_folder(videos, labels)
    return _from_shards(shards, labels) if not listed.sources and (shards := shards_in(videos)) else listed


def _from_shards(shards: Sequence[Path], labels: Labels) -> Listing:
    """The videos inside tar files, named after both; the split is in the name of a tar."""
    read = [(path, *read_shard(path)) for path in shards]
    passed_over = [one for _, _, left_out in read for one in left_out]
    labelled = labels != "none" and any(sample.label for _, samples, _ in read for sample in samples)
    listed = []
    for path, samples, _ in read:
        for key, member, label in samples:
            name, label = f"{path.name}/{key}", label if labelled else ""
            if labelled and not label:
                passed_over.append((name, "no class in its .cls or .json"))
            else:
                own = group_of(label, key)
                listed.append(Source(name, str(path), label, own, split_of(path), member=member))
    return Listing(listed, passed_over, [] if labelled else [NO_LABELS])


def _joined(listings: Sequence[Listing]) -> Listing:
    """Several listings as one, without samples that an earlier one names; where two mean different files, an error."""
    if len(listings) == 1:
        return listings[0]
    kept, repeats = first_of_each([one for listed in listings for one in listed.sources], lambda one: one.id)
    for again, first in repeats:
        if realpath(again.file) != realpath(first.file):
            raise TrainError(
                f"videos: {again.id} is the name of {first.file} and of {again.file}; list them below one folder"
            )
    passed_over = [one for listed in listings for one in listed.passed_over]
    passed_over += [(again.id, "listed twice") for again, _ in repeats]
    unlabelled = not any(one.label for one in kept)
    notes = [note for listed in listings for note in listed.notes if note != NO_LABELS or unlabelled]
    return Listing(kept, passed_over, list(dict.fromkeys(notes)))


def group_of(label: str, name: str) -> str:
    """The source footage of a file by its path or name: class and group for UCF101 names, the film for HMDB51's, else
    the file itself, in its class or in its folder.
    """
    stem = stem_of(name)
    if match := UCF_NAME.match(stem):
        return f"{label or match['name']}/g{match['group']}"
    match = HMDB_NAME.match(stem)
    return f"{label or name.rpartition('/')[0] or '.'}/{match['source'] if match else stem}"


def with_splits(sources: list[Source]) -> list[Source]:
    """Gives every source without a split one, whole groups at a time: siblings never face each other."""
    groups_of_class: dict[str, set[str]] = defaultdict(set)
    for source in sources:
        if not source.split and source.label:
            groups_of_class[source.label].add(source.group)
    test_groups: set[str] = set()
    for groups in groups_of_class.values():
        ranked = sorted(groups, key=lambda group: hashlib.sha1(group.encode()).hexdigest())
        wanted = max(1, round(len(ranked) * TEST_SHARE)) if len(ranked) > 1 else 0
        test_groups.update(ranked[:wanted])
    return [
        source if source.split else source._replace(split=_split(source, test_groups)) for source in sources
    ]


def _split(source: Source, test_groups: set[str]) -> str:
    match = UCF_NAME.match(source.stem)
    in_test = int(match["group"]) in UCF_TEST_GROUPS if match else source.group in test_groups
    return "test" if in_test else "train"


def by_official_lists(sources: list[Source], lists: Path, fold: int) -> tuple[list[Source], PassedOver]:
    """The listed videos with their splits, and those passed over: in no list, and how many listed ones are missing."""
    splits = official_splits(lists, fold)
    kept, passed_over, seen = [], [], set()
    for source in sources:
        split = splits.get(source.stem, "")
        seen.add(source.stem)
        if split:
            kept.append(source._replace(split=split))
        else:
            passed_over.append((source.id, f"in no list of split {fold}"))
    missing = [stem for stem, split in splits.items() if split and stem not in seen]
    if not kept:
        raise TrainError(
            f"splits: none of the {len(sources)} videos is listed in {lists} (split {fold}); the lists name videos "
            f"like {next(iter(splits), 'none')!r}, the folder holds {sources[0].stem!r}"
        )
    if missing:
        passed_over.append(
            (f"split {fold}", f"{len(missing):,} listed videos are missing, such as {missing[0]}")
        )
    return kept, passed_over


def _settled_validation(sources: list[Source]) -> tuple[list[Source], list[str]]:
    """Validation videos test where nothing else does."""
    counts = Counter(source.split for source in sources)
    if not counts["val"]:
        return sources, []
    if counts["test"]:
        return sources, [f"{counts['val']:,} validation videos are kept apart: neither trained on nor tested"]
    resolved = [one._replace(split="test") if one.split == "val" else one for one in sources]
    return resolved, [f"the {counts['val']:,} validation videos are the test split"]


def _without_repeats(sources: Sequence[Source]) -> tuple[list[Source], PassedOver]:
    """Each file once, with its stamp: a link, or another spelling of its path, is the same video."""
    known: dict[str, os.stat_result | None] = {}
    for source in sources:
        if source.file not in known:
            known[source.file] = _status(source.file)

    def identity(source: Source) -> Hashable:
        status = known[source.file]
        if status is None:
            return source.id
        return status.st_dev, status.st_ino, source.segment, source.member

    testing_first = sorted(sources, key=lambda one: (one.split == "train", one.id))
    kept, repeats = first_of_each(testing_first, identity)
    stamped = [
        one if status is None else Source(*one[:-1], Stamp(status.st_size, status.st_mtime_ns))
        for one in kept
        for status in [known[one.file]]
    ]
    return stamped, [
        (again.id, f"same file again{_labels_differ(again, first)}: {first.id} ({first.split})")
        for again, first in repeats
    ]


def _labels_differ(again: Source, first: Source) -> str:
    return "" if again.label == first.label else f" with another label than {first.label or 'none'}"


def _status(file: str) -> os.stat_result | None:
    try:
        return os.stat(file)  # noqa: PTH116  (a path would take three times as long)
    except OSError:
        return None


def _segments_on_both_sides(sources: Sequence[Source]) -> list[str]:
    """What is to be said of files that a list cuts into segments for training and for testing."""
    splits: dict[str, set[str]] = defaultdict(set)
    for source in sources:
        if not source.segment.whole:
            splits[source.file].add(source.split)
    both = sum({"train", "test"} <= of_file for of_file in splits.values())
    return [f"{both:,} files have segments for training and for testing"] if both else []


def _with_slashes(folder: Path, name: str) -> str:
    """The name of a file as a list gives it, where it is with Windows' separators too."""
    return name if "\\" not in name or (folder / name).exists() else name.replace("\\", "/")


def _from_folder(root: Path, labels: Labels) -> Listing:
    names, passed_over = walk(root, frames=True)
    counts = Counter(name.rpartition("/")[0] for name in names)
    folders = {folder: tuple(folder.split("/")) if folder else () for folder in counts}
    layout = read_layout({folders[folder]: count for folder, count in counts.items()}, labels)
    listed = []
    for name in names:
        above = folders[name.rpartition("/")[0]]
        if above in layout.places:
            split, label = layout.places[above]
            listed.append(Source(name, f"{root}/{name}", label, group_of(label, name), split))
        else:
            passed_over.append((name, layout.passed_over[above]))
    return Listing(listed, passed_over, layout.notes)


def _from_list(table: Path, labels: Labels, root: Path | None) -> Listing:
    rows, passed_over, unused = read_list(table, labels, root)
    in_parts = {normpath(row.name) for row in rows if not row.segment.whole}
    listed = []
    folder = root or table.parent
    for name, label, split, group, segment in rows:
        name = _with_slashes(folder, name)
        of_source = (
            "" if in_parts and normpath(name) in in_parts else label
        )  # segments of a file are siblings whatever their classes
        own = f"{of_source}/{group}" if group else group_of(of_source, name)
        listed.append(Source(segment.id(name), str(folder / name), label, own, split, segment))
    notes = [] if any(row.label for row in rows) else [NO_LABELS]
    if unused:
        notes.append(
            f"columns of {table.name} that are not used: {', '.join(unused)}; those read are {COLUMNS}"
        )
    return Listing(listed, passed_over, notes)
