"""Writing a batch over the oldest entries of a ring: `cpr::enqueue_`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def run(buffers: Sequence[Tensor], pointer: Tensor, count: Tensor, rows: Sequence[Tensor]) -> None:
    """Write `rows` (each [B, ...]) at the pointer of `buffers` (each [N, ...]), wrapping; the last N rows stay.

    Slots are computed on the device, so nothing is waited for.
    """
    size, batch = buffers[0].shape[0], rows[0].shape[0]
    kept = min(batch, size)
    offsets = torch.arange(batch - kept, batch, device=pointer.device)
    slots = (pointer + offsets).remainder_(size)
    for buffer, row in zip(buffers, rows):
        buffer.index_copy_(0, slots, row[batch - kept :])
    pointer.copy_((pointer + batch).remainder_(size))
    count.copy_((count + batch).clamp_(max=size))
