"""Loads the encoders of the published CoCLR, CPR and IIC checkpoints."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...networks.r3d import CHANNELS, R3D, R3D18
from ...networks.s3d import Encoder
from .. import TrainError
from ..runtime.checkpoint import State, load

PARTS = ("encoder_q", "encoder_k", "sampler")


@dataclass(frozen=True)
class LoadReport:
    """Lists what became of every tensor of a published checkpoint.

    loaded: names in the encoder. ignored: names in the file that belong to other parts. missing: always
    empty, since a missing name is an error; kept so that the three lists are complete. facts: epoch,
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
    """Returns an encoder of a released CoCLR or CPR `.pth.tar`, loaded strictly, and a report of every name.

    `part` is `encoder_q` (the trained encoder), `encoder_k` (its momentum copy) or `sampler` (the frozen
    other view). A leading `module.` of all names, left by data-parallel training, is taken off. `state`
    spares reading it twice.

    Raises:
        TrainError: no such part, names missing or left over in it, another shape, or two names of one layer
            that differ; each with the names.
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
    """Returns an encoder with exactly these tensors; D follows from the head."""
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
    """Raises `TrainError` where a layer's two names hold different values: loading would silently keep the second."""
    first_name: dict[int, str] = {}
    for name, value in encoder.state_dict(keep_vars=True).items():
        first = first_name.setdefault(id(value), name)
        if first != name and not torch.equal(tensors[first], tensors[name]):
            raise TrainError(f"checkpoint: {path} holds two versions of one layer: {first} and {name} differ")


def is_iic(state: dict[str, Any]) -> bool:
    """Returns whether a checkpoint has the layout of IIC's: its encoder under `model`."""
    return isinstance(state.get("model"), dict) and "state_dict" not in state


def encoder_of_iic(state: dict[str, Any], path: Path) -> R3D:
    """Returns the encoder of a released IIC checkpoint, loaded strictly.

    One block a layer is R3D, two are R3D-18; the width follows from the first convolution. A leading `module.` of all
    names is taken off. The memory bank (`contrast`) and the optimiser of the file are not read: rows are numbered by a
    list of videos that the file does not hold.

    Raises:
        TrainError: names missing or left over, or another shape, each named.
    """
    tensors: dict[str, Tensor] = {
        name.removeprefix("module."): value for name, value in state["model"].items()
    }
    first = tensors.get("conv1.temporal_spatial_conv.weight")
    if first is None:
        raise TrainError(
            f"checkpoint: {path} is no R3D of IIC: conv1.temporal_spatial_conv.weight is missing; it holds "
            f"{', '.join(list(tensors)[:3])}, ..."
        )
    kind = R3D18 if any(name.startswith("conv2.blocks.") for name in tensors) else R3D
    encoder = kind(width=first.shape[0] / CHANNELS[0])
    expected = encoder.state_dict()
    problems = {
        "is missing": [name for name in expected if name not in tensors],
        "has unknown": [name for name in tensors if name not in expected],
        "has other shapes:": [
            f"{name} {list(tensors[name].shape)} instead of {list(value.shape)}"
            for name, value in expected.items() if name in tensors and tensors[name].shape != value.shape
        ],
    }  # fmt: skip
    for what, names in problems.items():
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            raise TrainError(
                f"checkpoint: {path} does not fit {kind.architecture}: it {what} {', '.join(names[:5])}{more}"
            )
    encoder.load_state_dict(tensors)
    return encoder
