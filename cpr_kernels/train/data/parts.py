"""Which part of a data set does a machine make, and where is a video in the parts? Several LMDBs below one manifest."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .. import TrainError
from .manifest import Manifest
from .store import FrameStore, record_key

FOLDER = re.compile(r"part-(\d+)-of-(\d+)")


class Part(NamedTuple):
    """One of `of` parts of a data set, numbered from 1; a video's part follows from its id."""

    number: int
    of: int

    def folder(self, out: Path) -> Path:
        """Where the part is: a data set of its own."""
        return out / f"part-{self.number}-of-{self.of}"

    def holds(self, video_id: str) -> bool:
        """Whether a video is in this part."""
        return part_of(video_id, self.of) == self.number


def part_of(video_id: str, of: int) -> int:
    """The number of the part that a video is in."""
    return int(record_key("", video_id)[1:9], 16) % of + 1


def parse_part(text: str) -> Part:
    """Returns the part that ``2/8`` names.

    Raises:
        TrainError: no such text.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise TrainError(f"shard: expected I/N with 1 <= I <= N, such as 2/8, got {text!r}")
    return Part(int(match[1]), int(match[2]))


def parts_in(out: Path) -> list[Part]:
    """The parts whose folders are in a data set's folder."""
    found = [FOLDER.fullmatch(path.name) for path in out.iterdir()] if out.is_dir() else []
    return sorted(Part(int(match[1]), int(match[2])) for match in found if match)


def refuse_other_parts(out: Path, part: Part | None) -> None:
    """Raises `TrainError` where a folder holds a data set that is cut in another way."""
    held = {one.of for one in parts_in(out)}
    if held - ({part.of} if part else set()):
        raise TrainError(
            f"out: {out} holds a data set in {min(held)} parts; give --shard I/{min(held)}, or another --out"
        )
    if part and (out / "data.mdb").is_file():
        raise TrainError(f"out: {out} holds a data set in one part; give another --out, or no --shard")


def finished(out: Path, of: int) -> tuple[list[Manifest], list[int]]:
    """The manifests of the parts that are finished, and the numbers of those that are not."""
    parts = [Part(number, of) for number in range(1, of + 1)]
    done = [part for part in parts if (part.folder(out) / "manifest.json").is_file()]
    return [Manifest.load(part.folder(out)) for part in done], [
        part.number for part in parts if part not in done
    ]


class PartedStore(FrameStore):
    """The frames of a data set in parts: a `FrameStore` a part."""

    def __init__(self, folder: Path, of: int) -> None:
        super().__init__(folder)
        self.stores = [FrameStore(Part(number, of).folder(folder)) for number in range(1, of + 1)]

    def of(self, video_id: str) -> FrameStore:
        """The store that holds a video."""
        return self.stores[part_of(video_id, len(self.stores)) - 1]

    def check(self) -> None:
        """Raises `TrainError` where a part is missing or damaged."""
        for store in self.stores:
            store.check()

    def frames(self, video_id: str, view: str, start: int, count: int) -> npt.NDArray[np.uint8]:
        """Frames of a view; see `FrameStore.frames`."""
        return self.of(video_id).frames(video_id, view, start, count)

    def spectrogram(self, video_id: str) -> npt.NDArray[np.uint8]:
        """The spectrogram of a video; see `FrameStore.spectrogram`."""
        return self.of(video_id).spectrogram(video_id)

    def close(self) -> None:
        """Closes this process's environments."""
        for store in self.stores:
            store.close()


def open_store(folder: Path) -> FrameStore:
    """Returns the frames of a data set, in one part or in several."""
    parts = parts_in(folder)
    return PartedStore(folder, parts[0].of) if parts else FrameStore(folder)
