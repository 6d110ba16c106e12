"""Holds a memory queue in shares, one per rank, where no single process could hold it whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..dispatch.graph_break import graph_break
from ..dispatch.sharded_keys import (
    Shard,
    ShardedKeys,
    broadcast_errors,
    exchange,
    fingerprint,
    gather_rows,
    handshake,
    pack_rows,
    unpack_rows,
    why_not_group,
)
from .ids import with_own_sources
from .queue import check_columns, check_rows

_LAYOUT = ("sizes", "rank")  # in a state: entries of each rank, and whose state it is
_SHARED = ("pointer", "count")  # the same on all ranks


def even_sizes(size: int, world: int) -> tuple[int, ...]:
    """Returns N entries over W ranks as evenly as can be, the larger shares first."""
    return tuple(size // world + (rank < size % world) for rank in range(world))


class ShardedMultiViewQueue(nn.Module):
    """Holds a :class:`MultiViewQueue` of N entries in shares, one per rank of a process group.

    `cascade_topk` and `mil_nce` take its `views` and `ids` as they take those of a whole queue, and give every
    rank the result of its own queries over all N entries: mining bit for bit what one process with the whole queue
    and the same enqueues gives. Indices are global: slots of that whole queue, of which rank r holds `sizes[r]`
    after those of the ranks below. Every method and op on it is a collective call: all ranks make it, in the same
    order, each with a batch of its own size.

    Keep it outside a module wrapped in DDP, which would overwrite its buffers with rank 0's. Calls run eagerly, in
    compiled code too (with a break of its graph): on CPU tensors over gloo, on CUDA tensors over NCCL, or both over
    "cpu:gloo,cuda:nccl"; all ranks on one kind of device. On CUDA tensors scores are the reference's, so results equal
    those of one process up to near ties. A rank that ends, or does not make the call within the timeout of the group,
    is a RuntimeError on the others.

    Args:
        views: ``{name: D}``, the size of each view's embedding.
        size: N, entries held by all ranks together.
        sizes: entries of each rank, adding up to N; as even as can be when None. A rank may hold none.
        group: the ranks; None is the default group, or this process only where none is up.
        dtype: storage, float32, bfloat16 or float16.
        working_bytes: memory that mining may take on each rank, the same on all. Queries whose lists do not fit (4
            bytes per entry for each distinct weighting, and 8 more) wait for another sweep of the keys, with exchanges
            of its own. None is 256 MB, or a quarter of what the largest share's features take where that is more.

    Attributes:
        ids: [n] int64, source video of each entry that this rank holds; -1 marks an empty slot.
        labels: [n] int64, class of each entry that this rank holds, -1 where unknown. For metrics only.
        pointer: 0-dim int64, the slot of the whole queue written next.
        count: 0-dim int64, entries of the whole queue filled so far.
        shard: which entries this rank holds.

    Example:
        >>> queue = ShardedMultiViewQueue({"rgb": 128, "flow": 128}, size=10_000_000)  # on every rank
        >>> queue.enqueue({"rgb": rgb, "flow": flow}, ids)
        >>> picks, scores = cascade_topk(queries, queue.views, schedule, query_ids=ids, key_ids=queue.ids)
        >>> loss = mil_nce(q, k, queue.views["rgb"], picks, query_ids=ids, key_ids=queue.ids)
    """

    ids: Tensor
    labels: Tensor
    pointer: Tensor
    count: Tensor
    sizes: Tensor
    rank: Tensor

    def __init__(
        self,
        views: Mapping[str, int],
        size: int,
        *,
        sizes: Sequence[int] | None = None,
        group: Any = None,
        dtype: torch.dtype = torch.float32,
        working_bytes: int | None = None,
    ) -> None:
        super().__init__()
        self._names = check_columns("ShardedMultiViewQueue", views, size, dtype)
        self.size = size
        up = dist.is_available() and dist.is_initialized()
        world, rank = (dist.get_world_size(group), dist.get_rank(group)) if up else (1, 0)
        if rank < 0:
            raise ValueError(
                "ShardedMultiViewQueue: this process is not in the group; make the queue on its ranks only"
            )
        if working_bytes is not None and (working_bytes < 1 or working_bytes != int(working_bytes)):
            raise ValueError(
                f"ShardedMultiViewQueue: working_bytes must be a whole number >= 1, got {working_bytes}"
            )
        self.shard = Shard(_checked_sizes(size, sizes, world), rank, group, working_bytes)
        reason = why_not_group(self.shard)
        if reason:
            raise ValueError(f"ShardedMultiViewQueue: {reason}")
        local = self.shard.local
        for name, dim in views.items():
            self.register_buffer(f"view_{name}", torch.zeros(local, dim, dtype=dtype))
        self.register_buffer("ids", torch.full((local,), -1, dtype=torch.int64))
        self.register_buffer("labels", torch.full((local,), -1, dtype=torch.int64))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("sizes", torch.tensor(self.shard.sizes))
        self.register_buffer("rank", torch.tensor(rank))

    @property
    def views(self) -> dict[str, ShardedKeys]:
        """Returns ``{view: keys}`` for `cascade_topk` and `mil_nce`; `.rows` are the entries that this rank holds."""
        return {name: ShardedKeys(self.get_buffer(f"view_{name}"), self.shard) for name in self._names}

    @graph_break
    @torch.no_grad()
    def enqueue(
        self, features: Mapping[str, Tensor], ids: Tensor | None = None, labels: Tensor | None = None
    ) -> None:
        """Writes every rank's batch over the oldest entries, in rank order; batches may differ in size.

        As one :class:`MultiViewQueue` that is given all batches at once: of more than N rows the last N stay. A
        row is sent to the one rank that holds its slot.

        Args:
            features: ``{view: [B, D]}``, every view of the queue; converted to the queue's dtype.
            ids: [B] int64, source video of each row, >= 0; None: each row is its own source.
            labels: [B] int64, or None for unknown.

        Raises:
            ValueError: a missing or unknown view, a wrong shape, dtype or device, or a negative id.
            RuntimeError: a rank has ended, refused its arguments, or its queue is out of step.
        """
        shard = self.shard
        buffers = {name: self.get_buffer(f"view_{name}") for name in self._names}
        with broadcast_errors(shard, "enqueue"):
            values = check_rows(buffers, features, ids, labels, self.ids.device)
        start = int(self.pointer)
        facts = [
            ("the layout of the queue", fingerprint(shard.sizes, _dims(buffers))),
            ("the pointer", start),
        ]
        batch = handshake(shard, "enqueue", values[0].shape[0], facts)
        targets = [*buffers.values(), self.ids, self.labels]
        first = sum(batch[: shard.rank])
        mine = self._slots(range(first, first + batch[shard.rank]), start, sum(batch))
        values[-2] = with_own_sources(values[-2], mine)
        rows = [value.to(buffer.dtype) for value, buffer in zip(values, targets)]
        holders = torch.bucketize(mine, mine.new_tensor(shard.bounds()[1:]), right=True)
        packed = pack_rows(rows)
        outgoing = [packed[(holders == r) & (mine >= 0)] for r in range(shard.world)]
        slots, arriving = self._arriving(batch, start)
        parts = exchange(shard, outgoing, [n * packed.shape[1] for n in arriving], "enqueue")
        for buffer, came in zip(targets, unpack_rows(torch.cat(parts).view(-1, packed.shape[1]), rows)):
            buffer.index_copy_(0, slots, came)
        self.pointer.fill_((start + sum(batch)) % self.size)
        self.count.fill_(min(int(self.count) + sum(batch), self.size))

    def _slots(self, rows: range, start: int, total: int) -> Tensor:
        """Returns the slot of the whole queue for each row of all batches; -1 where a later row overwrites it."""
        number = torch.arange(rows.start, rows.stop, device=self.ids.device)
        return torch.where(number >= total - self.size, (start + number) % self.size, -1)

    def _arriving(self, batch: Sequence[int], start: int) -> tuple[Tensor, list[int]]:
        """Returns the local slots of arriving rows, in order of arrival, and how many come from each rank."""
        slots, arriving, first = [], [], 0
        for rows in batch:
            local = self._slots(range(first, first + rows), start, sum(batch)) - self.shard.offset
            here = local[(local >= 0) & (local < self.shard.local)]
            slots.append(here)
            arriving.append(here.shape[0])
            first += rows
        return torch.cat(slots), arriving

    @graph_break
    def labels_at(self, indices: Tensor) -> Tensor:
        """Returns the labels of entries that any rank holds, -1 where an index is -1: for the mining metrics.

        Args:
            indices: [B, k] int64 global indices, as `cascade_topk` gives them; each rank passes its own.

        Returns:
            [B, k] int64.
        """
        shard = self.shard
        with broadcast_errors(shard, "labels_at"):
            if (
                not isinstance(indices, Tensor)
                or indices.dtype != torch.int64
                or bool(((indices < -1) | (indices >= self.size)).any())
            ):
                raise ValueError(f"labels_at: indices must be int64, -1 or below N={self.size}")
        flat = indices.reshape(-1)
        batch = handshake(
            shard, "labels_at", flat.shape[0], [("the layout of the queue", fingerprint(shard.sizes))]
        )
        wanted = gather_rows(shard, [flat], batch, "labels_at")[0] - shard.offset
        held = (wanted >= 0) & (wanted < shard.local)
        found = torch.full_like(wanted, -1)
        found[held] = self.labels[wanted[held]]
        answers = exchange(shard, found.split(batch), [flat.shape[0]] * shard.world, "labels_at")
        return torch.stack(answers).amax(dim=0).view(indices.shape)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Refuses a state of another layout before shapes are compared."""
        shard = self.shard
        if f"{prefix}sizes" not in state_dict and f"{prefix}ids" in state_dict:
            raise ValueError(
                "ShardedMultiViewQueue: this is the state of a whole queue; "
                f"cut it up with reshard([state], {list(shard.sizes)}, rank={shard.rank})"
            )
        if f"{prefix}sizes" in state_dict:
            sizes, rank = state_dict[f"{prefix}sizes"].tolist(), int(state_dict[f"{prefix}rank"])
            if tuple(sizes) != shard.sizes or rank != shard.rank:
                raise ValueError(
                    f"ShardedMultiViewQueue: the state is rank {rank}'s of {len(sizes)} (entries {sizes}), and this is "
                    f"rank {shard.rank} of {shard.world} (entries {list(shard.sizes)}); "
                    "cut the states of all ranks up anew with reshard(states, sizes, rank)"
                )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        """Returns views, size, share and dtype, for printing the module."""
        views = {name: self.get_buffer(f"view_{name}") for name in self._names}
        dims = ", ".join(f"{name}: {dim}" for name, dim in zip(views, _dims(views)))
        shard, dtype = self.shard, views[self._names[0]].dtype
        return f"{{{dims}}}, size={self.size}, rank {shard.rank} of {shard.world} holds {shard.local}, dtype={dtype}"


def _dims(views: Mapping[str, Tensor]) -> list[int]:
    return [view.shape[1] for view in views.values()]


def _checked_sizes(size: int, sizes: Sequence[int] | None, world: int) -> tuple[int, ...]:
    if sizes is None:
        return even_sizes(size, world)
    if len(sizes) != world or sum(sizes) != size or min(sizes) < 0:
        raise ValueError(
            f"ShardedMultiViewQueue: sizes must hold one count >= 0 for each of {world} ranks, {size} together, "
            f"got {list(sizes)}"
        )
    return tuple(int(n) for n in sizes)


def reshard(
    states: Sequence[Mapping[str, Tensor]], sizes: Sequence[int] | None, rank: int = 0
) -> dict[str, Tensor]:
    """Returns the state of one rank's share under another layout, from the states of all old ranks.

    Entries keep their global index, so the queue continues unchanged. Only the entries of the new
    share are copied: with states that `torch.load(..., mmap=True)` gave, memory stays at one share.

    Args:
        states: `state_dict()` of every old rank, in any order; or the one of a `MultiViewQueue`.
        sizes: entries of each new rank; None gives the state of a whole `MultiViewQueue`.
        rank: the new rank whose state is returned.

    Returns:
        What `ShardedMultiViewQueue.load_state_dict` (or `MultiViewQueue.load_state_dict`) takes.

    Raises:
        ValueError: a missing or repeated rank, states of different queues or moments, or sizes that do not add up.
    """
    old = _in_rank_order(states)
    if sizes is not None and not isinstance(sizes, Sequence):
        raise ValueError(f"reshard: sizes must hold the entries of each new rank, or be None, got {sizes!r}")
    have = [state["ids"].shape[0] for state in old]
    total = sum(have)
    new = (total,) if sizes is None else tuple(int(n) for n in sizes)
    if sum(new) != total or min(new) < 0:
        raise ValueError(f"reshard: sizes must add up to the queue's {total} entries, got {list(new)}")
    if not 0 <= rank < len(new):
        raise ValueError(f"reshard: rank must be 0 to {len(new) - 1}, got {rank}")
    begin = sum(new[:rank])
    end, starts = begin + new[rank], [sum(have[:r]) for r in range(len(have))]
    made = {}
    for name, value in old[0].items():
        if name in _LAYOUT:
            continue
        if name in _SHARED:
            made[name] = value.clone()
            continue
        parts = [
            state[name][max(begin - start, 0) : max(end - start, 0)] for state, start in zip(old, starts)
        ]
        made[name] = torch.cat(parts)
    if sizes is not None:
        made |= {"sizes": torch.tensor(new), "rank": torch.tensor(rank)}
    return made


def _in_rank_order(states: Sequence[Mapping[str, Tensor]]) -> list[Mapping[str, Tensor]]:
    if not states:
        raise ValueError("reshard: states is empty; give the state of every old rank")
    if isinstance(states, Mapping):
        raise ValueError(
            "reshard: states must be a list, the state of every old rank; got one state: [state]"
        )
    if missing := [name for state in states for name in ("ids", *_SHARED) if name not in state]:
        raise ValueError(
            f"reshard: a state lacks {missing[0]!r}; give what a queue's own state_dict() holds, without the prefix of "
            "the module around it"
        )
    if len(states) == 1 and "sizes" not in states[0]:
        return list(states)
    if any("sizes" not in state for state in states):
        raise ValueError(
            "reshard: states must be those of a ShardedMultiViewQueue, or the one of a MultiViewQueue"
        )
    sizes = states[0]["sizes"].tolist()
    ranks = sorted(int(state["rank"]) for state in states)
    if ranks != list(range(len(sizes))):
        raise ValueError(f"reshard: the queue had {len(sizes)} ranks, and the states are of ranks {ranks}")
    for state in states:
        agreements = [state["sizes"].tolist() == sizes, *(bool(state[n] == states[0][n]) for n in _SHARED)]
        if not all(agreements):
            raise ValueError(
                f"reshard: the states of ranks {int(states[0]['rank'])} and {int(state['rank'])} are of different "
                "queues or moments; save them together"
            )
    return sorted(states, key=lambda state: int(state["rank"]))
