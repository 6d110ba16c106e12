"""What is kept on disk? Whole runs, single encoders, and the published CoCLR and CPR checkpoints."""

from __future__ import annotations

import argparse
import io
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import TrainError
from ..data.store import write_atomically
from . import new_encoder
from .published_iic import encoder_of_iic, is_iic
from .s3d import Encoder
from .weights import load_tensors, read_facts, save_tensors

ENCODER_KIND = "cpr_kernels encoder"
PARTS = ("encoder_q", "encoder_k", "sampler")
State = dict[str, Any]


def save(path: Path, state: State) -> None:
    """`torch.save`, atomically: a kill at any moment leaves the old file or the new one."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomically(path, buffer.getvalue())


def load(path: Path) -> State:
    """Reads a checkpoint onto the CPU without running any code that it may hold.

    Raises:
        TrainError: missing, cut short, not a checkpoint, or holding more than tensors and plain values.
    """
    if not path.is_file():
        raise TrainError(f"checkpoint: {path} does not exist")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # plain settings, in IIC's files
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        kind = _refused_global(str(error))
        what = (
            f"holds a Python object ({kind}), which could run code when read"
            if kind
            else "is not a torch checkpoint"
        )
        hint = (
            f"; if you trust it: torch.serialization.add_safe_globals([{kind}]), then load again"
            if kind
            else ""
        )
        raise TrainError(f"checkpoint: {path} {what}{hint}") from None
    except (RuntimeError, EOFError, OSError, zipfile.BadZipFile, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0].split(". ")[0] if str(error) else type(error).__name__
        raise TrainError(
            f"checkpoint: {path} cannot be read: cut short, or not a torch checkpoint ({reason})"
        ) from None
    if not isinstance(state, dict):
        raise TrainError(f"checkpoint: {path} holds a {type(state).__name__}, expected a dictionary")
    return state


def save_encoder(path: Path, encoder: nn.Module, view: str, **facts: str | int | float) -> None:
    """One encoder by itself as safetensors, with its view and plain facts about it (phase, step)."""
    save_tensors(path, encoder, {"kind": ENCODER_KIND, "view": view, **described(encoder), **facts})


def described(encoder: nn.Module) -> dict[str, Any]:
    """What `new_encoder` needs to make an encoder like this one."""
    return {name: getattr(encoder, name) for name in ("architecture", "width", "embedding")}


def load_encoder(path: Path, say: Callable[[str], None] | None = None) -> Any:
    """An encoder saved by a run (safetensors), of whatever architecture, or that of a published checkpoint: the
    `encoder_q` of CoCLR and CPR, the R3D of IIC. Of a published one, `say` is told what was loaded and what was not.
    """
    if path.suffix != ".safetensors":
        state = load(path)
        if "sampler" in state and "optimizer" in state:
            raise TrainError(
                f"checkpoint: {path} is the checkpoint of a whole run, not one encoder; give a file of "
                f"{path.parent / 'encoders'}"
            )
        if is_iic(state):
            return encoder_of_iic(state, path)
        encoder, report = load_published(path, state=state)
        if say is not None:
            say(f"{path}: {report}")
        return encoder
    facts = read_facts(path)
    if facts.get("kind") != ENCODER_KIND:
        raise TrainError(
            f"checkpoint: {path} holds a {facts.get('kind', 'file of another program')}, no encoder"
        )
    encoder = new_encoder(facts["architecture"], facts["width"], facts["embedding"])
    load_tensors(path, encoder)
    return encoder


@dataclass(frozen=True)
class LoadReport:
    """What became of every tensor of a published checkpoint.

    loaded: names in the encoder. ignored: names in the file that belong to other parts. missing: always
    empty, since a missing name is an error; kept so that the three lists tell the whole story. facts: epoch,
    best_acc, iteration.
    """

    part: str
    loaded: list[str]
    ignored: list[str]
    missing: list[str] = field(default_factory=list)
    facts: dict[str, int | float] = field(default_factory=dict)

    def __str__(self) -> str:
        others = sorted({name.split(".")[0] for name in self.ignored})
        return (
            f"{self.part}: {len(self.loaded)} tensors loaded, {len(self.missing)} missing, "
            f"{len(self.ignored)} ignored ({', '.join(others) or 'none'})"
        )


def load_published(
    path: Path, part: str = "encoder_q", *, state: State | None = None
) -> tuple[Encoder, LoadReport]:
    """An encoder of a released CoCLR or CPR `.pth.tar`, loaded strictly, and a report of every name.

    `part` is `encoder_q` (the trained encoder), `encoder_k` (its momentum copy) or `sampler` (the frozen
    other view). A leading `module.` of all names, left by data-parallel training, is taken off. `state`
    spares reading it twice.

    Raises:
        TrainError: no such part, names missing or left over in it, another shape, or two names of one layer
        that
            differ; each with the names.
    """
    state = load(Path(path)) if state is None else state
    tensors = state.get("state_dict")
    if not isinstance(tensors, dict):
        raise TrainError(
            f"checkpoint: {path} has no state_dict; a published checkpoint has, beside {sorted(state)[:6]}"
        )
    if part not in PARTS:
        raise TrainError(f"part: must be one of {', '.join(PARTS)}, got {part!r}")
    named = {name.removeprefix("module."): value for name, value in tensors.items()}
    mine = {
        name.removeprefix(part + "."): value for name, value in named.items() if name.startswith(part + ".")
    }
    if not mine:
        held = ", ".join(sorted({name.split(".")[0] for name in named}))
        raise TrainError(f"checkpoint: {path} holds no {part}; it holds {held}")
    encoder = _encoder_from(mine, path)
    loaded = [f"{part}.{name}" for name in mine]
    ignored = [name for name in named if name not in set(loaded)]
    facts = {
        name: state[name]
        for name in ("epoch", "iteration", "best_acc")
        if isinstance(state.get(name), int | float)
    }
    return encoder, LoadReport(part, loaded, ignored, facts=facts)


def _encoder_from(tensors: dict[str, Tensor], path: Path, width: float = 1.0) -> Encoder:
    """An encoder with exactly these tensors; D follows from the head."""
    if "4.weight" not in tensors:
        raise TrainError(f"checkpoint: {path} is not an S3D encoder with its head: 4.weight is missing")
    encoder = Encoder(width, embedding=tensors["4.weight"].shape[0])
    expected = encoder.state_dict()
    missing = [name for name in expected if name not in tensors]
    left_over = [name for name in tensors if name not in expected]
    reshaped = [
        f"{name} {list(tensors[name].shape)} instead of {list(value.shape)}"
        for name, value in expected.items() if name in tensors and tensors[name].shape != value.shape
    ]  # fmt: skip
    for what, names in (("is missing", missing), ("has unknown", left_over), ("has other shapes:", reshaped)):
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            raise TrainError(f"checkpoint: {path} does not fit S3D: it {what} {', '.join(names[:5])}{more}")
    _same_layer_same_values(encoder, tensors, path)
    encoder.load_state_dict(tensors)
    return encoder


def _same_layer_same_values(encoder: Encoder, tensors: dict[str, Tensor], path: Path) -> None:
    """Every layer has two names; loading would silently keep the second, so they must agree."""
    first_name: dict[int, str] = {}
    for name, value in encoder.state_dict(keep_vars=True).items():
        first = first_name.setdefault(id(value), name)
        if first != name and not torch.equal(tensors[first], tensors[name]):
            raise TrainError(f"checkpoint: {path} holds two versions of one layer: {first} and {name} differ")


def _refused_global(message: str) -> str:
    marker = "GLOBAL "
    return message.split(marker, 1)[1].split()[0] if marker in message else ""


def encoder_files(run: Path) -> list[tuple[str, dict[str, Path]]]:
    """The encoders of a run after each phase, in order: (phase name, {view: file})."""
    phases: dict[str, dict[str, Path]] = {}
    for path in sorted((run / "encoders").glob("*.safetensors")):
        phase, _, view = path.stem.rpartition(".")
        phases.setdefault(phase, {})[view] = path
    return [(phase.partition("-")[2], files) for phase, files in phases.items()]


def encoder_file(run: Path, number: int, phase: str, view: str) -> Path:
    """Where a run keeps the encoder of a view after a phase."""
    return run / "encoders" / f"{number:02}-{phase}.{view}.safetensors"
