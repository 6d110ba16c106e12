"""Defines the encoder of IIC: a 3D residual network, named as in the published checkpoints."""

from __future__ import annotations

from torch import Tensor, nn

from .s3d import MEAN, STD, scaled_channels

CHANNELS = (64, 128, 256, 512)
POINT, CUBE, EVERY, SECOND = (1, 1, 1), (3, 3, 3), (1, 1, 1), (2, 2, 2)  # kernels and strides


class SpaceTimeConv(nn.Module):
    """Applies one 3D convolution without bias; a module only because the published names have that level."""

    def __init__(
        self, channels_in: int, channels_out: int, kernel: tuple[int, int, int], stride: tuple[int, int, int]
    ) -> None:
        super().__init__()
        pad = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
        self.temporal_spatial_conv = nn.Conv3d(channels_in, channels_out, kernel, stride, pad, bias=False)

    def forward(self, clip: Tensor) -> Tensor:
        """Maps [B, C, T, H, W] to [B, C', T / stride, H / stride, W / stride]."""
        return self.temporal_spatial_conv(clip)


class ResidualBlock(nn.Module):
    """Applies two 3 x 3 x 3 convolutions and a shortcut; `halves` takes every second frame, row and column."""

    def __init__(self, channels_in: int, channels_out: int, halves: bool = False) -> None:
        super().__init__()
        stride = SECOND if halves else EVERY
        self.halves = halves
        if halves:
            self.downsampleconv = SpaceTimeConv(channels_in, channels_out, POINT, stride)
            self.downsamplebn = nn.BatchNorm3d(channels_out)
        self.conv1 = SpaceTimeConv(channels_in, channels_out, CUBE, stride)
        self.bn1 = nn.BatchNorm3d(channels_out)
        self.relu1 = nn.ReLU()
        self.conv2 = SpaceTimeConv(channels_out, channels_out, CUBE, EVERY)
        self.bn2 = nn.BatchNorm3d(channels_out)
        self.outrelu = nn.ReLU()

    def forward(self, clip: Tensor) -> Tensor:
        """Maps [B, C, T, H, W] to [B, C', T / stride, H / stride, W / stride]."""
        changed = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(clip)))))
        shortcut = self.downsamplebn(self.downsampleconv(clip)) if self.halves else clip
        return self.outrelu(shortcut + changed)


class ResidualLayer(nn.Module):
    """Applies `blocks` residual blocks of one size, the first of which may halve it."""

    def __init__(self, channels_in: int, channels_out: int, blocks: int, halves: bool) -> None:
        super().__init__()
        self.block1 = ResidualBlock(channels_in, channels_out, halves)
        self.blocks = nn.ModuleList(ResidualBlock(channels_out, channels_out) for _ in range(blocks - 1))

    def forward(self, clip: Tensor) -> Tensor:
        """Maps [B, C, T, H, W] to [B, C', T / stride, H / stride, W / stride]."""
        clip = self.block1(clip)
        for block in self.blocks:
            clip = block(clip)
        return clip


class R3D(nn.Module):
    """Maps clips [B, 3, T, H, W] to L2-normalised [B, F], F = 512: the 3D residual network of IIC (Tao et al. 2020).

    It has no projection head: the pooled features are the embedding. `blocks` of each of the four layers is 1 in the
    published R3D and 2 in R3D-18. Its input is normalised as for the other encoders; it takes that back, since the
    published weights expect 0..1. `width` scales all channel counts (rounded to multiples of 8). The published
    training feeds the loss with unnormalised features; here they are normalised, as the scores are cosines everywhere.
    """

    architecture = "r3d"
    blocks = 1

    def __init__(self, width: float = 1.0, embedding: int = 0) -> None:
        """Takes `embedding` only for the other encoders' signature: F follows from the width."""
        super().__init__()
        if not width > 0:
            raise ValueError(f"R3D: width must be > 0, got {width}")
        stem, *_ = wide = [scaled_channels(count, width) for count in CHANNELS]
        self.conv1 = SpaceTimeConv(3, stem, (3, 7, 7), (1, 2, 2))
        self.bn1 = nn.BatchNorm3d(stem)
        self.relu1 = nn.ReLU()
        before = stem
        for number, channels in enumerate(wide, start=2):
            self.add_module(f"conv{number}", ResidualLayer(before, channels, self.blocks, halves=number > 2))
            before = channels
        self.pool = nn.AdaptiveAvgPool3d(1)
        self.width, self.embedding, self.feature_size = width, before, before

    def forward(self, clip: Tensor) -> Tensor:
        """Returns L2-normalised embeddings [B, F] of clips [B, 3, T, H, W]."""
        return nn.functional.normalize(self.features(clip), dim=1)

    def features(self, clip: Tensor) -> Tensor:
        """Returns pooled features [B, F] of clips [B, 3, T, H, W], not normalised."""
        mean, std = (clip.new_tensor(values).view(3, 1, 1, 1) for values in (MEAN, STD))
        maps = self.relu1(self.bn1(self.conv1(clip * std + mean)))
        for number in range(2, 6):
            maps = getattr(self, f"conv{number}")(maps)
        return self.pool(maps).flatten(1)


class R3D18(R3D):
    """Has two blocks per layer instead of one: R3D-18."""

    architecture = "r3d18"
    blocks = 2
