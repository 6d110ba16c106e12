"""A fourth modality, as somebody would add it: one file with a view, one line that makes it known."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cpr_kernels.train.views.base import View, unit, where_clip


class SmallNet(nn.Sequential):
    """Encodes [B, 1, T, H, W]."""

    architecture = "smallnet"

    def __init__(self, width: float = 1.0, embedding: int = 16) -> None:
        super().__init__(
            nn.Conv3d(1, 8, 3, stride=2), nn.BatchNorm3d(8), nn.ReLU(), nn.AdaptiveAvgPool3d(2), nn.Flatten(),
            nn.Linear(64, embedding),
        )  # fmt: skip
        self.width, self.embedding, self.feature_size = width, embedding, 64

    def forward(self, clip: Tensor) -> Tensor:
        return nn.functional.normalize(super().forward(clip), dim=1)

    def features(self, clip: Tensor) -> Tensor:
        for layer in list(self)[:5]:
            clip = layer(clip)
        return clip


class Edges(View):
    """Where the picture changes from left to right."""

    name, label, stored = "edges", "edges", "rgb"

    def augmented(self, clips, draws, how):
        return self.plain(where_clip(draws.flip(how), clips.flip(-2), clips))

    def plain(self, clips: Tensor, mirror: bool = False) -> Tensor:
        grey = unit(clips.flip(-2) if mirror else clips).mean(dim=-1)
        return torch.diff(grey, dim=-1).abs().unsqueeze(-4)

    def encoder(self, backbone, width, embedding):
        return SmallNet(width, embedding)
