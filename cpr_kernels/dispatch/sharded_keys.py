"""Describes a queue that the ranks of a `torch.distributed` group hold in shares, and exchanges messages about it."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# collective calls, numbered for the handshake by their place
OPS = ("enqueue", "cascade_topk", "mil_nce", "mil_nce backward", "labels_at")
_REFUSED, _OP, _ROWS, _FACTS, _FIELDS = 0, 1, 2, 3, 8  # columns of a handshake; facts fill the rest


@dataclass(frozen=True)
class Shard:
    """Describes one rank's share of a queue of N entries: those with global index in [offset, offset + local).

    Global indices are those of one queue that all entries were written to; rank r holds the `sizes[r]` entries
    after those of the ranks below it.
    """

    sizes: tuple[int, ...]  # entries of each rank
    rank: int
    group: Any = None  # a ProcessGroup; None is the default group
    working_bytes: int | None = None  # that mining may take on each rank; None leaves it to the backend

    @property
    def world(self) -> int:
        """Returns the number of ranks that share the queue."""
        return len(self.sizes)

    @property
    def offset(self) -> int:
        """Returns the global index of this rank's first entry."""
        return sum(self.sizes[: self.rank])

    @property
    def local(self) -> int:
        """Returns the number of entries that this rank holds."""
        return self.sizes[self.rank]

    @property
    def total(self) -> int:
        """Returns N, the number of entries of all ranks."""
        return sum(self.sizes)

    def bounds(self) -> list[int]:
        """Returns the first index of each rank's entries, and N: [W + 1]."""
        return [0, *accumulate(self.sizes)]


class ShardedKeys:
    """Is one view of a sharded queue, given to `cascade_topk` or `mil_nce` as keys.

    Attributes:
        rows: [n, D], the entries that this rank holds; the buffer itself, not a copy.
        shard: which entries of the queue they are.
    """

    def __init__(self, rows: Tensor, shard: Shard) -> None:
        if rows.dim() != 2 or rows.shape[0] != shard.local:
            raise ValueError(
                f"ShardedKeys: rows must have shape [{shard.local}, D] on rank {shard.rank}, got {list(rows.shape)}"
            )
        self.rows = rows
        self.shard = shard

    @property
    def shape(self) -> torch.Size:
        """Returns [N, D] of the whole queue."""
        return torch.Size([self.shard.total, self.rows.shape[1]])

    @property
    def dtype(self) -> torch.dtype:
        """Returns the dtype of the rows."""
        return self.rows.dtype

    @property
    def device(self) -> torch.device:
        """Returns the device of the rows."""
        return self.rows.device

    def dim(self) -> int:
        """Returns 2, as for a matrix."""
        return 2

    def __repr__(self) -> str:
        shard = self.shard
        return (
            f"ShardedKeys(entries {shard.offset} to {shard.offset + shard.local} of {shard.total}, "
            f"D={self.rows.shape[1]}, rank {shard.rank} of {shard.world})"
        )


def shard_of(keys: Iterable[Any], op: str) -> Shard | None:
    """Returns the shard that all of `keys` belong to; None where none of them is sharded.

    Raises:
        ValueError: some are sharded and some are not, or they are of different queues.
    """
    shards = [key.shard if isinstance(key, ShardedKeys) else None for key in keys]
    if any(shard != shards[0] for shard in shards):
        raise ValueError(f"{op}: the views of keys must all be of one sharded queue, or all be tensors")
    return shards[0] if shards else None


def why_not_sharded(keys: Any) -> str | None:
    """Returns why a backend of one process cannot use sharded keys; None where the keys are not sharded."""
    if not isinstance(keys, ShardedKeys):
        return None
    shard = keys.shard
    return f"the keys are rank {shard.rank}'s share of a queue over {shard.world} ranks"


def _carriers(group: Any) -> dict[str, str]:
    """Returns the backend of each kind of device whose tensors the group exchanges. gloo's CUDA part has no
    all_to_all.
    """
    named = (part.partition(":")[::2] for part in str(dist.get_backend_config(group)).split(","))
    return {device: backend for device, backend in named if (device, backend) != ("cuda", "gloo")}


def why_not_group(shard: Shard, device_type: str | None = None) -> str | None:
    """Returns why the ranks cannot be reached: no group, one of another size, or one that carries no tensors of the
    device (None: of the CPU or CUDA); else None.
    """
    up = dist.is_available() and dist.is_initialized()
    if shard.world == 1:
        others = dist.get_world_size(shard.group) if up else 1
        if others == 1:
            return None
        return (
            f"the queue was made for this process only, and the group has {others} ranks; make it after "
            "init_process_group, or give it a group of its own"
        )
    if not up:
        return f"the queue is shared by {shard.world} ranks, and no process group is up"
    if dist.get_world_size(shard.group) != shard.world:
        return f"the queue is shared by {shard.world} ranks, and the group has {dist.get_world_size(shard.group)}"
    carriers = _carriers(shard.group)
    if not carriers.keys() & ({"cpu", "cuda"} if device_type is None else {device_type}):
        kind = {"cuda": "CUDA", "cpu": "CPU", None: "CPU or CUDA"}.get(device_type, device_type)
        return f"the group carries no {kind} tensors; make it with 'cpu:gloo,cuda:nccl', or gloo for CPU tensors only"
    return None


def message_device(shard: Shard) -> torch.device:
    """Returns where messages of a few numbers are made: on the CPU, which waits for no kernel, if the group can."""
    if shard.world == 1 or "cpu" in _carriers(shard.group):
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def fingerprint(*facts: Any) -> int:
    """Returns a 32-bit checksum that is equal on all ranks where the facts are."""
    return zlib.crc32(repr(facts).encode())


def exchange(shard: Shard, outgoing: Sequence[Tensor], sizes: Sequence[int], what: str) -> list[Tensor]:
    """Sends `outgoing[r]` to rank r; returns what came from each: 1-d, `sizes[r]` elements of the same dtype.

    Every message has a size that both sides know, so there is one collective and no size is sent.

    Raises:
        RuntimeError: a rank has ended, or did not take part within the group's timeout.
    """
    flat = [part.reshape(-1) for part in outgoing]
    if shard.world == 1:
        return flat
    send = torch.cat(flat).view(torch.uint8)
    width = outgoing[0].element_size()
    received = torch.empty(sum(sizes) * width, dtype=torch.uint8, device=send.device)
    try:
        dist.all_to_all_single(
            received,
            send,
            [n * width for n in sizes],
            [part.numel() * width for part in flat],
            group=shard.group,
        )
    except RuntimeError as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise RuntimeError(
            f"{what}: rank {shard.rank} of {shard.world} lost the group: a rank has ended, or did not make this call "
            f"within the group's timeout; restart the run from its last checkpoint ({first_line})"
        ) from error
    return list(received.view(outgoing[0].dtype).split(list(sizes)))


def handshake(shard: Shard, op: str, rows: int, facts: Sequence[tuple[str, int]]) -> list[int]:
    """Checks that all ranks make the same call; returns the number of rows of each.

    Args:
        shard: of the queue that the call is about.
        op: one of `OPS`.
        rows: of this rank's batch.
        facts: up to five (name, number) that must be the same on all ranks.

    Raises:
        RuntimeError: the ranks cannot be reached, or one refused its arguments, makes another call, or a fact differs.
    """
    if reason := why_not_group(shard):
        raise RuntimeError(f"{op}: {reason}")
    mine = [0, OPS.index(op), rows, *(number for _, number in facts)]
    table = _exchange_handshake(shard, mine, op)
    refused = [r for r in range(shard.world) if table[r][_REFUSED]]
    if refused:
        raise RuntimeError(
            f"{op}: rank {refused[0]} refused its arguments, so no rank can continue; see its error"
        )
    for r, theirs in enumerate(table):
        if theirs[_OP] != mine[_OP]:
            raise RuntimeError(
                f"{op}: rank {r} called {OPS[theirs[_OP]]} while rank {shard.rank} called {op}"
            )
        for i, (name, number) in enumerate(facts, start=_FACTS):
            if theirs[i] != number:
                raise RuntimeError(
                    f"{op}: {name} of rank {r} is not that of rank {shard.rank}; all ranks must agree"
                )
    return [row[_ROWS] for row in table]


def _exchange_handshake(shard: Shard, mine: list[int], op: str) -> list[list[int]]:
    mine = mine + [0] * (_FIELDS - len(mine))
    message = torch.tensor(mine, dtype=torch.int64, device=message_device(shard))
    return [t.tolist() for t in exchange(shard, [message] * shard.world, [_FIELDS] * shard.world, op)]


@contextmanager
def broadcast_errors(shard: Shard | None, op: str) -> Iterator[None]:
    """Sends the refusal to the other ranks where a ValueError is raised inside, as they would wait for this rank."""
    try:
        yield
    except ValueError:
        if shard is not None:
            with suppress(RuntimeError, ValueError):  # the first error is the one to see
                _exchange_handshake(shard, [1, OPS.index(op)], op)
        raise


def gather_rows(shard: Shard, columns: Sequence[Tensor], rows: Sequence[int], what: str) -> list[Tensor]:
    """Returns every rank's rows of each column, in rank order. One message per rank, whatever the dtypes.

    Args:
        shard: of the queue that the call is about.
        columns: [B, ...] each, B the rows of this rank.
        rows: how many each rank has.
        what: names the call in errors.
    """
    packed = pack_rows(columns)  # [B, bytes]
    parts = exchange(shard, [packed] * shard.world, [n * packed.shape[1] for n in rows], what)
    return unpack_rows(torch.cat(parts).view(-1, packed.shape[1]), columns)


def pack_rows(columns: Sequence[Tensor]) -> Tensor:
    """Returns the rows of several columns as bytes: [B, bytes of a row]."""
    count = columns[0].shape[0]
    # a copy, for a single element counts as contiguous with any stride, and a wider view of it is then refused
    whole = [c.detach().clone(memory_format=torch.contiguous_format) for c in columns]
    return torch.cat([c.view(torch.uint8).reshape(count, _row_bytes(c)) for c in whole], dim=1)


def unpack_rows(packed: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Returns the columns of packed rows, with dtype and row shape of `like`."""
    parts = packed.split([_row_bytes(c) for c in like], dim=1)
    return [
        part.clone(memory_format=torch.contiguous_format)
        .view(-1)
        .view(c.dtype)
        .view(packed.shape[0], *c.shape[1:])
        for part, c in zip(parts, like)
    ]


def _row_bytes(column: Tensor) -> int:
    return column.element_size() * int(torch.Size(column.shape[1:]).numel())
