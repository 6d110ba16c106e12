"""Runs a queue in shares for ``python -m bench scale``: gloo processes on this machine that run the same commands.

Every process makes its part of the rows and gives them to `enqueue`, and mines its part of the queries; none ever holds
more than its share of the queue. They wait on a pipe between calls, so that calls of others can be interleaved.
"""

from __future__ import annotations

import tempfile
from datetime import timedelta
from statistics import median
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cpr_kernels import Schedule, ShardedMultiViewQueue, cascade_topk
from cpr_kernels.processes import process_context

from ..harness.memory import status_bytes
from .data import BLOCK, QUERIES, Base, Replicas
from .methods import REPLACED, TIMED, clocked, peak_bytes

PATIENCE = timedelta(minutes=10)  # for a rank that does not take part


def part_of(count: int, rank: int, ranks: int) -> slice:
    """Returns a rank's part of so many things, in order."""
    return slice(count * rank // ranks, count * (rank + 1) // ranks)


class _Rank:
    """One process: its share, and the commands it runs."""

    def __init__(self, rank: int, ranks: int, replicas: Replicas) -> None:
        self.rank, self.ranks, self.replicas = rank, ranks, replicas
        dims = {view: rows.shape[1] for view, rows in replicas.base.views.items()}
        self.queue = ShardedMultiViewQueue(dims, replicas.size, dtype=replicas.dtype)
        chosen, part = replicas.queries(), part_of(QUERIES, rank, ranks)
        self.queries = {view: rows[part] for view, rows in chosen.views.items()}
        self.ids = chosen.ids[part]

    def _enqueue(self, first: int, each: int) -> float:
        """Returns seconds of writing the next entries, `each` from every rank: rank order is the order of the slots."""
        low = min(first + self.rank * each, self.replicas.size)
        rows = self.replicas.rows(low, min(low + each, self.replicas.size))
        dist.barrier()  # nobody waits for rows that another still makes
        return clocked(lambda: self.queue.enqueue(*rows))

    def fill(self) -> dict[str, Any]:
        """Writes all entries; says what the share takes."""
        steps = range(0, self.replicas.size, self.ranks * BLOCK)
        taken = sum(self._enqueue(first, BLOCK) for first in steps)
        held = sum(buffer.numel() * buffer.element_size() for buffer in self.queue.buffers())
        return {"build_s": taken, "index_bytes": held, "build_peak_bytes": status_bytes("VmHWM")}

    def replace(self) -> float:
        """Returns seconds of replacing a batch, by the same rows: the queue stays what it is."""
        return median(self._enqueue(turn * REPLACED, REPLACED // self.ranks) for turn in range(TIMED))

    def _mine(self, schedule: Schedule) -> tuple[Tensor, Tensor]:
        queue = self.queue
        return cascade_topk(self.queries, queue.views, schedule, query_ids=self.ids, key_ids=queue.ids)

    def mine(self, schedule: Schedule) -> tuple[Any, Any]:
        """Returns what this rank's queries find, as arrays."""
        indices, scores = self._mine(schedule)
        return indices.numpy(), scores.numpy()

    def seconds(self, schedule: Schedule) -> float:
        """Returns the seconds of one call that all ranks begin together."""
        dist.barrier()
        return clocked(lambda: self._mine(schedule))

    def peak(self, schedule: Schedule) -> dict[str, int | None]:
        """Returns those of one call, and of the process in it."""
        dist.barrier()
        return peak_bytes(lambda: self._mine(schedule))


def _serve(pipe: Any, rank: int, ranks: int, base: Base, size: int, threads: int, folder: str) -> None:
    """Runs a rank's process: it answers what comes through the pipe until that closes."""
    torch.set_num_threads(threads)
    try:
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks, timeout=PATIENCE
        )
        me = _Rank(rank, ranks, Replicas(base, size))
        pipe.send((True, None))
        while True:
            name, arguments = pipe.recv()
            pipe.send((True, getattr(me, name)(*arguments)))
    except (EOFError, KeyboardInterrupt):
        return  # the command to end
    except Exception as error:
        pipe.send((False, f"{type(error).__name__}: {error}"))


class Shares:
    """Processes that hold a queue in shares, each with its part of the threads; a :class:`~.scale_methods.Contender`.

    Raises:
        RuntimeError: a process failed or was ended; which one, and what it said.
    """

    def __init__(self, base: Base, size: int, ranks: int, threads: int) -> None:
        self._folder = tempfile.TemporaryDirectory()
        context = process_context(__name__)
        self._pipes, self._processes = [], []
        each = max(threads // ranks, 1)
        for rank in range(ranks):
            here, there = context.Pipe()
            given = (there, rank, ranks, base, size, each, self._folder.name)
            process = context.Process(target=_serve, args=given, daemon=True)
            process.start()
            there.close()
            self._pipes.append(here)
            self._processes.append(process)
        try:
            self._answers()
            filled = self._ask("fill")
            self.facts: dict[str, Any] = {
                "build_s": max(rank["build_s"] for rank in filled),
                "index_bytes": sum(rank["index_bytes"] for rank in filled),
                "build_peak_bytes": sum(rank["build_peak_bytes"] for rank in filled),
                "update_s": max(self._ask("replace")),
                "ranks": ranks, "rank_threads": each,
            }  # fmt: skip
        except BaseException:
            self.close()
            raise

    def _ask(self, name: str, *arguments: Any) -> list[Any]:
        for rank, pipe in enumerate(self._pipes):
            try:
                pipe.send((name, arguments))
            except OSError as error:
                raise RuntimeError(self._ended(rank)) from error
        return self._answers()

    def _answers(self) -> list[Any]:
        answers: list[Any] = []
        failed: list[str] = []
        for rank, pipe in enumerate(self._pipes):
            try:
                good, answer = pipe.recv()
            except (EOFError, OSError):
                failed.insert(0, self._ended(rank))  # why the others failed
                continue
            (answers if good else failed).append(answer if good else f"process {rank}: {answer}")
        if failed:
            raise RuntimeError(failed[0])
        return answers

    def _ended(self, rank: int) -> str:
        self._processes[rank].join(5)
        code = self._processes[rank].exitcode
        killed = " (killed: out of memory?)" if code == -9 else ""
        return f"process {rank} ended with code {code}{killed}"

    def mine(self, schedule: Schedule) -> tuple[Tensor, Tensor]:
        """Mines as :class:`~.methods.Contender` says: every rank's part of the queries, together."""
        parts = self._ask("mine", schedule)
        indices, scores = (torch.cat([torch.from_numpy(part[i]) for part in parts]) for i in (0, 1))
        return indices, scores

    def seconds(self, schedule: Schedule) -> float:
        """Returns the seconds of the slowest rank."""
        return float(max(self._ask("seconds", schedule)))

    def peak(self, schedule: Schedule) -> dict[str, int | None]:
        """Returns the bytes of the largest rank."""
        ranks = self._ask("peak", schedule)
        return {
            name: None if ranks[0][name] is None else max(rank[name] for rank in ranks) for name in ranks[0]
        }

    def report(self) -> dict[str, Any]:
        """Returns nothing more."""
        return {}

    def close(self) -> None:
        """Ends the processes."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(10)
            if process.is_alive():
                process.kill()
                process.join()
        self._folder.cleanup()

    def __enter__(self) -> Shares:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
