"""Turns stored frames into what encoders of frames take, without augmentation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from .s3d import MEAN, STD


def unit(clips: Tensor) -> Tensor:
    """Converts uint8 to float32 in 0..1."""
    return clips.float() / 255


def as_input(frames: Tensor) -> Tensor:
    """Normalises [..., T, H, W, 3] in 0..1 to [..., 3, T, H, W]."""
    mean, std = frames.new_tensor(MEAN), frames.new_tensor(STD)
    return ((frames - mean) / std).movedim(-1, -4)


def flow_as_input(flow: Tensor) -> Tensor:
    """Normalises u and v [..., T, H, W, 2] in 0..1 to [..., 3, T, H, W], the third channel 0 before it."""
    return as_input(functional.pad(flow, (0, 1)))


def centred_flow_as_input(flow: Tensor) -> Tensor:
    """Scales u and v [..., T, H, W, 2], stored around 128, to [..., 3, T, H, W], 0 where nothing moves.

    A convolution's zero padding then means no motion. 1 is half of the largest flow that is stored.
    """
    return functional.pad((flow.float() - 128) / 64, (0, 1)).movedim(-1, -4)


def differences(rgb: Tensor) -> Tensor:
    """Returns the changes from each frame of [..., T, H, W, 3] in 0..1 to the next, -1..1, the last one twice."""
    moved = rgb[..., 1:, :, :, :] - rgb[..., :-1, :, :, :]
    return torch.cat((moved, moved[..., -1:, :, :, :]), dim=-4)


def differences_as_input(moved: Tensor) -> Tensor:
    """Scales differences [..., T, H, W, 3] to [..., 3, T, H, W]."""
    return (moved / moved.new_tensor(STD)).movedim(-1, -4)


# Of each view that is cut from frames: the encoder's input from clips [..., T, H, W, C] uint8.
PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "rgb": lambda clips: as_input(unit(clips)),
    "flow": lambda clips: flow_as_input(unit(clips)),
    "centred_flow": centred_flow_as_input,
    "residual": lambda clips: differences_as_input(differences(unit(clips))),
}

# By dimensions. Not the 4 of images: torch 2.13's weight gradient of a strided 1 x 1 convolution over channels-last
# images ends the process on the CPU where it has 8 channels and an odd batch.
CHANNELS_LAST = {5: torch.channels_last_3d}


def channels_last(tensor: Tensor) -> Tensor:
    """Returns the tensor in the memory layout in which 3D convolutions are fastest; other tensors as they are."""
    return tensor.contiguous(memory_format=CHANNELS_LAST.get(tensor.dim(), torch.contiguous_format))
