"""What the native backends share: dtype codes of the core, addresses, and rows it can walk."""

from __future__ import annotations

import torch
from torch import Tensor

DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # csrc/cascade_topk.h


def address(tensor: Tensor | None) -> int:
    """Where the tensor's data begins; 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()


def row_contiguous(tensor: Tensor) -> Tensor:
    """The tensor itself when its inner stride is 1, else a contiguous copy."""
    return tensor if tensor.stride(1) == 1 or tensor.shape[1] <= 1 else tensor.contiguous()
