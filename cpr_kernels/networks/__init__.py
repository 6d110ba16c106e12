"""Which networks can a view be encoded by? One line each; files and configs name them.

An encoder is a module whose `forward` gives L2-normalised embeddings [M, D] and whose `features` gives pooled
backbone outputs [M, F]. It carries `architecture` (its name here), `width`, `embedding` (D) and `feature_size` (F).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import TrainError
from .conv4 import Conv4
from .r3d import R3D, R3D18
from .resnet import SpectrogramEncoder
from .s3d import Encoder

ENCODERS: dict[str, Callable[[float, int], Any]] = {
    kind.architecture: kind for kind in (Encoder, R3D, R3D18, Conv4, SpectrogramEncoder)
}
MAX_WIDTH, MAX_EMBEDDING = 64.0, 1 << 16


def new_encoder(architecture: str, width: float, embedding: int) -> Any:
    """Returns a new encoder with random weights.

    Raises:
        TrainError: no such architecture, or a size that no file of an encoder has.
    """
    if architecture not in ENCODERS:
        raise TrainError(f"backbone: must be one of {', '.join(ENCODERS)}, got {architecture!r}")
    if not (isinstance(width, (int, float)) and 0 < width <= MAX_WIDTH):
        raise TrainError(f"width: must be a number in (0, {MAX_WIDTH:g}], got {width!r}")
    if not (isinstance(embedding, int) and 0 <= embedding <= MAX_EMBEDDING):
        raise TrainError(f"embedding: must be a whole number of at most {MAX_EMBEDDING:,}, got {embedding!r}")
    return ENCODERS[architecture](width, embedding)
