"""Reads a run's folder: its settings, its encoders, and what a continued run starts from."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from msgspec import Meta
from torch import nn

from ...reading.records import read_record
from .. import TrainError
from ..runtime.checkpoint import load
from ..runtime.files import write_atomically
from .config import TrainConfig, from_json


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


def config_of(run: Path) -> TrainConfig:
    """Returns the config that a run was started with."""
    path = run / "config.json"
    if not path.is_file():
        raise TrainError(f"run: {run} holds no run (no config.json)")
    try:
        config = from_json(path.read_text())
        config.check()
        return config
    except (ValueError, OSError, TrainError) as error:
        raise TrainError(
            f"run: {path} is damaged, or of another version ({error}); take a whole copy of it"
        ) from None


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
        write_atomically(path, json.dumps(asdict(self), indent=1).encode())

    @classmethod
    def load(cls, path: Path) -> WarmStart:
        """Reads what `save` wrote."""
        if not path.is_file():
            raise TrainError(f"goes-on: {path} is missing; run the same `cpr update` again")
        try:
            return read_record(path.read_bytes(), cls)
        except (ValueError, OSError) as error:
            raise TrainError(
                f"goes-on: {path} is damaged ({error}); run the same `cpr update` again"
            ) from None


def warm_start(model: nn.Module, note: WarmStart) -> None:
    """Loads encoders, momentum encoders and queue of the run before; its videos keep their numbers, so entries stay."""
    path = Path(note.run) / "checkpoint.pt"
    state = load(path)
    try:
        model.load_state_dict(state["model"])
    except (RuntimeError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise TrainError(f"run: {path} does not fit the model of its own settings ({reason})") from None
