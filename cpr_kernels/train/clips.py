"""Which clips make a batch? Two clips a video, both views at the same times, every draw a function of seed
and step.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from . import TrainError
from .store import VIEWS, FrameStore, Manifest, Video

Frames = npt.NDArray[np.uint8]
Ticket = tuple[int, int]  # position of the video in the split, seed of its random draws


# Clips as stored, uint8: `rgb` [B, 2, T, H, W, 3] and `flow` [B, 2, T, H, W, 2]; `video` [B] indices.
Batch = dict[str, Tensor]


class ClipDataset(Dataset[dict[str, Any]]):
    """Pairs of clips of `frames` consecutive frames, cropped to `crop` x `crop`; one item a video of the
    split.

    An item is asked for by a `Ticket`: its start times and crops follow from the ticket's seed alone, so
    neither the number of workers nor a restart changes them. Both clips of an item have their own time and
    crop; the two views of a clip share them. Flow is cropped like the picture and its values are left as they
    are, as in the published code. Videos shorter than `frames` are left out; `left_out` counts them.
    `cache_mb` MiB of decoded videos are kept.
    """

    def __init__(
        self,
        data: Path,
        frames: int,
        crop: int,
        *,
        split: str = "train",
        min_area: float = 0.2,
        cache_mb: int = 1024,
    ) -> None:
        self.manifest = Manifest.load(Path(data))
        self.store = FrameStore(Path(data))
        self.frames, self.crop, self.min_area = frames, crop, min_area
        of_split = [i for i, video in enumerate(self.manifest.videos) if video.split == split]
        self.videos = [i for i in of_split if self.manifest.videos[i].frames >= frames]
        self.left_out = len(of_split) - len(self.videos)
        self._cache: dict[str, dict[str, Frames]] = {}
        self._cache_left = cache_mb << 20
        if not self.videos:
            raise TrainError(
                f"data: no {split} video of {data} has {frames} frames ({self.left_out} are shorter); "
                "use fewer frames a clip, or prepare more videos"
            )

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, ticket: Ticket) -> dict[str, Any]:
        position, seed = ticket
        index = self.videos[position]
        video = self.manifest.videos[index]
        rng = np.random.default_rng(seed)
        clips: dict[str, list[Frames]] = {view: [] for view in VIEWS}
        for _ in range(2):
            start = int(rng.integers(video.frames - self.frames + 1))
            box = (rng.random(4), self.min_area)
            for view in VIEWS:
                clips[view].append(resized_crop(self.read(video, view, start), self.crop, *box))
        return {"video": index, **{view: torch.from_numpy(np.stack(pair)) for view, pair in clips.items()}}

    def read(self, video: Video, view: str, start: int) -> Frames:
        """`frames` frames of a view from `start`, [T, H, W, C], from the cache where the video is there."""
        cached = self._cache.get(video.id)
        if cached is None and self._cache_left > 0:
            cached = {name: self.store.frames(video.id, name, 0, video.frames) for name in VIEWS}
            self._cache[video.id] = cached
            self._cache_left -= sum(view_frames.nbytes for view_frames in cached.values())
        if cached is not None:
            return cached[view][start : start + self.frames]
        return self.store.frames(video.id, view, start, self.frames)

    def evenly_spaced(self, position: int, clips: int) -> tuple[Frames, Frames]:
        """`clips` evenly spaced clips of a video, centre square, for testing: rgb and flow [clips, T, crop,
        crop, C].
        """
        video = self.manifest.videos[self.videos[position]]
        starts = np.linspace(0, video.frames - self.frames, clips).round().astype(int)
        rgb, flow = (
            np.stack([resized_crop(self.read(video, view, int(start)), self.crop) for start in starts])
            for view in VIEWS
        )
        return rgb, flow


def resized_crop(
    frames: Frames, size: int, draws: npt.NDArray[np.float64] | None = None, min_area: float = 1.0
) -> Frames:
    """One box of all frames [T, H, W, C], resized to [T, size, size, C].

    `draws` [4] in 0..1 choose the area (`min_area` to 1 of the picture), the aspect (3/4 to 4/3) and the
    place; without them it is the largest centre square.
    """
    import cv2

    height, width = frames.shape[1:3]
    if draws is None:
        box_height = box_width = min(height, width)
        top, left = (height - box_height) // 2, (width - box_width) // 2
    else:
        area = height * width * (min_area + (1 - min_area) * draws[0])
        aspect = (3 / 4) ** (1 - 2 * draws[1])
        box_height = min(height, max(1, round((area / aspect) ** 0.5)))
        box_width = min(width, max(1, round((area * aspect) ** 0.5)))
        top, left = round((height - box_height) * draws[2]), round((width - box_width) * draws[3])
    box = frames[:, top : top + box_height, left : left + box_width]
    if box_height == box_width == size:
        return np.ascontiguousarray(box)
    shrinks = box_height > size and box_width > size
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.stack([cv2.resize(frame, (size, size), interpolation=how) for frame in box])


class ClipSampler(Sampler[list[Ticket]]):
    """Batches of tickets without end, from batch number `position` on, each a function of (seed, number).

    Every pass over the split is a new permutation; what does not fill a batch at its end is left out of that
    pass. The consumer moves `position`, so that a checkpoint holds what was used, not what was prefetched.
    """

    def __init__(self, videos: int, batch: int, seed: int) -> None:
        if not 1 <= batch <= videos:
            raise TrainError(
                f"clips.batch: {batch} cannot be drawn from {videos} training videos; use {videos} or less"
            )
        self.videos, self.batch, self.seed = videos, batch, seed
        self.position = 0

    @property
    def steps_per_pass(self) -> int:
        """Batches in one pass over the split."""
        return self.videos // self.batch

    def tickets(self, number: int) -> list[Ticket]:
        """The batch with this number."""
        turn, place = divmod(number, self.steps_per_pass)
        order = np.random.default_rng((self.seed, 0, turn)).permutation(self.videos)
        chosen = order[place * self.batch : (place + 1) * self.batch]
        seeds = np.random.default_rng((self.seed, 1, number)).integers(1 << 62, size=self.batch)
        return list(zip(chosen.tolist(), seeds.tolist()))

    def __iter__(self) -> Iterator[list[Ticket]]:
        number = self.position
        while True:
            yield self.tickets(number)
            number += 1

    def state_dict(self) -> dict[str, int]:
        """The position, and what it is a position in."""
        return {"position": self.position, "videos": self.videos, "batch": self.batch, "seed": self.seed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continues at a saved position; the split, batch size and seed must be the saved ones."""
        mine = self.state_dict()
        changed = [f"{k} {state[k]} -> {mine[k]}" for k in ("videos", "batch", "seed") if state[k] != mine[k]]
        if changed:
            raise TrainError(
                f"resume: the data order would change ({', '.join(changed)}); use the run's own settings"
            )
        self.position = state["position"]


def default_workers() -> int:
    """Loader processes: none on one or two cores, where they would only take time from the encoder."""
    cores = os.cpu_count() or 1
    return 0 if cores <= 2 else min(8, cores - 2)


def clip_loader(dataset: ClipDataset, sampler: ClipSampler, workers: int) -> DataLoader[Any]:
    """Batches in the sampler's order; `workers` processes, each opening the LMDB itself."""
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=workers,
        multiprocessing_context="spawn" if workers else None,
        persistent_workers=workers > 0,
        generator=torch.Generator(),  # the loader's own draws leave torch's global generator alone
    )
