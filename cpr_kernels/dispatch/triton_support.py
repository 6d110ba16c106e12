"""Says whether Triton can run on a device, for all Triton backends. Imports no Triton."""

from __future__ import annotations

import functools
import importlib.util
import os
from importlib.metadata import version

import torch

MIN_CAPABILITY = (8, 0)  # the tensor-core shapes and asynchronous copies that the kernels are written for


@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


@functools.cache
def capability(index: int | None) -> tuple[int, int]:
    """Returns the compute capability of a CUDA device; cached."""
    return torch.cuda.get_device_capability(index)


def interpreter_fault(triton: str, numpy: str) -> str | None:
    """Returns why these versions of Triton and NumPy cannot interpret kernels together, or None where they can."""
    older, newer = (tuple(int(part) for part in text.split(".")[:2]) for text in (triton, numpy))
    if older < (3, 7) and newer >= (2, 4):
        return (
            f"the interpreter of Triton {triton} fails with NumPy 2.4 and newer, and {numpy} is installed; "
            "pip install 'triton>=3.7' or 'numpy<2.4'"
        )
    return None


def why_not_triton(device: torch.device) -> str | None:
    """Returns None where Triton kernels can run on tensors of `device`, else the reason they cannot."""
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        return "Triton runs on CUDA tensors (and, when TRITON_INTERPRET=1 is set, slowly on cpu tensors)"
    if device.type not in ("cpu", "cuda"):
        return f"Triton kernels run on CUDA tensors, and these are on {device.type}"
    if not _installed():
        return "triton is not installed; pip install cpr_kernels[triton]"
    if device.type == "cpu":
        return interpreter_fault(version("triton"), version("numpy"))
    if not torch.cuda.is_available():
        return "torch sees no CUDA device on this machine"
    if capability(device.index) < MIN_CAPABILITY:
        major, minor = capability(device.index)
        return f"the kernels need compute capability 8.0 or newer, and {device} has {major}.{minor}"
    return None
