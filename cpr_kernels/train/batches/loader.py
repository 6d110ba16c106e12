"""Loads batches in the sampler's order and augments them on the device."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ...processes import process_context
from .. import TrainError
from ..views import View
from ..views.augment import Augment, Draws
from .dataset import Batch, ClipDataset
from .sampler import ClipSampler

FILES_A_WORKER, FILES = 4, 24  # open at once: a worker's pipes, and what else a training holds


def default_workers() -> int:
    """Returns the number of loader processes: none on one or two cores, where they would slow the encoder."""
    cores = os.cpu_count() or 1
    return 0 if cores <= 2 else min(8, cores - 2)


def clip_loader(dataset: ClipDataset, sampler: ClipSampler, workers: int) -> DataLoader[Any]:
    """Returns a loader of batches in the sampler's order; each of `workers` processes opens the LMDB itself.

    Raises:
        TrainError: more workers than this process may open pipes for.
    """
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if workers * FILES_A_WORKER + FILES > most > 0:
        raise TrainError(
            f"clips.workers: {workers} need about {workers * FILES_A_WORKER + FILES} open files, and the limit is "
            f"{most}; take fewer, or raise it by ulimit -n"
        )
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=workers,
        multiprocessing_context=process_context(ClipDataset.__module__) if workers else None,
        persistent_workers=workers > 0,
        generator=torch.Generator(),  # the loader's own draws do not touch torch's global generator
    )


def clip_batches(dataset: ClipDataset, sampler: ClipSampler, workers: int, steps: int) -> Iterator[Batch]:
    """Yields the next `steps` batches in the sampler's order; `workers` below 0 takes `default_workers`.

    Raises:
        TrainError: a video whose stored record is damaged, in one line also where a worker read it.
    """
    if steps < 1:
        return
    loader = clip_loader(dataset, sampler, default_workers() if workers < 0 else workers)
    try:
        yield from (batch for batch, _ in zip(loader, range(steps)))
    except TrainError as error:
        raise TrainError(str(error).rpartition("TrainError: ")[2].strip()) from None


def augmented(
    batch: Batch, views: Mapping[str, View], how: Augment, generator: torch.Generator, device: torch.device
) -> dict[str, Tensor]:
    """Returns {view: encoder input [2, B, ...]}, float32 on `device`; [1, B, ...] where the batch has one clip.

    All random numbers come from `generator` (on the CPU).

    Views are drawn for in order, so a further view leaves the others' clips as they were.
    """
    shared = torch.rand(9, 2, len(batch["video"]), generator=generator).to(device)
    clips = {
        record: batch[record].transpose(0, 1).contiguous().to(device, non_blocking=True)
        for record in {view.stored for view in views.values()}
    }
    made = {}
    for name, view in views.items():
        some = clips[view.stored]
        made[name] = view.augmented(some, Draws(shared[:, 2 - len(some) :], generator), how)
    return made
