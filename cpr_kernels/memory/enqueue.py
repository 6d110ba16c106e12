"""Writing a batch over the oldest entries of a ring: `cpr::enqueue_`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from ..dispatch.fast_path import dispatcher_is_idle
from ..dispatch.native import LIMITS, core, on_current_stream, why_not_cuda

MAX_COLUMNS = LIMITS["columns"]


def write(buffers: list[Tensor], pointer: Tensor, count: Tensor, rows: list[Tensor]) -> None:
    """Writes by `cpr::enqueue_`, or without torch's dispatcher where that would only pass the tensors on."""
    if not run_directly(buffers, pointer, count, rows):
        torch.ops.cpr.enqueue_(buffers, pointer, count, rows)


def run_directly(buffers: list[Tensor], pointer: Tensor, count: Tensor, rows: list[Tensor]) -> bool:
    """Writes plain CPU tensors that fit together, where nothing listens to torch's calls and no graph is recorded.

    Returns:
        False for all else, which the op runs or refuses; then nothing was written.
    """
    if not dispatcher_is_idle() or torch.is_grad_enabled():
        return False
    written = [*buffers, pointer, count]
    if any(tensor.is_inference() for tensor in written):  # these have no version
        return False
    if not core.enqueue_tensors(buffers, rows, pointer, count):
        return False
    increment_version(written)
    return True


def run(buffers: Sequence[Tensor], pointer: Tensor, count: Tensor, rows: Sequence[Tensor]) -> None:
    """Write `rows` (each [B, ...]) at the pointer of `buffers` (each [N, ...]), wrapping; the last N rows stay."""
    device = pointer.device
    if all(_packed_rows(buffer) for buffer in buffers):
        if device.type == "cpu":
            return _native(buffers, pointer, count, rows)
        if device.type == "cuda" and len(buffers) <= MAX_COLUMNS and why_not_cuda(device) is None:
            with on_current_stream(device) as stream:
                return on_stream(buffers, pointer, count, rows, core, stream)
    return reference(buffers, pointer, count, rows)


def reference(buffers: Sequence[Tensor], pointer: Tensor, count: Tensor, rows: Sequence[Tensor]) -> None:
    """The meaning in plain torch. Slots are computed on the device, so nothing is waited for."""
    size, batch = buffers[0].shape[0], rows[0].shape[0]
    kept = min(batch, size)
    offsets = torch.arange(batch - kept, batch, device=pointer.device)
    start = pointer.remainder(size)  # of a foreign checkpoint it may be any number
    slots = (start + offsets).remainder_(size)
    for buffer, row in zip(buffers, rows):
        buffer.index_copy_(0, slots, row[batch - kept :])
    pointer.copy_((start + batch).remainder_(size))
    count.copy_((count.clamp(0, size) + batch).clamp_(max=size))


def _packed_rows(tensor: Tensor) -> bool:
    return tensor[0].is_contiguous()


def _columns(
    buffers: Sequence[Tensor], rows: Sequence[Tensor]
) -> tuple[list[Tensor], list[tuple[int, int, int, int, int]]]:
    """Sources that the core can walk, and (buffer, stride, rows, stride, row size) in bytes of each column."""
    sources = [row if row.shape[0] and _packed_rows(row) else row.contiguous() for row in rows]
    columns = []
    for buffer, source in zip(buffers, sources):
        item = buffer.element_size()
        stride, source_stride = buffer.stride(0) * item, source.stride(0) * item
        columns.append(
            (buffer.data_ptr(), stride, source.data_ptr(), source_stride, buffer[0].numel() * item)
        )
    return sources, columns


def _native(buffers: Sequence[Tensor], pointer: Tensor, count: Tensor, rows: Sequence[Tensor]) -> None:
    _sources, columns = _columns(buffers, rows)  # the sources stay alive until the core has returned
    core.enqueue(columns, buffers[0].shape[0], rows[0].shape[0], pointer.data_ptr(), count.data_ptr())


def on_stream(
    buffers: Sequence[Tensor], pointer: Tensor, count: Tensor, rows: Sequence[Tensor], core: Any, stream: int
) -> None:
    """Queue the CUDA kernels of `core` on a stream of the current device."""
    _sources, columns = _columns(buffers, rows)  # torch reuses their memory in stream order
    core.cuda_enqueue(
        columns, buffers[0].shape[0], rows[0].shape[0], pointer.data_ptr(), count.data_ptr(), stream
    )
