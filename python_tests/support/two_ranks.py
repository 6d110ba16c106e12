"""What two gloo processes find."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from forked import context

from cpr_kernels.processes import start_method


def _rank(rank: int, work: Callable[[int], Any], folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        torch.save(work(rank), folder / f"rank{rank}.pt")
    finally:
        dist.destroy_process_group()


def on_two_ranks(work: Callable[[int], Any], folder: Path) -> list[Any]:
    """What `work(rank)`, a function of a test file, returns on each of two ranks of a group."""
    context()  # what the processes have imported
    mp.start_processes(_rank, args=(work, folder), nprocs=2, start_method=start_method())
    return [torch.load(folder / f"rank{rank}.pt") for rank in (0, 1)]
