"""Measures the peak memory of one call in this process.

On the CPU: free memory is returned to the system, the kernel's high-water mark of resident memory is reset
(``/proc/self/clear_refs``), the call is made and the mark is read. Pages of libraries that the call itself loads
are taken off. Results count; inputs do not. The kernel counts pages in batches: the figure is good to about a
quarter of a megabyte. On CUDA: the peak of torch's allocator.
"""

from __future__ import annotations

import ctypes
import gc
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cpr_kernels import _core


def status_bytes(field: str) -> int:
    """Returns a size of /proc/self/status in bytes; 0 where the system does not say."""
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    found = re.search(rf"^{field}:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def reset_high_water() -> None:
    """Sets the kernel's high-water mark of resident memory to what is resident."""
    Path("/proc/self/clear_refs").write_text("5")


def cannot_measure(device: str) -> str | None:
    """Returns why this system cannot say what a call's peak is, or None."""
    if device == "cuda":
        return None
    try:
        reset_high_water()
    except OSError as error:
        return f"peak memory not measured: this system does not reset its high-water mark ({error})"
    return None


def release_free_memory() -> None:
    """Returns freed blocks and the native workspace to the system."""
    gc.collect()
    _core.release_workspace()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def peak_of(call: Callable[[], Any], device: str) -> int:
    """Returns the bytes that one call needs at its peak, its results included."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        kept = call()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
        del kept
        return peak
    release_free_memory()
    reset_high_water()
    before, files = status_bytes("VmRSS"), status_bytes("RssFile")
    kept = call()
    peak = status_bytes("VmHWM") - before - max(status_bytes("RssFile") - files, 0)
    del kept
    return max(peak, 0)
