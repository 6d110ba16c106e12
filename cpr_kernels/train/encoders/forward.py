"""Runs encoders: memory layout, precision, and batch norm's first running statistics."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from ...networks.inputs import channels_last
from ..runtime.device import Amp, autocast


@torch.no_grad()
def calibrate_(encoder: nn.Module, clips: Tensor) -> None:
    """Sets running statistics that are still initial to those of `clips`; trained ones stay.

    They begin as 0 and 1, which small convolution weights make far too large: through S3D's 60 layers, features then
    shrink to a constant until some hundred steps have washed the beginning out. Weights and the outputs in training
    mode do not depend on them.
    """
    fresh = [
        module for module in encoder.modules()
        if isinstance(module, _BatchNorm) and module.num_batches_tracked is not None
        and not int(module.num_batches_tracked)
    ]  # fmt: skip
    if not fresh:
        return
    modes = [(module, module.training, module.momentum) for module in fresh]
    try:
        for module in fresh:
            module.train()
            module.momentum = 1.0
        encoder.forward(clips)  # not the compiled call: this runs once
    finally:
        for module, training, momentum in modes:
            module.train(training)
            module.momentum = momentum


def embeddings_of(encoder: nn.Module, clips: Tensor, amp: Amp) -> Tensor:
    """Returns L2-normalised embeddings [B, D], float32 whatever the convolutions run in."""
    with autocast(clips.device, amp):
        embeddings: Tensor = encoder(channels_last(clips))
    return embeddings if amp == "off" else functional.normalize(embeddings.float(), dim=1)
