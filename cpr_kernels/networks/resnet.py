"""Defines the sound encoder: ResNet-18 on log-mel spectrograms of one channel, and its projection head."""

from __future__ import annotations

from torch import Tensor, nn

from .s3d import scaled_channels

CHANNELS = (64, 128, 256, 512)


class BasicBlock(nn.Module):
    """Applies two 3 x 3 convolutions and a shortcut: [B, C, H, W] -> [B, C', H / stride, W / stride]."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or channels_in != channels_out:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out)
            )

    def forward(self, image: Tensor) -> Tensor:
        """Maps [B, C, H, W] to [B, C', H / stride, W / stride]."""
        shortcut = image if self.downsample is None else self.downsample(image)
        return self.relu(shortcut + self.bn2(self.conv2(self.relu(self.bn1(self.conv1(image))))))


class ResNet18(nn.Module):
    """Maps an image [B, C, H, W] to a feature map [B, F, H / 32, W / 32]: a residual network of 18 layers.

    Named as is usual (`conv1`, `layer1.0.conv1`, ...), without the classifier. `width` scales all channel counts
    (rounded to multiples of 8); 1 is the published network, F = 512. Source: He et al. 2016, table 1.
    """

    def __init__(self, width: float = 1.0, channels_in: int = 1) -> None:
        super().__init__()
        if not width > 0:
            raise ValueError(f"ResNet18: width must be > 0, got {width}")
        stem, *_ = wide = [scaled_channels(count, width) for count in CHANNELS]
        self.conv1 = nn.Conv2d(channels_in, stem, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        channels = stem
        for number, count in enumerate(wide, start=1):
            first = BasicBlock(channels, count, stride=1 if number == 1 else 2)
            self.add_module(f"layer{number}", nn.Sequential(first, BasicBlock(count, count, stride=1)))
            channels = count
        self.feature_size = channels
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, image: Tensor) -> Tensor:
        """Maps an image [B, C, H, W] to its feature map [B, F, H / 32, W / 32]."""
        features = self.maxpool(self.relu(self.bn1(self.conv1(image))))
        for number in range(1, len(CHANNELS) + 1):
            features = getattr(self, f"layer{number}")(features)
        return features


class SpectrogramEncoder(nn.Sequential):
    """Maps [B, 1, 128, 128] to L2-normalised [B, D]: ResNet-18, average pooling and an FC-ReLU-FC head.

    `features` gives the pooled backbone output [B, F], before the head.
    """

    architecture = "resnet18"

    def __init__(self, width: float = 1.0, embedding: int = 128) -> None:
        backbone = ResNet18(width)
        size = backbone.feature_size
        super().__init__(
            backbone,
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(size, size, 1),
            nn.ReLU(),
            nn.Conv2d(size, embedding, 1),
        )
        self.width, self.embedding, self.feature_size = width, embedding, size

    def forward(self, image: Tensor) -> Tensor:
        """Returns L2-normalised embeddings [B, D] of spectrograms [B, 1, 128, 128]."""
        return nn.functional.normalize(super().forward(image).flatten(1), dim=1)

    def features(self, image: Tensor) -> Tensor:
        """Returns the pooled backbone output [B, F] of spectrograms [B, 1, 128, 128], not normalised."""
        return self[1](self[0](image)).flatten(1)
