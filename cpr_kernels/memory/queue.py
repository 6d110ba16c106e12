"""The memory queue: past keys of every view, their source ids and labels, oldest replaced first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..dispatch.tensor_checks import FEATURE_DTYPES, check_ids, check_one_kind, check_views
from .enqueue import write
from .ids import check_filled, with_own_sources


def in_a_group() -> bool:
    """Whether other ranks take part."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def gathered(columns: list[Tensor]) -> list[Tensor]:
    """Each column's rows of every rank, in rank order; as they are without a process group.

    Ranks may have different numbers of rows. The numbers are exchanged first: between CPUs where the group can
    (a group of gloo, or of gloo and NCCL), else by the device, which is waited for.
    """
    if not in_a_group():
        return columns
    sizes = _rows_of_ranks(columns[0])
    longest = max(sizes)
    whole = []
    for rows in columns:
        sent = rows.contiguous()
        if len(rows) < longest:
            sent = torch.cat([sent, sent.new_zeros(longest - len(rows), *rows.shape[1:])])
        parts = [torch.empty_like(sent) for _ in sizes]
        dist.all_gather(parts, sent)
        whole.append(torch.cat([part[:size] for part, size in zip(parts, sizes)]))
    return whole


def _rows_of_ranks(rows: Tensor) -> list[int]:
    device = torch.device("cpu") if "cpu:" in dist.get_backend_config() else rows.device
    size = torch.tensor([len(rows)], device=device)
    sizes = [torch.empty_like(size) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, size)
    return [int(size) for size in sizes]


def check_columns(owner: str, views: Mapping[str, int], size: int, dtype: torch.dtype) -> tuple[str, ...]:
    """The names of a queue's views, once views, size and dtype make sense.

    Raises:
        ValueError: naming the argument, what was expected and what came.
    """
    check_views(owner, views)
    if size < 1:
        raise ValueError(f"{owner}: size must be >= 1, got {size}")
    if dtype not in FEATURE_DTYPES:
        raise ValueError(f"{owner}: dtype must be float32, bfloat16, float16 or float64, got {dtype}")
    return tuple(views)


def check_rows(
    views: Mapping[str, Tensor],
    features: Mapping[str, Tensor],
    ids: Tensor | None,
    labels: Tensor | None,
    device: torch.device,
) -> list[Tensor]:
    """A batch to enqueue, column by column: each view of the queue in order, ids and labels (-1 where not given).

    Raises:
        ValueError: a missing or unknown view, a wrong shape, dtype or device, or a negative id.
    """
    if set(features) != set(views):
        raise ValueError(f"enqueue: features must hold the views {list(views)}, got {list(features)}")
    check_one_kind("enqueue", (*views.values(), *features.values(), ids, labels))
    first = features[next(iter(views))]
    rows = first.shape[0] if first.dim() else 0
    unknown = torch.full((rows,), -1, dtype=torch.int64, device=device)
    if ids is None:
        ids = unknown
    else:
        check_ids("enqueue", "ids", ids, rows, "row", device)
        check_filled("enqueue", ids)
    labels = unknown if labels is None else labels
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
        buffers = cast(
            dict[str, Tensor], self._buffers
        )  # at every step: an attribute costs three times as much
        return {name: buffers[f"view_{name}"] for name in self._names}

    def __len__(self) -> int:
        """Entries filled so far, at most N; waits for the device."""
        return int(self.count)

    def __bool__(self) -> bool:
        """True, as of every module, also of an empty queue."""
        return True

    @property
    def is_full(self) -> bool:
        """Whether every slot is filled; waits for the device."""
        return len(self) == self.size

    @torch.no_grad()
    def reset(self) -> None:
        """Empties the queue: zeros, ids and labels -1, the pointer at the first slot."""
        for buffer in (*self.views.values(), self.pointer, self.count):
            buffer.zero_()
        for buffer in (self.ids, self.labels):
            buffer.fill_(-1)

    def reset_parameters(self) -> None:
        """As :meth:`reset`: what `torch` calls to fill a module after ``to_empty``."""
        self.reset()

    @torch.no_grad()
    def enqueue(
        self, features: Mapping[str, Tensor], ids: Tensor | None = None, labels: Tensor | None = None
    ) -> None:
        """Write a batch over the oldest entries; any batch size, wrapping at the end.

        With a process group up, every rank must call this, with any number of rows (also none); all ranks write all
        rows in rank order. Of a batch larger than the queue the last N rows stay. The device is not waited for,
        unless a process group of NCCL without gloo has to tell its ranks' numbers of rows.

        Args:
            features: ``{view: [B, D]}``, every view of the queue; converted to the queue's dtype.
            ids: [B] int64, source video of each row, >= 0 (:func:`source_ids` makes them of names); None: each row is
                its own source, with an id of 2**62 or more.
            labels: [B] int64, or None for unknown.

        Raises:
            ValueError: a missing or unknown view, a wrong shape, dtype or device, or a negative id (an error of the
                device on CUDA).
        """
        self.enqueue_beside(features, ids, labels)

    @torch.no_grad()
    def enqueue_beside(
        self,
        features: Mapping[str, Tensor],
        ids: Tensor | None = None,
        labels: Tensor | None = None,
        more: Sequence[tuple[Tensor, Tensor]] = (),
    ) -> None:
        """As :meth:`enqueue`, and writes more rows [B, ...] to the same slots of other tensors [N, ...].

        Args:
            features: as :meth:`enqueue`.
            ids: as :meth:`enqueue`.
            labels: as :meth:`enqueue`.
            more: pairs of a tensor that is written to, and the batch's rows for it.

        Raises:
            ValueError: as :meth:`enqueue`, or rows that do not fit their tensor.
        """
        views, own = self.views, cast(dict[str, Tensor], self._buffers)
        values = check_rows(views, features, ids, labels, own["ids"].device)
        buffers = [*views.values(), own["ids"], own["labels"]]
        for buffer, rows in more:
            buffers.append(buffer)
            values.append(rows)
        columns = gathered(
            [
                value if value.dtype == buffer.dtype else value.to(buffer.dtype)
                for value, buffer in zip(values, buffers)
            ]
        )
        if ids is None or in_a_group():  # another rank may have left them out
            of_ids = len(views)
            slots = (
                self.pointer + torch.arange(columns[of_ids].shape[0], device=self.ids.device)
            ) % self.size
            columns[of_ids] = with_own_sources(columns[of_ids], slots)
        write(buffers, own["pointer"], own["count"], columns)

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
