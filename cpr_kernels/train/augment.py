"""What happens to a batch on its device? One draw a clip, for all its frames; colours change in RGB only."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from .clips import Batch

MEAN, STD = (
    (0.485, 0.456, 0.406),
    (0.229, 0.224, 0.225),
)  # ImageNet's, for both views: the published encoders' input
GREY = (0.299, 0.587, 0.114)
TO_YIQ = ((0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))


@dataclass(frozen=True)
class Augment:
    """Chances and strengths. The crop is drawn with the clip (`min_area`), the rest on the batch.

    jitter: chance of a change of brightness, contrast, saturation (each +- `strength`) and hue (+- `hue`
    turns).
    """

    min_area: float = 0.2
    flip: float = 0.5
    jitter: float = 0.8
    strength: float = 0.4
    hue: float = 0.1
    grey: float = 0.2
    blur: float = 0.5


def augmented(
    batch: Batch, how: Augment, generator: torch.Generator, device: torch.device
) -> dict[str, Tensor]:
    """Both views as the encoder reads them, float32 [2, B, 3, T, H, W], drawn from `generator` (on the CPU).

    Per clip: horizontal flip of both views, with flow's u negated; colour jitter, grey and blur of RGB.
    """
    rgb, flow = (_unit(batch[view].transpose(0, 1).contiguous(), device) for view in ("rgb", "flow"))
    draws = torch.rand(9, *rgb.shape[:2], generator=generator).to(device)
    flip = draws[0] < how.flip
    rgb = _recoloured(rgb, draws[1:7], how)
    if how.blur:
        rgb = _blurred(rgb, draws[7] < how.blur, 0.1 + 1.9 * draws[8], radius=max(1, rgb.shape[-2] // 32))
    return {"rgb": as_input(flipped(rgb, flip, "rgb")), "flow": as_input(flipped(flow, flip, "flow"))}


def plain(frames: Tensor, device: torch.device) -> Tensor:
    """Clips [..., T, H, W, C] uint8 as the encoder reads them, without any augmentation."""
    return as_input(_unit(frames, device))


def flipped(frames: Tensor, flip: Tensor, view: str) -> Tensor:
    """Mirrors the clips [..., T, H, W, C] (0..1) where `flip` [...] is True; mirrored flow has its u
    negated.
    """
    mirrored = frames.flip(-2)
    if view == "flow":
        mirrored = torch.stack((1 - mirrored[..., 0], mirrored[..., 1]), dim=-1)
    return torch.where(flip[..., None, None, None, None], mirrored, frames)


def as_input(frames: Tensor) -> Tensor:
    """[..., T, H, W, C] in 0..1 to normalised [..., 3, T, H, W]; flow gets a third channel of zeros."""
    if frames.shape[-1] == 2:
        frames = functional.pad(frames, (0, 1))
    mean, std = frames.new_tensor(MEAN), frames.new_tensor(STD)
    return ((frames - mean) / std).movedim(-1, -4)


def _unit(frames: Tensor, device: torch.device) -> Tensor:
    return frames.to(device, non_blocking=True).float() / 255


def _recoloured(rgb: Tensor, draws: Tensor, how: Augment) -> Tensor:
    """Jitter and grey as one affine map of the colours of each clip; hue turns in the YIQ plane."""
    jittered = draws[0] < how.jitter
    brightness, contrast, saturation = 1 + how.strength * (2 * draws[1:4] - 1)
    turn = 2 * torch.pi * how.hue * (2 * draws[4] - 1)
    grey = rgb.new_tensor(GREY).expand(3, 3)
    eye = torch.eye(3, device=rgb.device)
    to_yiq = rgb.new_tensor(TO_YIQ)
    spin = torch.zeros(*turn.shape, 3, 3, device=rgb.device)
    spin[..., 0, 0] = 1
    spin[..., 1, 1] = spin[..., 2, 2] = turn.cos()
    spin[..., 1, 2], spin[..., 2, 1] = -turn.sin(), turn.sin()
    hue = torch.linalg.inv(to_yiq) @ spin @ to_yiq
    saturate = saturation[..., None, None] * eye + (1 - saturation[..., None, None]) * grey
    matrix = (brightness * contrast)[..., None, None] * (saturate @ hue)
    level = (rgb.mean(dim=(-4, -3, -2)) @ rgb.new_tensor(GREY)) * brightness * (1 - contrast)
    matrix = torch.where(jittered[..., None, None], matrix, eye)
    level = torch.where(jittered, level, torch.zeros_like(level))
    matrix = torch.where((draws[5] < how.grey)[..., None, None], grey @ matrix, matrix)
    flat = rgb.flatten(2, 4) @ matrix.transpose(-1, -2) + level[..., None, None]
    return flat.clamp(0, 1).view_as(rgb)


def _blurred(rgb: Tensor, chosen: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Gaussian blur of the chosen clips [2, B, T, H, W, 3], separable, edges repeated; sigma in pixels."""
    some = rgb[chosen]
    if len(some) == 0:
        return rgb
    steps = torch.arange(-radius, radius + 1, device=rgb.device)
    weights = torch.softmax(-0.5 * (steps / sigma[chosen][:, None]) ** 2, dim=1)  # [n, 2 * radius + 1]
    for axis in (2, 3):
        length = some.shape[axis]
        places = torch.arange(length, device=rgb.device)
        total = torch.zeros_like(some)
        for step, weight in zip(steps.tolist(), weights.T):
            total += weight.view(-1, 1, 1, 1, 1) * some.index_select(
                axis, (places + step).clamp(0, length - 1)
            )
        some = total
    result = rgb.clone()
    result[chosen] = some
    return result
