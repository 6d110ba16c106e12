"""Batch norm's running statistics, which a frozen or tested encoder goes by."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def calibrate_(encoder: nn.Module, clips: Tensor) -> None:
    """Running statistics that have seen nothing yet become those of `clips`; trained ones stay.

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
