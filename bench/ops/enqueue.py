"""Defines the op `enqueue`: a batch of every view written over the oldest entries, with ids and labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cpr_kernels import MultiViewQueue

from ..harness.inputs import make_table
from ..harness.peer import OURS, Call, Peer, Settings
from ..harness.workloads import Workload

__all__ = ["NAME", "EnqueueGate", "MoCoQueue", "Ring", "flops", "gate", "least_bytes", "make_inputs", "peers"]

NAME = "enqueue"
CHECKED = 3  # batches: the gate writes them all; timed calls use them one after the other

SLICES = "MoCo-style slice writes"
INDEX_COPY = "torch index_copy_"


class Ring(NamedTuple):
    """A full queue, one batch before its end, and batches to write."""

    workload: Workload
    tables: dict[str, Tensor]  # {view: [N, D]}
    ids: Tensor  # [N] int64
    pointer: int
    batches: list[dict[str, Tensor]]  # {view: [B, D]}, used one after the other
    new_ids: list[Tensor]  # [B] int64 each


def make_ring(workload: Workload, device: str, batches: int = CHECKED) -> Ring:
    """Returns a full queue whose pointer is one batch before the end, so that the second write wraps.

    The batches' ids are those of entries a third of the queue further on: siblings exist, and as many batches
    as fill the queue leave it with every id once.
    """
    table = make_table(workload, device)
    count, size = workload.num_queries, workload.num_keys
    pointer = max(size - count, 0)
    generator = torch.Generator().manual_seed(4)
    rows = {
        view: normalize(torch.randn(batches * count, workload.dim, generator=generator), dim=1).to(device)
        for view in workload.view_names
    }
    ids = (torch.arange(pointer, pointer + batches * count, device=device) + size // 3) % size
    parts = [slice(i * count, (i + 1) * count) for i in range(batches)]
    made = [{view: features[part] for view, features in rows.items()} for part in parts]
    return Ring(
        workload, table.keys, torch.arange(size, device=device), pointer, made, [ids[part] for part in parts]
    )


def flops(workload: Workload) -> float:
    """Returns 0: nothing is computed."""
    return 0.0


def least_bytes(workload: Workload) -> float:
    """Returns those of the batch, read once and written once, every view, with id and label."""
    return 2.0 * workload.num_queries * (4 * workload.dim * workload.views + 16)


def make_inputs(workload: Workload, settings: Settings) -> Ring:
    """Returns a full queue and some batches."""
    return make_ring(workload, settings.device)


def gate(workload: Workload, settings: Settings) -> EnqueueGate:
    """Returns right answers for the workload."""
    return EnqueueGate(make_ring(workload, settings.device))


def full_queue(ring: Ring) -> MultiViewQueue:
    """Returns the package's queue in the ring's state."""
    device = ring.ids.device
    queue = MultiViewQueue(
        {view: t.shape[1] for view, t in ring.tables.items()}, len(ring.ids), device=device
    )
    for view, table in ring.tables.items():
        queue.views[view].copy_(table)
    queue.ids.copy_(ring.ids)
    queue.pointer.fill_(ring.pointer)
    queue.count.fill_(len(ring.ids))
    return queue


def _batch_after_batch(
    ring: Ring, queue: MultiViewQueue | MoCoQueue, tables: Callable[[], dict[str, Tensor]]
) -> Call:
    """Enqueues the ring's next batch at each call, and returns the queue's `tables` and ids."""
    turn, labels = 0, torch.zeros_like(ring.new_ids[0])

    def call() -> dict[str, Tensor]:
        nonlocal turn
        queue.enqueue(ring.batches[turn % len(ring.batches)], ring.new_ids[turn % len(ring.batches)], labels)
        turn += 1
        return {**tables(), "ids": queue.ids}

    return call


def _prepare_ours(ring: Ring) -> Call:
    queue = full_queue(ring)
    return _batch_after_batch(ring, queue, lambda: queue.views)


class MoCoQueue:
    """A queue as MoCo, CoCLR and CPR keep it: views [D, N], slice writes, N divisible by B."""

    def __init__(self, ring: Ring) -> None:
        self.views = {view: table.T.contiguous() for view, table in ring.tables.items()}  # [D, N] each
        self.ids = ring.ids.clone()
        self.labels = torch.zeros_like(ring.ids)
        self.pointer = torch.tensor([ring.pointer], device=ring.ids.device)

    def enqueue(self, features: dict[str, Tensor], ids: Tensor, labels: Tensor) -> None:
        """Writes a batch at the pointer and moves it."""
        count, size = len(ids), len(self.ids)
        begin = int(self.pointer)  # waits for the device, as published
        for view, rows in features.items():
            self.views[view][:, begin : begin + count] = rows.T
        self.ids[begin : begin + count] = ids
        self.labels[begin : begin + count] = labels
        self.pointer[0] = (begin + count) % size


def _prepare_slices(ring: Ring) -> Call:
    queue = MoCoQueue(ring)
    return _batch_after_batch(ring, queue, lambda: {view: columns.T for view, columns in queue.views.items()})


def _prepare_index_copy(ring: Ring) -> Call:
    tables = {view: table.clone() for view, table in ring.tables.items()}
    stored_ids, stored_labels = ring.ids.clone(), torch.zeros_like(ring.ids)
    labels = torch.zeros_like(ring.new_ids[0])
    count, size = len(labels), len(stored_ids)
    pointer, turn = torch.tensor(ring.pointer, device=ring.ids.device), 0

    def call() -> dict[str, Tensor]:
        nonlocal turn
        slots = (pointer + torch.arange(count, device=pointer.device)) % size
        for view, rows in ring.batches[turn % len(ring.batches)].items():
            tables[view].index_copy_(0, slots, rows)
        stored_ids.index_copy_(0, slots, ring.new_ids[turn % len(ring.batches)])
        stored_labels.index_copy_(0, slots, labels)
        pointer.add_(count).remainder_(size)
        turn += 1
        return {**tables, "ids": stored_ids}

    return call


def divides(workload: Workload) -> str | None:
    """Returns why slice writes cannot serve: they never wrap, so the batch must divide the queue."""
    if workload.num_keys % workload.num_queries:
        return f"needs N divisible by B, and {workload.num_keys} is not by {workload.num_queries}"
    return None


def peers(settings: Settings) -> list[Peer]:
    """Returns every peer of enqueue, ours first."""
    return [
        Peer(OURS, _prepare_ours, graphable=False),  # batches take turns, which a graph would freeze
        Peer(SLICES, _prepare_slices, divides, graphable=False),
        Peer(INDEX_COPY, _prepare_index_copy, graphable=False),
    ]


class EnqueueGate:
    """The queue after three writes across its end, written entry by entry."""

    def __init__(self, ring: Ring) -> None:
        self.inputs = ring
        self.expected = {view: table.clone() for view, table in ring.tables.items()}
        self.expected["ids"] = ring.ids.clone()
        slot = ring.pointer
        for rows, ids in zip(ring.batches[:CHECKED], ring.new_ids):
            for i in range(len(ids)):
                for view, features in rows.items():
                    self.expected[view][slot] = features[i]
                self.expected["ids"][slot] = ids[i]
                slot = (slot + 1) % len(ring.ids)

    def why_wrong(self, peer: Peer) -> str | None:
        """Runs the peer on the gate's inputs: the sentence why its answer is wrong, or None."""
        call = peer.prepare(self.inputs)
        for _ in range(CHECKED):
            state = call()
        for name, expected in self.expected.items():
            wrong = (state[name] != expected).reshape(len(expected), -1).any(dim=1)
            if wrong.any():
                return f"{name} differs from the expected queue in {int(wrong.sum())} of {len(wrong)} entries"
        return None
