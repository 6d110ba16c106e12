"""Defines the augmentation of a batch on its device: one draw per clip, for all its frames and all its views."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Augment:
    """Sets chances and strengths. The crop is drawn with the clip (`min_area`), the rest on the batch.

    jitter: chance of a change of brightness, contrast, saturation (each +- `strength`) and hue (+- `hue`
    turns).
    warp, time_mask, band_mask: of spectrograms: largest shift along time, and longest masks, in columns and bands.
    """

    min_area: float = 0.2
    flip: float = 0.5
    jitter: float = 0.8
    strength: float = 0.4
    hue: float = 0.1
    grey: float = 0.2
    blur: float = 0.5
    warp: float = 10.0
    time_mask: int = 24
    band_mask: int = 24


@dataclass(frozen=True)
class Draws:
    """Holds a batch's random numbers.

    `shared` [9, 2, B] in 0..1 on the run's device: 0 the flip of all views, 1 to 6 RGB's colours, 7 and 8 its blur. A
    view that needs more draws them from `generator`, which is on the CPU.
    """

    shared: Tensor
    generator: torch.Generator

    def flip(self, how: Augment) -> Tensor:
        """Returns which clips [2, B] are mirrored."""
        return self.shared[0] < how.flip
