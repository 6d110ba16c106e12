"""Writing a batch over the oldest entries of a ring: `cpr::enqueue_`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import _core


def run(buffers: Sequence[Tensor], pointer: Tensor, count: Tensor, rows: Sequence[Tensor]) -> None:
    """Write `rows` (each [B, ...]) at the pointer of `buffers` (each [N, ...]), wrapping; the last N rows stay."""
    if pointer.device.type == "cpu" and all(_packed_rows(buffer) for buffer in buffers):
        return _native(buffers, pointer, count, rows)
    return reference(buffers, pointer, count, rows)


def reference(buffers: Sequence[Tensor], pointer: Tensor, count: Tensor, rows: Sequence[Tensor]) -> None:
    """The meaning in plain torch. Slots are computed on the device, so nothing is waited for."""
    size, batch = buffers[0].shape[0], rows[0].shape[0]
    kept = min(batch, size)
    offsets = torch.arange(batch - kept, batch, device=pointer.device)
    slots = (pointer + offsets).remainder_(size)
    for buffer, row in zip(buffers, rows):
        buffer.index_copy_(0, slots, row[batch - kept :])
    pointer.copy_((pointer + batch).remainder_(size))
    count.copy_((count + batch).clamp_(max=size))


def _packed_rows(tensor: Tensor) -> bool:
    return tensor[0].is_contiguous()


def _native(buffers: Sequence[Tensor], pointer: Tensor, count: Tensor, rows: Sequence[Tensor]) -> None:
    # the tensors of this list stay alive until the core has returned
    sources = [row if row.shape[0] and _packed_rows(row) else row.contiguous() for row in rows]
    columns = []
    for buffer, source in zip(buffers, sources):
        item = buffer.element_size()
        columns.append(
            (
                buffer.data_ptr(),
                buffer.stride(0) * item,
                source.data_ptr(),
                source.stride(0) * item,
                buffer[0].numel() * item,
            )
        )
    _core.enqueue(columns, buffers[0].shape[0], rows[0].shape[0], pointer.data_ptr(), count.data_ptr())
