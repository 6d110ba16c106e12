"""Reads flow as numbers around 0, which is no motion, for encoders that start from scratch."""

from __future__ import annotations

import torch
from torch import Tensor

from ...networks.inputs import centred_flow_as_input
from .augment import Augment, Draws
from .base import View, where_clip


class CentredFlow(View):
    """Takes the record of `flow`, centred: 0 is no motion, in the third channel and in a convolution's padding too.

    The published networks take u and v as a picture's red and green, whose third channel is a constant beside the
    padding's 0; `flow` keeps that for their weights. Flip only; a mirrored clip moves the other way.
    """

    name, label, stored = "centred_flow", "centred flow", "flow"

    def augmented(self, clips: Tensor, draws: Draws, how: Augment) -> Tensor:
        """Maps [2, B, T, H, W, 2] uint8 to [2, B, 3, T, H, W]."""
        flow = centred_flow_as_input(clips)
        return where_clip(draws.flip(how), mirrored(flow), flow)

    def plain(self, clips: Tensor, mirror: bool = False) -> Tensor:
        """Maps [..., T, H, W, 2] uint8 to [..., 3, T, H, W]."""
        flow = centred_flow_as_input(clips)
        return mirrored(flow) if mirror else flow


def mirrored(flow: Tensor) -> Tensor:
    """Returns centred flow [..., 3, T, H, W] as seen in a mirror: the picture turned, u negated."""
    turned = flow.flip(-1)
    return torch.cat((-turned[..., :1, :, :, :], turned[..., 1:, :, :, :]), dim=-4)
