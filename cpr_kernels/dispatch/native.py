"""What the native backends share: dtype codes of the core, addresses, devices it can use."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from .. import _core as core

DTYPE_CODES: dict[torch.dtype, int] = {
    getattr(torch, name): code for name, code in core.dtype_codes().items()
}
LIMITS: dict[str, int] = core.limits()
MIN_CAPABILITY = (8, 0)  # mma.sync on bfloat16, cp.async, redux.sync


def address(tensor: Tensor | None) -> int:
    """Where the tensor's data begins; 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()


@functools.cache
def why_not_cuda(device: torch.device) -> str | None:
    """None where the CUDA part of the core can run on `device`, else the sentence that says why not."""
    if not hasattr(core, "cuda_unavailable"):
        return "this build has no CUDA kernels; install where nvcc is on PATH (CPR_CUDA=ON insists on them)"
    unavailable = core.cuda_unavailable()
    if unavailable:
        return f"the core's CUDA runtime finds no device: {unavailable}"
    capability = torch.cuda.get_device_capability(device)
    if capability < MIN_CAPABILITY:
        return (
            f"the CUDA kernels need compute capability 8.0, and {device} has {capability[0]}.{capability[1]}"
        )
    return None


@contextmanager
def on_current_stream(device: torch.device) -> Iterator[int]:
    """Make `device` current, and give the handle of its current stream."""
    with torch.cuda.device(device):
        core.cuda_use_device(torch.cuda.current_device())  # the core's runtime is its own, linked into it
        yield torch.cuda.current_stream(device).cuda_stream
