"""Reads and augments RGB frames: colours change by one draw per clip, for all its frames."""

from __future__ import annotations

import torch
from torch import Tensor

from ...networks.inputs import as_input, unit
from .augment import Augment, Draws
from .base import View, where_clip

GREY = (0.299, 0.587, 0.114)
TO_YIQ = ((0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))


class Rgb(View):
    """Reads stored RGB frames; flip, colour jitter, grey and blur."""

    name, label, stored = "rgb", "RGB", "rgb"

    def augmented(self, clips: Tensor, draws: Draws, how: Augment) -> Tensor:
        """Maps [2, B, T, H, W, 3] uint8 to [2, B, 3, T, H, W]."""
        rgb = _recoloured(unit(clips), draws.shared[1:7], how)
        if how.blur:
            blurred, sigma = draws.shared[7] < how.blur, 0.1 + 1.9 * draws.shared[8]
            rgb = _blurred(rgb, blurred, sigma, radius=max(1, rgb.shape[-2] // 32))
        return as_input(where_clip(draws.flip(how), rgb.flip(-2), rgb))

    def plain(self, clips: Tensor, mirror: bool = False) -> Tensor:
        """Maps [..., T, H, W, 3] uint8 to [..., 3, T, H, W]."""
        rgb = unit(clips)
        return as_input(rgb.flip(-2) if mirror else rgb)


def _recoloured(rgb: Tensor, draws: Tensor, how: Augment) -> Tensor:
    """Applies jitter and grey as one affine map of the colours of each clip; hue turns in the YIQ plane."""
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
    """Blurs the chosen clips of [2, B, T, H, W, 3], in place, by a separable Gaussian, edges repeated; sigma in pixels.

    Each axis is one matrix product, since a clip's frames share their Gaussian.
    """
    some = rgb[chosen].movedim(-1, 1)  # [n, 3, T, H, W]
    count, colours, frames, height, width = some.shape
    if count == 0:
        return rgb
    steps = torch.arange(-radius, radius + 1, device=rgb.device)
    weights = torch.softmax(-0.5 * (steps / sigma[chosen][:, None]) ** 2, dim=1)  # [n, 2 * radius + 1]
    along = some.reshape(count, -1, width) @ _gaussian(weights, steps, width).mT
    both = _gaussian(weights, steps, height)[:, None] @ along.view(count, colours * frames, height, width)
    rgb[chosen] = both.view_as(some).movedim(1, -1)
    return rgb


def _gaussian(weights: Tensor, steps: Tensor, length: int) -> Tensor:
    """Returns the blur of an axis as matrices [n, length, length], from weights [n, K] at `steps` [K]."""
    pixels = torch.arange(length, device=steps.device)
    source = (pixels[:, None] + steps).clamp(0, length - 1)  # [length, K]
    taken = (source.T[..., None] == pixels).to(
        weights.dtype
    )  # [K, length, length]: which pixel each one reads
    return (weights @ taken.flatten(1)).view(-1, length, length)
