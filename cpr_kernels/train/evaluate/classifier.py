"""Defines a classifier of clips and its file: a pretrained backbone, dropout, one linear layer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from msgspec import Meta
from torch import Tensor, nn

from ...networks import new_encoder
from ...networks.inputs import CHANNELS_LAST, channels_last
from .. import TrainError
from ..encoders.weights import (
    EncoderFacts,
    checked_facts,
    encoder_facts,
    load_tensors,
    read_facts,
    save_tensors,
)

CLASSIFIER_KIND = "cpr_kernels classifier"


@dataclass(frozen=True)
class ClipSettings:
    """Holds the size of the clips that a classifier was trained on: view, frames, pixels of a side."""

    view: str
    frames: int
    crop: int


@dataclass(frozen=True)
class ClassifierFacts(EncoderFacts):
    """Holds what the header of a classifier's file says."""

    view: str
    frames: Annotated[int, Meta(ge=1, le=4096)]
    crop: Annotated[int, Meta(ge=1, le=4096)]
    classes: Annotated[list[str], Meta(min_length=1)]


class Classifier(nn.Module):
    """Maps clips [M, C, T, H, W] to logits [M, classes]: `encoder.features`, dropout, a linear layer."""

    def __init__(
        self, encoder: nn.Module, classes: list[str], clip: ClipSettings, dropout: float = 0.9
    ) -> None:
        super().__init__()
        self.encoder, self.classes, self.clip = encoder, list(classes), clip
        self.dropout = nn.Dropout(dropout)
        size: Any = encoder.feature_size
        self.linear = nn.Linear(size, len(classes))
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)
        for parameter in self.parameters():
            if parameter.dim() in CHANNELS_LAST:
                parameter.data = parameter.data.to(memory_format=CHANNELS_LAST[parameter.dim()])

    def forward(self, clips: Tensor) -> Tensor:
        """Returns logits [M, classes], float32."""
        features: Any = self.encoder.features
        pooled: Tensor = features(channels_last(clips))
        with torch.autocast(clips.device.type, enabled=False):
            logits: Tensor = self.linear(self.dropout(pooled.float()))
        return logits


def save_classifier(path: Path, classifier: Classifier, **facts: Any) -> None:
    """Writes weights as safetensors; the header holds what their use needs: classes, view, clip size, network."""
    clip = classifier.clip
    what = {"view": clip.view, "frames": clip.frames, "crop": clip.crop, "classes": classifier.classes}
    save_tensors(
        path, classifier, {"kind": CLASSIFIER_KIND, **what, **encoder_facts(classifier.encoder), **facts}
    )


def load_classifier(path: Path) -> Classifier:
    """Returns a classifier that `cpr finetune` saved, in evaluation mode.

    Raises:
        TrainError: missing, damaged, or a file of something else.
    """
    if (kind := read_facts(path).get("kind", "file of another program")) != CLASSIFIER_KIND:
        raise TrainError(f"checkpoint: {path} holds a {kind}, no classifier; make one with `cpr finetune`")
    facts = checked_facts(path, ClassifierFacts)
    encoder = new_encoder(facts.architecture, facts.width, facts.embedding)
    classifier = Classifier(encoder, facts.classes, ClipSettings(facts.view, facts.frames, facts.crop))
    load_tensors(path, classifier)
    return classifier.eval()
