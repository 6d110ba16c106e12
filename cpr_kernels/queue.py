"""The memory queue: past keys of every view, their source ids and labels, oldest replaced first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .checks import FEATURE_DTYPES, check_ids


def gathered(columns: list[Tensor]) -> list[Tensor]:
    """Each column's rows of every rank, in rank order; as they are without a process group."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return columns
    whole = []
    for rows in columns:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        whole.append(torch.cat(parts))
    return whole


def check_columns(owner: str, views: Mapping[str, int], size: int, dtype: torch.dtype) -> tuple[str, ...]:
    """The names of a queue's views, once views, size and dtype make sense.

    Raises:
        ValueError: naming the argument, what was expected and what came.
    """
    if not views:
        raise ValueError(f"{owner}: views is empty; give {{name: D}} for each view")
    if size < 1:
        raise ValueError(f"{owner}: size must be >= 1, got {size}")
    if dtype not in FEATURE_DTYPES:
        raise ValueError(f"{owner}: dtype must be float32, bfloat16, float16 or float64, got {dtype}")
    for name, dim in views.items():
        if dim < 1:
            raise ValueError(f"{owner}: view {name!r} must have D >= 1, got {dim}")
    return tuple(views)


def check_rows(
    views: Mapping[str, Tensor],
    features: Mapping[str, Tensor],
    ids: Tensor,
    labels: Tensor | None,
    device: torch.device,
) -> list[Tensor]:
    """A batch to enqueue, column by column: each view of the queue in order, ids, labels (-1 where unknown).

    Raises:
        ValueError: a missing or unknown view, or a wrong shape, dtype or device.
    """
    if set(features) != set(views):
        raise ValueError(f"enqueue: features must hold the views {list(views)}, got {list(features)}")
    first = features[next(iter(views))]
    rows = first.shape[0] if first.dim() else 0
    check_ids("enqueue", "ids", ids, rows, "row", device)
    if labels is None:
        labels = torch.full_like(ids, -1)
    check_ids("enqueue", "labels", labels, rows, "row", device)
    for name, buffer in views.items():
        value = features[name]
        if value.dim() != 2 or value.shape[0] != rows or value.shape[1] != buffer.shape[1]:
            shape = f"[{rows}, {buffer.shape[1]}]"
            raise ValueError(f"enqueue: features[{name!r}] must have shape {shape}, got {list(value.shape)}")
        if value.device != buffer.device:
            raise ValueError(
                f"enqueue: features[{name!r}] is on {value.device}, the queue on {buffer.device}"
            )
        if value.is_complex():
            raise ValueError(f"enqueue: features[{name!r}] must hold real numbers, got {value.dtype}")
    return [*(features[name] for name in views), ids, labels]


class MultiViewQueue(nn.Module):
    """A first-in first-out queue of N entries, each with one embedding per view, an id and a label.

    Everything is a buffer, so `state_dict` is complete and a resumed run continues bit for bit. Unfilled
    slots have id -1, which `cascade_topk` and `mil_nce` leave out: mining works from the first step. Ranks
    stay identical by construction (rows are gathered in rank order), so DDP need not broadcast the buffers:
    keep the queue outside the wrapped module, or pass ``broadcast_buffers=False``.

    Args:
        views: ``{name: D}``, the size of each view's embedding.
        size: N, entries held.
        dtype: storage, float32, bfloat16, float16, or float64 (mined and swept slowly).
        device: where the buffers live.

    Attributes:
        ids: [N] int64, source video of each entry; -1 marks an empty slot.
        labels: [N] int64, class of each entry, -1 where unknown. For metrics only.
        pointer: 0-dim int64, the slot written next.
        count: 0-dim int64, entries filled so far (at most N).

    Example:
        >>> queue = MultiViewQueue({"rgb": 128, "flow": 128}, size=2048)
        >>> queue.enqueue({"rgb": torch.randn(16, 128), "flow": torch.randn(16, 128)}, ids=torch.arange(16))
        >>> queue.views["rgb"].shape, int(queue.count)
        (torch.Size([2048, 128]), 16)
    """

    ids: Tensor
    labels: Tensor
    pointer: Tensor
    count: Tensor

    def __init__(
        self,
        views: Mapping[str, int],
        size: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self._names = check_columns("MultiViewQueue", views, size, dtype)
        self.size = size
        for name, dim in views.items():
            self.register_buffer(f"view_{name}", torch.zeros(size, dim, dtype=dtype, device=device))
        self.register_buffer("ids", torch.full((size,), -1, dtype=torch.int64, device=device))
        self.register_buffer("labels", torch.full((size,), -1, dtype=torch.int64, device=device))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64, device=device))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64, device=device))

    @property
    def views(self) -> dict[str, Tensor]:
        """``{view: [N, D]}``: the buffers themselves, not copies. What mining takes as keys."""
        return {name: getattr(self, f"view_{name}") for name in self._names}

    @torch.no_grad()
    def enqueue(self, features: Mapping[str, Tensor], ids: Tensor, labels: Tensor | None = None) -> None:
        """Write a batch over the oldest entries; any batch size, wrapping at the end.

        With a process group up, every rank must call this with the same number of rows; all ranks write all
        rows in rank order. Of a batch larger than the queue the last N rows stay. The device is never waited
        for.

        Args:
            features: ``{view: [B, D]}``, every view of the queue; converted to the queue's dtype.
            ids: [B] int64, source video of each row, >= 0.
            labels: [B] int64, or None for unknown.

        Raises:
            ValueError: a missing or unknown view, or a wrong shape, dtype or device.
        """
        values = check_rows(self.views, features, ids, labels, self.ids.device)
        buffers = [*self.views.values(), self.ids, self.labels]
        rows_of = [value.to(buffer.dtype) for value, buffer in zip(values, buffers)]
        torch.ops.cpr.enqueue_(buffers, self.pointer, self.count, gathered(rows_of))

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Refuse a share of a queue in words, before shapes are compared."""
        if f"{prefix}sizes" in state_dict and f"{prefix}rank" in state_dict:
            raise ValueError(
                f"MultiViewQueue: this is the state of rank {int(state_dict[f'{prefix}rank'])} of a "
                "ShardedMultiViewQueue; join the states of all ranks with reshard(states, None)"
            )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        """Views, size and dtype, for printing the module."""
        views = ", ".join(f"{name}: {buffer.shape[1]}" for name, buffer in self.views.items())
        return f"{{{views}}}, size={self.size}, dtype={self.views[self._names[0]].dtype}"
