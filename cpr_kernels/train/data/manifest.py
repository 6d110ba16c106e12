"""The manifest of a prepared data set: which videos it holds, and what is known of each."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any
from weakref import WeakValueDictionary

import numpy as np
from msgspec import Meta

from ...progress import say
from ...reading.records import as_record, many_objects, read_json, read_large_record
from ...reading.seals import UNSEALED, check_seal, sealed_text, text_seal
from .. import TrainError
from ..runtime.files import write_atomically
from .decoding import FrameSettings, Knots

VERSION, READABLE = 2, (1, 2)  # 1 had no sound
NO_CLASS = -1  # the label of a video without a class
SPREAD = 1.1  # the highest by the lowest frame rate from which on they differ: 24 and 25 do not, 25 and 30 do


@dataclass(frozen=True)
class Video:
    """One stored video, or a segment of one: its label is an index into the manifest's classes, -1 where it has none;
    videos of one group are cut from one source; `split` is train, test, or val: kept apart from both. `silence` is
    empty where its sound is stored, else it says why there is none.

    fps: frames a second as stored, the mean; 0 where that is not known.
    knots: (frame, second) at the corners of the polyline on which the times of its frames lie; two where the rate is
    constant, none where it is not known.
    note: what is to be said of its times; empty where all is well.
    """

    id: str
    label: Annotated[int, Meta(ge=NO_CLASS)]
    group: Annotated[int, Meta(ge=0)]
    split: Annotated[str, Meta(pattern="^(train|test|val)$")]
    frames: Annotated[int, Meta(ge=1, le=1 << 24)]
    silence: str = "prepared before sound was kept"
    start: Annotated[float, Meta(ge=0)] = 0.0  # seconds, of a segment
    end: float | None = None  # of a segment; None: the video's end
    fps: Annotated[float, Meta(ge=0)] = 0.0
    knots: Knots = ()
    note: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.knots, list):  # JSON has lists where tuples were
            object.__setattr__(self, "knots", tuple((frame, second) for frame, second in self.knots))

    @property
    def file(self) -> str:
        """The path of its file, as listed: what its id begins with."""
        return self.id if (self.start, self.end) == (0.0, None) else self.id.rpartition("@")[0]

    def second(self, frame: int) -> float | None:
        """When a frame is shown, counted from the first one; None where that is not known."""
        frames, seconds = [[knot[i] for knot in self.knots] for i in (0, 1)]
        return float(np.interp(frame, frames, seconds)) if self.knots else None


def _plain(video: Video) -> dict[str, Any]:
    """A video as JSON holds it; start and end of segments only."""
    return {name: value for name, value in vars(video).items() if value or name not in ("start", "end")}


@dataclass(frozen=True)
class Manifest:
    """What a data set holds. `videos` are in the order of their ids, after `cpr update` the old ones before the new; a
    video's index there names it everywhere.
    """

    settings: FrameSettings
    classes: list[str]
    videos: list[Video]
    skipped: list[tuple[str, str]]

    def need_classes(self, data: Path, what: str) -> None:
        """Raises `TrainError` where the videos have no classes, which `what` needs."""
        if not self.classes:
            raise TrainError(
                f"data: {data} has no classes, and {what} needs them; prepare the videos again in one folder a class, "
                "or by a CSV with a label column (cpr explore, cpr export and cpr index need none)"
            )

    @many_objects()
    def save(self, folder: Path) -> None:
        """Writes `manifest.json` and `skipped.txt`, atomically."""
        body = {
            "version": VERSION,
            "settings": asdict(self.settings),
            "classes": self.classes,
            "videos": [_plain(video) for video in self.videos],
            "skipped": self.skipped,
        }
        write_atomically(
            folder / "skipped.txt", "".join(f"{name}\t{reason}\n" for name, reason in self.skipped).encode()
        )
        write_atomically(folder / "manifest.json", sealed_text(body, indent=1))

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Reads the manifest of a prepared data set."""
        path = folder / "manifest.json"
        if not path.is_file():
            if (folder / "data.mdb").is_file() or any(folder.glob("part-*-of-*")):
                raise TrainError(
                    f"data: {folder} is not finished; run the same `cpr prepare` again to finish it"
                )
            raise TrainError(
                f"data: {folder} holds no prepared data set; make one with `cpr prepare`, or say where it is "
                "by --data"
            )
        try:
            text = path.read_bytes()
            seal = text_seal(text)
            if seal and (held := _HELD.get(seal)):
                return held
            made = _newest(text) if seal else _older(text, path)
            made.check()
        except (ValueError, OSError) as error:
            raise TrainError(f"data: {path} is damaged ({error}); run the same `cpr prepare` again") from None
        if seal:
            _HELD[seal] = made
        return made

    def check(self) -> None:
        """Raises `ValueError` for videos of no known class, and for two of one id."""
        for video in self.videos:
            if video.label >= max(len(self.classes), 1) or (not self.classes and video.label >= 0):
                raise ValueError(
                    f"{video.id} has label {video.label}, and there are {len(self.classes)} classes"
                )
        if len({video.id for video in self.videos}) < len(self.videos):
            raise ValueError("two of its videos have one id")


_HELD: WeakValueDictionary[str, Manifest] = (
    WeakValueDictionary()
)  # by their hash: what is in use is not decoded again


@dataclass(frozen=True)
class _Version:
    """Holds the version of a manifest, whatever else is in it."""

    version: Any = None


@dataclass(frozen=True)
class _Stored(Manifest):
    """Holds a manifest with its version, so that both are decoded at once."""

    version: Any = None


def _newest(text: bytes) -> Manifest:
    """Returns a manifest whose hash is right; one of another version may have other fields, too."""
    try:
        stored = read_large_record(text, _Stored)
    except ValueError:
        _check_version(read_large_record(text, _Version).version)
        raise
    _check_version(stored.version)
    return Manifest(stored.settings, stored.classes, stored.videos, stored.skipped)


def _check_version(version: Any) -> None:
    if version not in READABLE:
        raise ValueError(f"it has version {version}, expected {' or '.join(map(str, READABLE))}")


def _older(text: bytes, path: Path) -> Manifest:
    """Returns a manifest of an older version, whose hash is of its content, or which has none."""
    body = read_json(text)
    if not isinstance(body, dict):
        raise ValueError(f"a {type(body).__name__} where an object belongs")
    _check_version(body.get("version"))
    if not check_seal(body):
        say(f"data: {path} {UNSEALED}")
    return as_record(body, Manifest)


def rate_warning(manifest: Manifest) -> str:
    """What is to be said where frame rates differ, so that flow does not mean the same in all videos; or nothing."""
    rates = sorted(video.fps for video in manifest.videos if video.fps)
    varying = sum(len(video.knots) > 2 for video in manifest.videos)
    if manifest.settings.fps or not rates or (rates[-1] <= SPREAD * rates[0] and not varying):
        return ""
    return (
        f"frame rates differ: {rates[0]:.3g} to {rates[-1]:.3g} a second, median {rates[len(rates) // 2]:.3g}, and "
        f"{varying} of {len(manifest.videos)} videos vary theirs on the way; flow is the motion from one frame to the "
        "next, so one motion gives different flow at different rates: --fps R takes all at R frames a second"
    )
