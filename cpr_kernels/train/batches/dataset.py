"""Which clips make a batch? Two clips a video, all views at the same times, every draw a function of seed
and step.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .. import TrainError
from ..data.manifest import Manifest, Video
from ..data.parts import open_store
from ..views import Frames, View, chosen
from .sampler import SampleKey

# Clips by the record that they come from, as stored: `rgb` [B, 2, T, H, W, 3] and `flow` [B, 2, T, H, W, 2], uint8, or
# [B, 1, ...] where only the second clips are read; `video` [B] indices.
Batch = dict[str, Tensor]
TWO_VIEWS = ("rgb", "flow")


class ClipDataset(Dataset[dict[str, Any]]):
    """Pairs of clips of `frames` consecutive frames, cropped to `crop` x `crop`; one item a video of the
    split.

    A `SampleKey` selects an item: its start times and crops follow from the key's seed alone, so
    neither the number of workers nor a restart changes them. Both clips of an item have their own time and
    crop; the views of a clip share them. Flow is cropped like the picture and its values are left as they
    are, as in the published code. Videos shorter than `frames` are left out, and those that have none of the views;
    `left_out` and `without` count them. `keep_lacking` keeps the latter, so that rows are the same for all views.
    With `apart` the two clips share no frame, or where the video is too short for that, lie at its ends. A view that
    a video lacks is a blank in the batch; the others are as ever. `cache_mb` MiB of decoded videos are kept.
    """

    def __init__(
        self,
        data: Path,
        frames: int,
        crop: int,
        *,
        views: Sequence[str] = TWO_VIEWS,
        split: str = "train",
        min_area: float = 0.2,
        apart: bool = False,
        keep_lacking: bool = False,
        cache_mb: int = 1024,
    ) -> None:
        self.manifest = Manifest.load(Path(data))
        self.store = open_store(Path(data))
        self.store.check()
        self.views = chosen(views)
        self.readers = {view.stored: view for view in reversed(self.views.values())}  # one view a record
        self.frames, self.crop, self.min_area, self.apart = frames, crop, min_area, apart
        of_split = [i for i, video in enumerate(self.manifest.videos) if video.split == split]
        long = [i for i in of_split if self.manifest.videos[i].frames >= frames]
        self.left_out = len(of_split) - len(long)
        has_any = [i for i in long if any(v.has(self.manifest.videos[i]) for v in self.views.values())]
        self.videos = long if keep_lacking and has_any else has_any
        self.without = len(long) - len(self.videos)
        self._cache: dict[str, dict[str, Frames]] = {}
        self._cache_left = cache_mb << 20
        if not of_split:
            raise TrainError(f"data: {data} has no {split} video; prepare it with both splits")
        if long and not self.videos:
            why = sorted({self.manifest.videos[i].silence for i in long})
            raise TrainError(
                f"data: no {split} video of {data} has {' or '.join(views)} ({'; '.join(why[:3])})"
            )
        if not self.videos:
            raise TrainError(
                f"data: no {split} video of {data} has {frames} frames ({self.left_out} are shorter); "
                "use fewer frames a clip, or prepare more videos"
            )

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        key = SampleKey(*key)
        index = self.videos[key.position]
        video = self.manifest.videos[index]
        rng = np.random.default_rng(key.seed)
        clips: dict[str, list[Frames]] = {record: [] for record in self.readers}
        starts = starts_apart(video.frames, self.frames, rng) if self.apart else None
        for number in range(2):
            start = starts[number] if starts else int(rng.integers(video.frames - self.frames + 1))
            box = (rng.random(4), self.min_area)
            for record, view in self.readers.items():
                if number == 0 and record in key.second_only:
                    continue
                signal = self.read(video, view, start) if view.has(video) else None
                clips[record].append(view.blank() if signal is None else view.clip(signal, self.crop, *box))
        return {
            "video": index,
            **{record: torch.from_numpy(np.stack(pair)) for record, pair in clips.items()},
        }

    def read(self, video: Video, view: View, start: int) -> Frames:
        """The signal of `frames` frames of a view from `start`, from the cache where the video is there."""
        cached = self._cache.get(video.id)
        if cached is None and self._cache_left > 0:
            cached = {
                record: reader.load(self.store, video, 0, video.frames)
                for record, reader in self.readers.items()
                if reader.has(video)
            }
            self._cache[video.id] = cached
            self._cache_left -= sum(signal.nbytes for signal in cached.values())
        if cached is not None:
            return view.part(cached[view.stored], video, start, self.frames)
        return view.load(self.store, video, start, self.frames)

    def evenly_spaced(self, position: int, clips: int) -> dict[str, Frames]:
        """`clips` evenly spaced clips of a video, centre square, for testing: {view: [clips, T, crop, crop, C]}.

        Views that share a record share the clips.
        """
        video = self.manifest.videos[self.videos[position]]
        starts = self.starts(video, clips)
        of_record = {
            record: np.stack([
                view.clip(self.read(video, view, start), self.crop) if view.has(video) else view.blank()
                for start in starts
            ])
            for record, view in self.readers.items()
        }  # fmt: skip
        return {name: of_record[view.stored] for name, view in self.views.items()}

    def test_crops(self, position: int, clips: int, name: str, ten: bool) -> Frames:
        """Evenly spaced clips of one view of a video, and the crops of each that a test takes: [clips, crops, ...]."""
        video, view = self.manifest.videos[self.videos[position]], self.views[name]
        signals = [self.read(video, view, start) for start in self.starts(video, clips)]
        return np.stack([view.test_crops(signal, self.crop, ten) for signal in signals])

    def starts(self, video: Video, clips: int) -> list[int]:
        """The first frames of `clips` evenly spaced clips."""
        return np.linspace(0, video.frames - self.frames, clips).round().astype(int).tolist()


def starts_apart(frames: int, length: int, rng: np.random.Generator) -> tuple[int, int]:
    """First frames of two clips of `length` frames that share none, in random order; of a video too short for two, its
    ends.
    """
    room = frames - length
    if room < length:
        first, second = 0, room
    else:
        first, second = sorted(rng.integers(room - length + 1, size=2).tolist())
        second += length
    return (first, second) if rng.random() < 0.5 else (second, first)
