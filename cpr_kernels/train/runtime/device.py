"""Chooses the device of a run and its precision."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import nn

from .. import TrainError
from .bfloat16 import RightConvolutions

Amp = Literal["off", "bf16"]


def device_to_train_on(name: str, amp: Amp) -> torch.device:
    """Returns the device called `name`, if training can be as precise there as `amp` says.

    Raises:
        TrainError: no such device here, or bfloat16 on a CPU that has no instructions for it: slower there than
            float32, and a forward pass of torch 2.13 was wrong once in 2,500 shapes.
    """
    device = device_of(name)
    if amp == "bf16" and device.type == "cpu" and not multiplies_bfloat16():
        raise TrainError(
            f"amp: bf16 on the device {device} needs a CPU with AVX-512 BF16, and a torch that says so "
            "(`torch.cpu.get_capabilities()`); use --amp off"
        )
    return device


def multiplies_bfloat16() -> bool:
    """Returns whether this CPU has instructions for bfloat16 (AVX-512 BF16), and torch says so: 2.11 cannot."""
    capabilities: Any = getattr(torch.cpu, "get_capabilities", dict)
    return bool(capabilities().get("avx512_bf16"))


def device_of(name: str) -> torch.device:
    """Returns the device called `name`; auto takes CUDA where there is one.

    Raises:
        TrainError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise TrainError(
            f"device: {name!r} cannot be used here ({reason}); expected auto, cpu or cuda"
        ) from None
    return device


@contextmanager
def compiling(enabled: bool) -> Iterator[None]:
    """Turns a failure of `torch.compile` inside, where it is `enabled`, into one sentence."""
    try:
        yield
    except Exception as error:
        if not enabled or not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        reason = " ".join(str(error).partition("Set TORCHDYNAMO")[0].split())[:200]
        raise TrainError(
            f"compile: torch.compile cannot compile the encoders here ({reason}); install the C++ compiler that it "
            "needs (for GPUs: Triton), or begin a run without --compile"
        ) from error


@contextmanager
def autocast(device: torch.device, amp: Amp) -> Iterator[None]:
    """Computes convolutions and products in bfloat16 inside.

    Weights, batch norm's statistics and losses stay float32, so no loss scaling is needed. On CPUs some convolutions
    are float32 too, see :class:`RightConvolutions`.
    """
    if amp == "off":
        yield
        return
    right = RightConvolutions() if device.type == "cpu" else nullcontext()
    with torch.autocast(device.type, torch.bfloat16), right:
        yield


def check_finite(step: int, losses: Mapping[str, Any], parameters: Sequence[nn.Parameter]) -> None:
    """Raises `TrainError` before an optimiser's step that would spoil the weights.

    Raises:
        TrainError: a loss, or the gradient of a parameter, is not finite.
    """
    norm = float(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
    if math.isfinite(norm) and all(math.isfinite(loss) for loss in losses.values()):
        return
    raise TrainError(
        f"step {step}: the loss or its gradient is not finite ({dict(losses)}, norm of the gradient {norm}); lower "
        "--optim.lr or raise --optim.temperature"
    )
