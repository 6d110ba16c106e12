"""Lists the ways to mine a long queue that ``python -m bench scale`` compares: each answers and says what it holds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from cpr_kernels import FaissIndex, Schedule, SearchSettings, cascade_topk
from cpr_kernels.mining.faiss.plan import cells_for

from ..harness.memory import cannot_measure, peak_of, release_free_memory, reset_high_water, status_bytes
from ..harness.peer import not_installed
from .data import Bank, Replicas
from .memory import CALL, index_bytes, shares_bytes

HNSW_UP_TO = 100_000
MOST_CELLS = 2048  # more would learn for minutes on two cores
REPLACED = 64  # entries an update replaces: a batch
RANKS = 2  # processes that hold the queue in shares
TIMED = 5


class Method(NamedTuple):
    """One way to mine a long queue."""

    key: str  # on the command line
    name: str
    factory: str = ""  # of FAISS
    effort: int | None = None
    exact: bool = False  # has to give the exact cascade's answer
    ranks: int = 0  # processes that hold the queue in shares; 0: this one holds it

    def why_not(self, entries: int) -> str | None:
        """Returns the sentence why it does not run at this length, memory apart, or None."""
        if self.factory.startswith("HNSW") and entries > HNSW_UP_TO:
            return f"building the graph takes minutes per {HNSW_UP_TO:,} entries on two cores"
        return not_installed("faiss", "faiss-cpu") if self.factory else None

    def needs(self, replicas: Replicas, schedules: Sequence[Schedule]) -> int:
        """Returns bytes beside the queue, at the peak."""
        if self.ranks:
            return shares_bytes(replicas, self.ranks, schedules)
        if self.factory:
            return CALL + index_bytes(self.factory, replicas.size, replicas.base.views["flow"].shape[1])
        return CALL


def methods(entries: int) -> list[Method]:
    """Returns the methods compared on a queue of so many entries, the exact cascade first."""
    cells = min(cells_for(entries), MOST_CELLS)
    return [
        Method("exact", "native, exact", exact=True),
        Method("sharded", f"sharded, {RANKS} processes", exact=True, ranks=RANKS),
        Method("flat", "FAISS Flat", "Flat", exact=True),
        Method("ivf-flat", "FAISS IVF-Flat", f"IVF{cells},Flat"),
        Method("ivf-flat", "FAISS IVF-Flat, 1/128 of the cells", f"IVF{cells},Flat", max(cells // 128, 1)),
        Method("ivf-pq", "FAISS IVF-PQ", f"IVF{cells},PQ16"),
        Method("hnsw", "FAISS HNSW", "HNSW32"),
    ]


class Contender(Protocol):
    """A method at work on one queue."""

    facts: dict[str, Any]  # what it took to build, hold and update

    def mine(self, schedule: Schedule) -> tuple[Tensor, Tensor]:
        """Returns indices [B, k] and scores [B, k] of all queries."""
        ...

    def seconds(self, schedule: Schedule) -> float:
        """Returns the seconds of one call."""
        ...

    def peak(self, schedule: Schedule) -> dict[str, int | None]:
        """Returns `peak_bytes` that a call adds at its peak, and `process_bytes`, resident in its process then."""
        ...

    def report(self) -> dict[str, Any]:
        """Returns more about the last call."""
        ...


def clocked(call: Callable[[], Any]) -> float:
    """Returns seconds of a call."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def in_turn(
    first: float, seconds: Callable[[], float], beside: Callable[[], float] | None = None
) -> tuple[float, float]:
    """Returns median seconds of some calls, fewer where the `first` took long; and how many times as long
    `beside` takes, interleaved calls.
    """
    count = TIMED if first < 1 else 2 if first < 10 else 1
    taken, ratios = [], []
    for _ in range(count):
        taken.append(seconds())
        if beside is not None:
            ratios.append(beside() / taken[-1])
    return median(taken), median(ratios) if ratios else 1.0


def peak_bytes(call: Callable[[], Any]) -> dict[str, int | None]:
    """Returns what a call adds at its peak, and what this process then holds; None where the system does not say."""
    if cannot_measure("cpu"):
        return {"peak_bytes": None, "process_bytes": None}
    added = peak_of(call, "cpu")
    return {"peak_bytes": added, "process_bytes": status_bytes("VmHWM")}


class Exact:
    """The exact cascade: its answers and the peak memory of its first call, per schedule."""

    def __init__(self, bank: Bank, schedules: Sequence[Schedule]) -> None:
        self.bank = bank
        self.facts: dict[str, Any] = {}
        self.answers: dict[Schedule, tuple[Tensor, Tensor]] = {}
        self._peaks: dict[Schedule, dict[str, int | None]] = {}
        for schedule in schedules:
            call = lambda s=schedule: self.answers.update({s: self.mine(s)})  # noqa: E731
            self._peaks[schedule] = peak_bytes(call)
            first = Schedule(schedule[:1])
            if first not in self.answers:
                self.answers[first] = self.mine(first)

    def mine(self, schedule: Schedule) -> tuple[Tensor, Tensor]:
        """Does what :class:`Contender` says."""
        bank = self.bank
        masks = {"query_ids": bank.query_ids, "key_ids": bank.key_ids}
        return cascade_topk(bank.queries, bank.keys, schedule, **masks, backend="native")

    def seconds(self, schedule: Schedule) -> float:
        """Does what :class:`Contender` says."""
        return clocked(lambda: self.mine(schedule))

    def peak(self, schedule: Schedule) -> dict[str, int | None]:
        """Returns that of the first call."""
        return self._peaks[schedule]

    def report(self) -> dict[str, Any]:
        """Returns nothing more."""
        return {}


class Indexed:
    """A FaissIndex over the view that stage 1 judges by."""

    def __init__(self, bank: Bank, factory: str) -> None:
        self.bank = bank
        release_free_memory()
        before, begin = status_bytes("VmRSS"), time.perf_counter()
        measured = cannot_measure("cpu") is None
        if measured:
            reset_high_water()
        self.index = FaissIndex(bank.keys, "flow", factory, key_ids=bank.key_ids)
        built, peak = time.perf_counter() - begin, status_bytes("VmHWM") - before
        release_free_memory()
        replaced = torch.arange(REPLACED)

        def replace() -> float:
            return clocked(lambda: self.index.update(bank.keys, replaced, bank.key_ids))

        update, _ = in_turn(replace(), replace)
        self.facts = {
            "build_s": built, "build_peak_bytes": peak if measured else None, "update_s": update,
            "index_bytes": max(status_bytes("VmRSS") - before, 0),
        }  # fmt: skip

    def try_as_hard_as(self, effort: int | None) -> None:
        """Searches so many cells; None leaves it to the index."""
        self.index.settings = SearchSettings(effort=effort)

    def mine(self, schedule: Schedule) -> tuple[Tensor, Tensor]:
        """Does what :class:`Contender` says."""
        bank = self.bank
        masks = {"query_ids": bank.query_ids, "key_ids": bank.key_ids}
        return cascade_topk(bank.queries, bank.keys, schedule, **masks, backend=self.index)

    def seconds(self, schedule: Schedule) -> float:
        """Does what :class:`Contender` says."""
        return clocked(lambda: self.mine(schedule))

    def peak(self, schedule: Schedule) -> dict[str, int | None]:
        """Does what :class:`Contender` says."""
        return peak_bytes(lambda: self.mine(schedule))

    def report(self) -> dict[str, Any]:
        """Returns queries, searches, how many queries were searched wider or exactly."""
        return self.index.report._asdict()
