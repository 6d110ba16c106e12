"""Reads videos inside WebDataset's shards: tar files that hold KEY.mp4 and, for its class, KEY.cls or KEY.json."""

from __future__ import annotations

import json
import tarfile
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from ....video_files import ENDINGS, PassedOver, printable
from ... import TrainError

CLASS_KEYS = ("label", "class", "cls", "class_name")  # of KEY.json
LARGEST_NOTE = 1 << 20  # bytes of a KEY.cls or KEY.json


class Member(NamedTuple):
    """Where a file is in an uncompressed tar."""

    offset: int
    size: int
    ending: str


class Sample(NamedTuple):
    """One video of a shard; an empty label: it has no class."""

    key: str
    member: Member
    label: str


def shards_in(folder: Path) -> list[Path]:
    """The tar files that are directly in a folder, sorted."""
    return sorted(
        path for path in folder.iterdir() if path.suffix.lower() == ".tar" and not path.name.startswith(".")
    )


def read_shard(path: Path) -> tuple[list[Sample], PassedOver]:
    """Returns the videos of a shard, read from its headers, and what was passed over.

    Raises:
        TrainError: no tar, or a compressed or damaged one.
    """
    members: dict[str, Member] = {}
    notes: dict[str, dict[str, bytes]] = defaultdict(dict)
    passed_over: PassedOver = []
    length = path.stat().st_size
    try:
        with tarfile.open(path, "r:", errors="surrogateescape") as archive:
            for entry in archive:
                folder, slash, name = entry.name.rpartition("/")
                stem, _, ending = name.partition(".")
                key, ending = f"{folder}{slash}{stem}", f".{ending.lower()}"
                if (last := f".{ending.rpartition('.')[2]}") in ENDINGS:  # KEY.video.mp4
                    ending = last
                shown = f"{path.name}/{printable(entry.name)}"
                if not entry.isreg():
                    continue
                if entry.offset_data + entry.size > length or entry.issparse():
                    passed_over.append((shown, "cut short, or sparse"))
                elif ending in ENDINGS and key in members:
                    passed_over.append((shown, "a second video of its key"))
                elif ending in ENDINGS:
                    members[key] = Member(entry.offset_data, entry.size, ending)
                elif ending in (".cls", ".json") and entry.size <= LARGEST_NOTE:
                    file = archive.extractfile(entry)
                    notes[key][ending] = file.read() if file else b""
                else:
                    passed_over.append((shown, f"ending {ending} is no video's"))
    except (tarfile.TarError, EOFError, ValueError) as error:
        if not members and not passed_over:
            raise TrainError(
                f"videos: {path} is no uncompressed tar, or is damaged ({error}); unpack a compressed one first"
            ) from None
        passed_over.append((path.name, f"damaged: {error}"))
    return [Sample(printable(key), one, _label(notes[key])) for key, one in members.items()], passed_over


def _label(notes: dict[str, bytes]) -> str:
    """The class in KEY.cls, or in KEY.json; empty where there is none."""
    text = notes.get(".cls", b"").decode("utf-8", "replace").strip()
    if text or ".json" not in notes:
        return text
    try:
        body = json.loads(notes[".json"])
    except (ValueError, RecursionError):
        return ""
    found = [body[key] for key in CLASS_KEYS if key in body] if isinstance(body, dict) else []
    return str(found[0]).strip() if found and isinstance(found[0], (str, int)) else ""


@contextmanager
def extracted(path: Path, member: Member | None) -> Iterator[Path]:
    """Gives a file that holds a member of a shard while it is read; the path itself where it is no shard."""
    if member is None:
        yield path
        return
    with path.open("rb") as shard, tempfile.NamedTemporaryFile(suffix=member.ending) as file:
        shard.seek(member.offset)
        left = member.size
        while left and (part := shard.read(min(left, 1 << 20))):
            file.write(part)
            left -= len(part)
        file.flush()
        yield Path(file.name)
