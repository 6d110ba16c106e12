"""Settings of training heads over embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ...networks.heads import HeadKind
from .. import TrainError


@dataclass(frozen=True)
class AdaptConfig:
    """Sets heads, augmentation, mining and optimiser of training on embeddings."""

    method: str = "auto"
    """Where positives come from after the warm-up: infonce, coclr, cpr3, cpr5, cpr7, joint, auto (a plan tuned without
    labels), ubernce (labels), or a schedule as text, in which `frozen` stands for the other views of a head's own,
    `trained`.
    """
    head: HeadKind = "residual"
    """residual: x + f(x), which starts as the identity. projection: a small perceptron to `embedding` numbers."""
    hidden: int = 512
    """Units of the hidden layer."""
    embedding: int = 128
    """Numbers that a projection head gives."""
    warm_up: int = 6
    """Epochs of InfoNCE."""
    epochs: int = 25
    """Epochs of the method after it."""
    topk: int = 5
    """Positives mined for a row."""
    ratio: float = 0.5
    """Share that each stage of cpr3, cpr5 and cpr7 keeps."""
    progressive: bool = False
    """Mine one positive in the first epoch and `topk` in the last, growing evenly."""
    query: Literal["key", "online"] = "key"
    """A row's mining query. key: its momentum embedding, as the paper writes. online: the trained head's, as the
    published code does.
    """
    drop_own_positive: float = 0.0
    """Chance that a row's own second embedding is left out of its positives, and so is a negative, where others were
    mined; the published code takes 0.9, which costs more than mining gains in short trainings."""
    batch: int = 256
    queue: int | None = None
    """Past rows that positives and negatives come from (default: a power of two, at most half of the rows)."""
    lr: float = 1e-4
    """Of Adam; it falls to a tenth for the last fifth of the epochs."""
    temperature: float = 0.07
    momentum: float = 0.99
    """Of the momentum heads, which encode the queue."""
    noise: float = 0.5
    """Length of the Gaussian noise added to a row of length 1."""
    dropout: float = 0.0
    """Share of a row's numbers that are set to 0."""
    seed: int = 0

    def check(self) -> None:
        """Raises `TrainError` for the first setting that cannot work."""
        for name in ("hidden", "embedding", "topk", "batch", "queue"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise TrainError(f"{name}: must be at least 1, got {value}")
        for name in ("warm_up", "epochs", "seed", "noise"):
            if getattr(self, name) < 0:
                raise TrainError(f"{name.replace('_', '-')}: must be 0 or more, got {getattr(self, name)}")
        for name in ("lr", "temperature"):
            if not getattr(self, name) > 0:
                raise TrainError(f"{name}: must be above 0, got {getattr(self, name)}")
        for name, most in (("momentum", 1.0), ("drop_own_positive", 1.0), ("dropout", 0.95)):
            if not 0 <= getattr(self, name) <= most:
                raise TrainError(
                    f"{name.replace('_', '-')}: must lie in [0, {most:g}], got {getattr(self, name)}"
                )
        if not self.warm_up + self.epochs:
            raise TrainError("warm-up and epochs are both 0: nothing to do")
