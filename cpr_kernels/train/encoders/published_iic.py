"""The released checkpoints of IIC: their encoder, loaded strictly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from .. import TrainError
from .r3d import CHANNELS, R3D, R3D18


def is_iic(state: dict[str, Any]) -> bool:
    """Whether a checkpoint is laid out as IIC's: its encoder under `model`."""
    return isinstance(state.get("model"), dict) and "state_dict" not in state


def encoder_of_iic(state: dict[str, Any], path: Path) -> R3D:
    """The encoder of a released IIC checkpoint, every name of it in its place.

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
