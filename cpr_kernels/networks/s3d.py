"""Defines the video encoder: S3D without gating, as CoCLR and CPR use it, and its projection head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Output channels of each inception unit: [1x1] [1x1 -> 3x3x3] [1x1 -> 3x3x3] [pool -> 1x1] (Xie et al. 2018,
# Figure 6).
INCEPTIONS: dict[str, tuple[int, int, int, int, int, int]] = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}
BLOCKS: dict[str, tuple[str, ...]] = {
    "block1": ("Conv_1a",),
    "block2": ("MaxPool_2a", "Conv_2b", "Conv_2c"),
    "block3": ("MaxPool_3a", "Mixed_3b", "Mixed_3c"),
    "block4": ("MaxPool_4a", "Mixed_4b", "Mixed_4c", "Mixed_4d", "Mixed_4e", "Mixed_4f"),
    "block5": ("MaxPool_5a", "Mixed_5b", "Mixed_5c"),
}
MEAN, STD = (
    (0.485, 0.456, 0.406),
    (0.229, 0.224, 0.225),
)  # ImageNet's: how the published encoders get all frames
# Frames and pixels. Below 5 and 32 the last pooling has nothing left. On the CPU, torch 2.13's weight gradient of a
# 7-long convolution over 5 to 7 channels-last frames reads and writes outside its memory; 8 and more are sound.
SMALLEST_CLIP = (8, 32)


class PointConv3d(nn.Module):
    """Applies a 1x1x1 convolution, batch norm, ReLU: [B, C, T, H, W] -> [B, C', T, H, W]."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels_in, channels_out, kernel_size=1, bias=False)
        self.bn = nn.BatchNorm3d(channels_out)
        self.relu = nn.ReLU(inplace=True)
        nn.init.normal_(self.conv.weight, std=0.01)

    def forward(self, clip: Tensor) -> Tensor:
        """Maps [B, C, T, H, W] to [B, C', T, H, W]."""
        return self.relu(self.bn(self.conv(clip)))


class SpaceTimeConv3d(nn.Module):
    """Applies a k x k convolution over space, then one of length k over time, each with batch norm and ReLU.

    `stride` applies to all three axes, padding keeps `k // 2` on each side.
    """

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        pad = kernel // 2
        self.conv1 = nn.Conv3d(
            channels_in, channels_out, (1, kernel, kernel), (1, stride, stride), (0, pad, pad), bias=False
        )
        self.conv2 = nn.Conv3d(
            channels_out, channels_out, (kernel, 1, 1), (stride, 1, 1), (pad, 0, 0), bias=False
        )
        self.bn1 = nn.BatchNorm3d(channels_out)
        self.bn2 = nn.BatchNorm3d(channels_out)
        self.relu = nn.ReLU(inplace=True)
        nn.init.normal_(self.conv1.weight, std=0.01)
        nn.init.normal_(self.conv2.weight, std=0.01)

    def forward(self, clip: Tensor) -> Tensor:
        """Maps [B, C, T, H, W] to [B, C', T/stride, H/stride, W/stride]."""
        over_space = self.relu(self.bn1(self.conv1(clip)))
        return self.relu(self.bn2(self.conv2(over_space)))


class SepInception(nn.Module):
    """Concatenates four parallel branches over channels; `channels` is one row of `INCEPTIONS`, scaled."""

    def __init__(self, channels_in: int, channels: tuple[int, ...]) -> None:
        super().__init__()
        only, squeeze1, wide1, squeeze2, wide2, pooled = channels
        self.branch0 = nn.Sequential(PointConv3d(channels_in, only))
        self.branch1 = nn.Sequential(PointConv3d(channels_in, squeeze1), SpaceTimeConv3d(squeeze1, wide1, 3))
        self.branch2 = nn.Sequential(PointConv3d(channels_in, squeeze2), SpaceTimeConv3d(squeeze2, wide2, 3))
        self.branch3 = nn.Sequential(nn.MaxPool3d(3, stride=1, padding=1), PointConv3d(channels_in, pooled))
        self.channels_out = only + wide1 + wide2 + pooled

    def forward(self, clip: Tensor) -> Tensor:
        """Maps [B, C, T, H, W] to [B, C', T, H, W]."""
        branches = (self.branch0, self.branch1, self.branch2, self.branch3)
        return torch.cat([branch(clip) for branch in branches], dim=1)


class S3D(nn.Module):
    """Maps a clip [B, 3, T, H, W] to a feature map [B, F, T/8, H/32, W/32]: the separable 3D inception network.

    Every layer is registered twice, under its own name (`Conv_1a`) and inside its block (`block1.0`), because
    the released CoCLR and CPR checkpoints hold both names; the two share one parameter. `width` scales all
    channel counts (rounded to multiples of 8); 1 is the published network, F = 1024. Source: Xie et al. 2018,
    "Rethinking Spatiotemporal Feature Learning"; the CoCLR variant has no gating.
    """

    def __init__(self, width: float = 1.0, channels_in: int = 3) -> None:
        super().__init__()
        if not width > 0:
            raise ValueError(f"S3D: width must be > 0, got {width}")
        stem, wide = scaled_channels(64, width), scaled_channels(192, width)
        layers: dict[str, nn.Module] = {
            "Conv_1a": SpaceTimeConv3d(channels_in, stem, 7, stride=2),
            "MaxPool_2a": nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)),
            "Conv_2b": PointConv3d(stem, stem),
            "Conv_2c": SpaceTimeConv3d(stem, wide, 3),
            "MaxPool_3a": nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)),
            "MaxPool_4a": nn.MaxPool3d(3, stride=2, padding=1),
            "MaxPool_5a": nn.MaxPool3d(2, stride=2),
        }
        channels = wide
        for name, row in INCEPTIONS.items():
            unit = SepInception(channels, tuple(scaled_channels(count, width) for count in row))
            layers[name] = unit
            channels = unit.channels_out
        for block, names in BLOCKS.items():
            for name in names:
                self.add_module(name, layers[name])
            self.add_module(block, nn.Sequential(*(layers[name] for name in names)))
        self.feature_size = channels

    def forward(self, clip: Tensor) -> Tensor:
        """Maps a clip [B, 3, T, H, W] to its feature map [B, F, T/8, H/32, W/32]."""
        features = clip
        for block in BLOCKS:
            features = getattr(self, block)(features)
        return features


def scaled_channels(count: int, width: float) -> int:
    """Returns `count * width`, rounded to a multiple of 8 and at least 8; exactly `count` for width 1."""
    return count if width == 1 else max(8, round(count * width / 8) * 8)


class Encoder(nn.Sequential):
    """Maps [B, 3, T, H, W] to [B, D]: S3D, average pooling and the FC-ReLU-FC head as 1x1x1 convolutions.

    A plain `Sequential`, so its names are those of a published `encoder_q`: `0.*` the backbone, `2` and `4`
    the head. `forward` returns L2-normalised embeddings; `features` the pooled backbone output [B, F], before
    the head.
    """

    architecture = "s3d"

    def __init__(self, width: float = 1.0, embedding: int = 128) -> None:
        backbone = S3D(width)
        size = backbone.feature_size
        super().__init__(
            backbone,
            nn.AdaptiveAvgPool3d(1),
            nn.Conv3d(size, size, 1),
            nn.ReLU(),
            nn.Conv3d(size, embedding, 1),
        )
        self.width, self.embedding, self.feature_size = width, embedding, size

    def forward(self, clip: Tensor) -> Tensor:
        """Returns L2-normalised embeddings [B, D] of clips [B, 3, T, H, W]."""
        return nn.functional.normalize(super().forward(clip).flatten(1), dim=1)

    def features(self, clip: Tensor) -> Tensor:
        """Returns the pooled backbone output [B, F] of clips [B, 3, T, H, W], not normalised."""
        return self[1](self[0](clip)).flatten(1)
