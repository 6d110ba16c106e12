"""Estimates what a scale run takes of the machine's memory, before it takes it: nothing here ever swaps."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from cpr_kernels import Schedule
from cpr_kernels.mining.faiss.store import IN_BLOCKS, TRAIN_ROWS_A_CELL
from cpr_kernels.mining.sharded import KEYS_A_LIST_BYTE, WORKING_BYTES
from cpr_kernels.mining.sharded_lists import NativeLists

from ..harness.memory import status_bytes
from ..harness.text import size
from .data import BLOCK, QUERIES, Replicas

SHARE = 0.9  # of the free memory that may be taken
CALL = 48 << 20  # of an exact call, or a search, whatever N
PROCESS = 320 << 20  # of a rank that holds nothing: Python, torch and what its first calls load
ENTRY = 16  # bytes of an entry's id and label
SLOTS = 48  # bytes of an entry in a FaissIndex beside its vector: ids, labels and slots, and copies while it is built
HASHED = 48  # bytes of an entry in FAISS's table from entries to places, which IVF needs to replace them
SPARE = 1.6  # lists of cells grow by doubling; on average so much of what they hold


def available_bytes() -> int:
    """Returns memory that new processes may take: the system's, or what is left of this container's.

    Raises:
        ValueError: the system does not say.
    """
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError as error:
        raise ValueError(
            "this system does not say how much memory is free (no /proc/meminfo); give --memory GB"
        ) from error
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    return min(free, _left_of_container(Path("/sys/fs/cgroup"), free))


def _left_of_container(folder: Path, otherwise: int) -> int:
    try:
        most, taken = (int((folder / f"memory.{name}").read_text()) for name in ("max", "current"))
        cached = re.search(r"^inactive_file (\d+)", (folder / "memory.stat").read_text(), re.MULTILINE)
    except (OSError, ValueError):  # no such file, or "max": no limit
        return otherwise
    return most - taken + (int(cached[1]) if cached else 0)


class Memory:
    """How much a run may take, now: nine tenths of what is free, and no more than `limit` in all since it began."""

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self._before = status_bytes("VmRSS")

    def room(self) -> int:
        """Returns the bytes that may be taken."""
        if self.limit is None:
            return int(SHARE * available_bytes())
        left = self.limit - max(status_bytes("VmRSS") - self._before, 0)
        with suppress(ValueError):  # a system that does not say: the limit is all there is
            left = min(left, int(SHARE * available_bytes()))
        return left


def queue_bytes(replicas: Replicas) -> int:
    """Returns the bytes of the whole queue: features, ids and labels."""
    return replicas.size * (replicas.numbers * replicas.dtype.itemsize + ENTRY)


def block_bytes(replicas: Replicas) -> int:
    """Returns the bytes of the rows made at a time: float32 noise, drawn, cut, normalised, and the rows
    themselves; twice, for the heap keeps some of what was freed.
    """
    return (
        2 * BLOCK * 4 * (4 * max(rows.shape[1] for rows in replicas.base.views.values()) + replicas.numbers)
    )


def index_bytes(factory: str, entries: int, dim: int) -> int:
    """Returns the bytes of a FaissIndex over one view of `dim` numbers, at the peak of its building."""
    vectors = 4 * dim
    fixed = (
        8 * min(IN_BLOCKS, entries) * vectors
    )  # rows at a time, with copies and what the heap keeps of them
    if factory == "Flat":
        return entries * (vectors + SLOTS) + fixed
    if factory.startswith("HNSW"):
        links = 2 * 4 * int(factory[4:])
        return entries * (2 * (vectors + links) + SLOTS) + fixed
    cells, code = re.fullmatch(r"IVF(\d+),(Flat|PQ\d+)", factory).groups()  # type: ignore[union-attr]
    learnt = 3 * min(TRAIN_ROWS_A_CELL * max(int(cells), 256), entries) * vectors
    held = SPARE * ((vectors if code == "Flat" else int(code[2:])) + 8)
    return int(entries * (held + HASHED + SLOTS)) + fixed + learnt


def shares_bytes(replicas: Replicas, ranks: int, schedules: Sequence[Schedule]) -> int:
    """Returns the bytes of processes that hold the queue in shares, all together, at the peak of filling them
    or of a call.
    """
    share = -(-replicas.size // ranks)
    features = share * replicas.numbers * replicas.dtype.itemsize
    judges = max((len({str(stage.view) for stage in schedule}) for schedule in schedules), default=1)
    lists = QUERIES * NativeLists.query_bytes(share, judges)
    sent = 6 * min(BLOCK, share) * (replicas.numbers * replicas.dtype.itemsize + ENTRY)
    filling = block_bytes(replicas) + sent
    calling = min(lists, max(WORKING_BYTES, features // KEYS_A_LIST_BYTE)) + CALL
    return queue_bytes(replicas) + ranks * (PROCESS + max(filling, calling))


def why_not_queue(replicas: Replicas, room: int) -> str | None:
    """Returns why a queue is too long for `room` bytes, with the length that would fit; None where it fits."""
    fixed = block_bytes(replicas) + CALL
    needed = queue_bytes(replicas) + fixed
    if needed <= room:
        return None
    most = max(room - fixed, 0) * replicas.size // queue_bytes(replicas)
    digits = 10 ** max(len(str(most)) - 2, 0)
    fits = f"about N={most // digits * digits:,} would fit" if most >= 1000 else "no queue fits"
    return f"the queue alone needs {size(needed)}, and {size(room)} may be taken; {fits}"


def why_not(needed: int, room: int) -> str | None:
    """Returns why something is left out that needs so much beside the queue; None where it fits."""
    if needed <= room:
        return None
    return f"it needs about {size(needed)} beside the queue, and {size(max(room, 0))} may be taken"
