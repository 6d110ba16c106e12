"""Reads a run's folder: its settings, its encoders, and what a continued run starts from."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

from msgspec import Meta
from torch import nn

from ...files import relocated
from ...reading.records import as_record, read_json
from .. import TrainError
from ..data.manifest import Manifest
from ..runtime.checkpoint import load
from ..runtime.files import write_atomically
from .config import TrainConfig, from_json, to_json, with_absolute_paths


def encoder_files(run: Path) -> list[tuple[str, dict[str, Path]]]:
    """Returns the encoders of a run after each phase, in order: (phase name, {view: file})."""
    phases: dict[str, dict[str, Path]] = {}
    for path in sorted((run / "encoders").glob("*.safetensors")):
        phase, _, view = path.stem.rpartition(".")
        phases.setdefault(phase, {})[view] = path
    return [(phase.partition("-")[2], files) for phase, files in phases.items()]


def encoder_file(run: Path, number: int, phase: str, view: str) -> Path:
    """Returns the path of the encoder of a view after a phase."""
    return run / "encoders" / f"{number:02}-{phase}.{view}.safetensors"


def plan_file(run: Path, number: int, phase: str) -> Path:
    """Returns the path of the mining plan that a phase chose; its whiteners are beside it."""
    return run / "plans" / f"{number:02}-{phase}.json"


def plan_files(run: Path) -> list[tuple[str, Path]]:
    """Returns the plans that the phases of a run chose, in order: (phase name, file)."""
    return [(path.stem.partition("-")[2], path) for path in sorted((run / "plans").glob("*.json"))]


def save_config(config: TrainConfig, manifest: Manifest) -> None:
    """Writes `config.json` of a run: its settings, where it is, and which videos it learns from."""
    body = json.loads(to_json(with_absolute_paths(config)))
    body |= {"folder": str(config.out.resolve()), "videos": videos_hash(manifest)}
    write_atomically(config.out / "config.json", json.dumps(body, indent=1).encode())


@dataclass(frozen=True)
class _Place:
    """Holds where a file of a run was written."""

    folder: str | None = None


def config_of(run: Path, data: Path | None = None) -> TrainConfig:
    """Returns the config that a run was started with, its paths where they are since the run was moved or copied.

    data: where the run's data set is, for one that is not found.

    Raises:
        TrainError: no run, a damaged one, or `data` with other videos than the run learnt from.
    """
    path = run / "config.json"
    if not path.is_file():
        raise TrainError(f"run: {run} holds no run (no config.json)")
    try:
        config, recorded = from_json(path.read_text()), as_record(read_json(path.read_text()), _Place).folder
        config.check()
    except (ValueError, OSError, TrainError) as error:
        raise TrainError(
            f"run: {path} is damaged, or of another version ({error}); take a whole copy of it"
        ) from None
    if data is not None and is_own_data(run, data) is False:
        raise TrainError(f"data: {data} holds other videos than {run} learnt from")
    return replace(
            config, data=data or relocated(config.data, recorded, run), out=run,
            init={view: relocated(file, recorded, run) for view, file in config.init.items()},
            goes_on=config.goes_on and relocated(config.goes_on, recorded, run),
        )  # fmt: skip


def is_own_data(run: Path, data: Path) -> bool | None:
    """Whether a data set holds the videos that a run learnt from; None for a run that does not note them."""
    noted = read_json((run / "config.json").read_bytes()).get("videos")
    return noted and bool(noted == videos_hash(Manifest.load(data)))


def videos_hash(manifest: Manifest) -> str:
    """Returns a hash of what a data set holds: the settings of its frames, and its videos in their order."""
    videos = [(video.id, video.frames) for video in manifest.videos]
    return hashlib.sha256(json.dumps([asdict(manifest.settings), videos]).encode()).hexdigest()


@dataclass(frozen=True)
class WarmStart:
    """Describes what a run of `cpr update` starts from.

    run: the folder whose encoders, momentum encoders and queue are taken over. old_videos: videos of its data set,
    the first ones of the new manifest. old_share: their share in each batch.
    """

    run: str
    old_videos: Annotated[int, Meta(ge=1)]
    old_share: Annotated[float, Meta(ge=0, le=1)]

    def save(self, path: Path) -> None:
        """Writes it as JSON, atomically."""
        body = {**asdict(self), "run": str(Path(self.run).resolve()), "folder": str(path.parent.resolve())}
        write_atomically(path, json.dumps(body, indent=1).encode())

    @classmethod
    def load(cls, path: Path) -> WarmStart:
        """Reads what `save` wrote."""
        if not path.is_file():
            raise TrainError(f"goes-on: {path} is missing; run the same `cpr update` again")
        try:
            body = read_json(path.read_bytes())
            note, place = as_record(body, cls), as_record(body, _Place)
        except (ValueError, OSError) as error:
            raise TrainError(
                f"goes-on: {path} is damaged ({error}); run the same `cpr update` again"
            ) from None
        return replace(note, run=str(relocated(note.run, place.folder, path.parent)))


def warm_start(model: nn.Module, note: WarmStart) -> None:
    """Loads encoders, momentum encoders and queue of the run before; its videos keep their numbers, so entries stay."""
    path = Path(note.run) / "checkpoint.pt"
    state = load(path)
    try:
        model.load_state_dict(state["model"])
    except (RuntimeError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise TrainError(f"run: {path} does not fit the model of its own settings ({reason})") from None
