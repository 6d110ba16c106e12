"""Runs a sharded queue for real: several gloo processes on this machine, checked against one with the whole queue."""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from cpr_kernels import ShardedMultiViewQueue, cascade_topk, cpr_schedule
from cpr_kernels.memory.sharded_queue import even_sizes
from cpr_kernels.processes import process_context, start_method

VIEWS = {"flow": 128, "rgb": 128}


class Run(NamedTuple):
    """One group of processes over one queue."""

    ranks: int
    entries: int
    batch: int  # queries of each rank
    threads: int  # of each rank
    seconds: float  # median over the repeats of the slowest rank's time
    alone: float  # the same for one process that holds the whole queue and has one rank's queries
    peak: int  # bytes: the largest resident size of a rank before the check, Python and torch included


def unit_rows(seed: int, rows: int) -> dict[str, Tensor]:
    """Returns random unit vectors of each view; the seed alone decides."""
    g = torch.Generator().manual_seed(seed)
    made = {v: torch.randn(rows, dim, generator=g) for v, dim in VIEWS.items()}
    return {v: torch.nn.functional.normalize(x, dim=1) for v, x in made.items()}


def _seconds(ranks: int, repeats: int, call: Callable[[], Any]) -> list[float]:
    """Times of `call`; with several ranks they start together and the slowest counts."""
    times = []
    for _ in range(repeats + 1):  # the first warms up
        if ranks > 1:
            dist.barrier()
        started = time.perf_counter()
        call()
        taken = torch.tensor(time.perf_counter() - started)
        if ranks > 1:
            dist.all_reduce(taken, dist.ReduceOp.MAX)
        times.append(float(taken))
    return times[1:]


def _rank(rank: int, ranks: int, entries: int, batch: int, threads: int, repeats: int, folder: str) -> None:
    torch.set_num_threads(threads)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    sizes, schedule = even_sizes(entries, ranks), cpr_schedule(num_keys=entries)
    queue = ShardedMultiViewQueue(VIEWS, entries)
    first = sum(sizes[:rank])
    queue.enqueue(unit_rows(rank, sizes[rank]), torch.arange(first, first + sizes[rank]))
    queries, ids = unit_rows(1000 + rank, batch), torch.arange(batch)
    found: list[tuple[Tensor, Tensor]] = []

    def mine() -> None:
        found[:] = [cascade_topk(queries, queue.views, schedule, query_ids=ids, key_ids=queue.ids)]

    times = _seconds(ranks, repeats, mine)
    peak = torch.tensor(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    dist.all_reduce(peak, dist.ReduceOp.MAX)
    dist.barrier()
    if rank == 0:
        parts = [unit_rows(r, sizes[r]) for r in range(ranks)]
        whole = {v: torch.cat([part[v] for part in parts]) for v in VIEWS}
        key_ids = torch.arange(entries)
        expected = cascade_topk(queries, whole, schedule, query_ids=ids, key_ids=key_ids)
        if not all(torch.equal(a, b) for a, b in zip(found[0], expected)):
            raise ValueError(f"{ranks} ranks do not find what one process finds: no figure")
        torch.set_num_threads(threads * ranks)  # as many cores as all ranks had
        alone = _seconds(
            1, repeats, lambda: cascade_topk(queries, whole, schedule, query_ids=ids, key_ids=key_ids)
        )
        run = Run(ranks, entries, batch, threads, median(times), median(alone), int(peak))
        torch.save(tuple(run), Path(folder, "run.pt"))
    dist.destroy_process_group()


def measure(ranks: int, entries: int, batch: int, threads: int = 1, repeats: int = 5) -> Run:
    """Starts the processes, mines `repeats` times and checks rank 0's result bit for bit.

    Raises:
        ValueError: fewer entries or repeats than one.
        torch.multiprocessing.ProcessRaisedException: a rank failed, or found something else.
    """
    if min(ranks, entries, batch, threads, repeats) < 1:
        raise ValueError("ranks, entries, batch, threads and repeats must all be >= 1")
    with tempfile.TemporaryDirectory() as folder:
        process_context(__name__)
        arguments = (ranks, entries, batch, threads, repeats, folder)
        mp.start_processes(_rank, arguments, ranks, start_method=start_method())
        return Run(*torch.load(Path(folder, "run.pt")))
