"""Reads and augments optical flow: stored as u and v around 128; a mirrored clip moves the other way."""

from __future__ import annotations

import torch
from torch import Tensor

from ...networks.inputs import flow_as_input, unit
from .augment import Augment, Draws
from .base import View, where_clip


class Flow(View):
    """Reads stored TV-L1 flow, and adds a third channel of zeros as in the published code; flip only."""

    name, label, stored = "flow", "flow", "flow"

    def augmented(self, clips: Tensor, draws: Draws, how: Augment) -> Tensor:
        """Maps [2, B, T, H, W, 2] uint8 to [2, B, 3, T, H, W]."""
        flow = unit(clips)
        return flow_as_input(where_clip(draws.flip(how), mirrored(flow), flow))

    def plain(self, clips: Tensor, mirror: bool = False) -> Tensor:
        """Maps [..., T, H, W, 2] uint8 to [..., 3, T, H, W]."""
        flow = unit(clips)
        return flow_as_input(mirrored(flow) if mirror else flow)


def mirrored(flow: Tensor) -> Tensor:
    """Returns flow [..., H, W, 2] in 0..1 as seen in a mirror: the picture turned, u negated."""
    turned = flow.flip(-2)
    return torch.stack((1 - turned[..., 0], turned[..., 1]), dim=-1)
