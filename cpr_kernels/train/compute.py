"""Where and how precisely is computed? The device of a run, and bfloat16 where it is asked for."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Literal

import torch

from . import TrainError

Amp = Literal["off", "bf16"]


def device_of(name: str) -> torch.device:
    """The device called `name`; auto takes CUDA where there is one.

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


def autocast(device: torch.device, amp: Amp) -> AbstractContextManager[None]:
    """Convolutions and products in bfloat16 inside; weights, batch norm's statistics and losses stay float32, so no
    loss scaling is needed.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=amp == "bf16")
