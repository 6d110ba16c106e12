"""Computes frame differences: the other motion view, free of any flow estimate (IIC, Tao et al. 2020)."""

from __future__ import annotations

from torch import Tensor

from ...networks.inputs import differences, differences_as_input, unit
from .augment import Augment, Draws
from .base import View, where_clip


class Residual(View):
    """Takes differences of consecutive RGB frames, from the same record as RGB; flip only.

    Frame t holds x[t + 1] - x[t]; the last repeats the one before it, so that T frames stay T.
    """

    name, label, stored = "residual", "residual", "rgb"

    def augmented(self, clips: Tensor, draws: Draws, how: Augment) -> Tensor:
        """Maps [2, B, T, H, W, 3] uint8 to [2, B, 3, T, H, W]."""
        moved = differences(unit(clips))
        return differences_as_input(where_clip(draws.flip(how), moved.flip(-2), moved))

    def plain(self, clips: Tensor, mirror: bool = False) -> Tensor:
        """Maps [..., T, H, W, 3] uint8 to [..., 3, T, H, W]."""
        moved = differences(unit(clips))
        return differences_as_input(moved.flip(-2) if mirror else moved)
