"""A loss and its gradients beside the reference in float64: one check for emulated kernels and those of a GPU."""

from __future__ import annotations

from typing import NamedTuple

import torch
from cases import LossCase
from torch import Tensor

from cpr_kernels.dispatch.calls import Sweep
from cpr_kernels.losses import reference


class ExactLoss(NamedTuple):
    """The reference's results of a case in float64, and the gradient of the losses that its keys' gradient is for."""

    sweep: Sweep
    grad_loss: Tensor  # [B] float32
    grad_keys: Tensor


def exact_loss(case: LossCase) -> ExactLoss:
    call = case.call(dtype=torch.float64)
    sweep = reference.sweep(call, True)
    grad_loss = torch.linspace(-1, 1, call.query.shape[0])
    keys = reference.keys_gradient(call, grad_loss.double(), sweep.lse_all, sweep.lse_positive)
    return ExactLoss(sweep, grad_loss, keys)


def check_near(exact: ExactLoss, got: Sweep, grad_keys: Tensor, dtype: torch.dtype) -> None:
    """Loss, statistics and gradients are near the exact ones; `dtype`: of the keys, to which their gradient rounds."""
    sums = (exact.sweep.lse_all, exact.sweep.lse_positive)
    logits = max([1.0, *(t.abs().max().item() for t in sums if t.numel())])
    rounding = {torch.float32: 0.0, torch.bfloat16: 2**-8, torch.float16: 2**-11}[dtype]
    for name, value, wanted in [
        *((name, getattr(got, name), getattr(exact.sweep, name)) for name in got._fields),
        ("grad_keys", grad_keys, exact.grad_keys),
    ]:
        size = wanted.abs().max().item() if wanted.numel() else 0.0
        slack = (1 + size) * (1e-5 + 4e-7 * logits) + (rounding * size if name == "grad_keys" else 0.0)
        error = (value.cpu().double() - wanted).abs()
        assert (error <= slack).all(), f"{name} is off by {error.max():.3g}, {slack:.3g} allowed"
