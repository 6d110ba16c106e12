"""The manifest of a prepared data set: which videos it holds, and what is known of each."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from .. import TrainError
from ..runtime.files import read_json, write_atomically
from .decoding import FrameSettings

VERSION, READABLE = 2, (1, 2)  # 1 had no sound


@dataclass(frozen=True)
class Video:
    """One stored video: its label and group are indices into the manifest's names. `silence` is empty where its sound
    is stored, else it says why there is none.
    """

    id: str
    label: int
    group: int
    split: str
    frames: int
    silence: str = "prepared before sound was kept"


@dataclass(frozen=True)
class Manifest:
    """What a data set holds. `videos` are in the order of their ids, after `cpr update` the old ones before the new; a
    video's index there names it everywhere.
    """

    settings: FrameSettings
    classes: list[str]
    videos: list[Video]
    skipped: list[tuple[str, str]]

    def save(self, folder: Path) -> None:
        """Writes `manifest.json` and `skipped.txt`, atomically."""
        body = {
            "version": VERSION,
            "settings": asdict(self.settings),
            "classes": self.classes,
            "videos": [asdict(video) for video in self.videos],
            "skipped": self.skipped,
        }
        write_atomically(
            folder / "skipped.txt", "".join(f"{name}\t{reason}\n" for name, reason in self.skipped).encode()
        )
        write_atomically(folder / "manifest.json", json.dumps(body, indent=1).encode())

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Reads the manifest of a prepared data set."""
        path = folder / "manifest.json"
        if not path.is_file():
            if (folder / "data.mdb").is_file():
                raise TrainError(
                    f"data: {folder} is not finished; run the same `cpr prepare` again to finish it"
                )
            raise TrainError(f"data: {folder} holds no prepared data set; make one with `cpr prepare`")
        body = read_json(path, "data", "run the same `cpr prepare` again")
        if body.get("version") not in READABLE:
            known = " or ".join(map(str, READABLE))
            raise TrainError(
                f"data: {path} has version {body.get('version')}, expected {known}; prepare it again with this version"
            )
        try:
            return cls(
                FrameSettings(**body["settings"]),
                list(body["classes"]),
                [Video(**video) for video in body["videos"]],
                [(name, reason) for name, reason in body["skipped"]],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise TrainError(f"data: {path} is damaged ({error}); run the same `cpr prepare` again") from None
