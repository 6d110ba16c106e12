"""Defines a network of four 3D convolutions: small enough that a CPU trains it in a minute."""

from __future__ import annotations

from torch import Tensor, nn

from .s3d import scaled_channels

CHANNELS = (64, 128, 256, 256)


class Conv4(nn.Module):
    """Maps clips [B, 3, T, H, W] to L2-normalised [B, D]: four convolutions, average pooling, an FC-ReLU-FC head.

    The first convolution is 3 x 7 x 7 with a stride of 4 pixels, the others 3 x 3 x 3; two poolings halve frames,
    rows and columns, then frames once more. `width` scales all channel counts (rounded to multiples of 8). It needs
    clips of 4 frames and 8 pixels or more.
    """

    architecture = "conv4"

    def __init__(self, width: float = 1.0, embedding: int = 128) -> None:
        super().__init__()
        one, two, three, four = (scaled_channels(count, width) for count in CHANNELS)
        self.backbone = nn.Sequential(
            *_convolution(3, one, (3, 7, 7), (1, 4, 4)),
            *_convolution(one, two, (3, 3, 3)),
            nn.MaxPool3d(2),
            *_convolution(two, three, (3, 3, 3)),
            nn.MaxPool3d((2, 1, 1)),
            *_convolution(three, four, (3, 3, 3)),
            nn.AdaptiveAvgPool3d(1),
            nn.Flatten(),
        )
        self.head = nn.Sequential(nn.Linear(four, four), nn.ReLU(), nn.Linear(four, embedding))
        self.width, self.embedding, self.feature_size = width, embedding, four

    def forward(self, clip: Tensor) -> Tensor:
        """Returns L2-normalised embeddings [B, D] of clips [B, 3, T, H, W]."""
        return nn.functional.normalize(self.head(self.features(clip)), dim=1)

    def features(self, clip: Tensor) -> Tensor:
        """Returns the pooled backbone output [B, F] of clips [B, 3, T, H, W], not normalised."""
        return self.backbone(clip)


def _convolution(
    channels_in: int,
    channels_out: int,
    kernel: tuple[int, int, int],
    stride: tuple[int, int, int] = (1, 1, 1),
) -> tuple[nn.Module, ...]:
    pad = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
    convolution = nn.Conv3d(channels_in, channels_out, kernel, stride, pad, bias=False)
    return convolution, nn.BatchNorm3d(channels_out), nn.ReLU(inplace=True)
