"""Samples the videos of each batch, as a function of seed and step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

from .. import TrainError

Positions = npt.NDArray[np.integer]


class SampleKey(NamedTuple):
    """Names an item of a data set: position of the video in the split, seed of its random draws.

    second_only: the records of which only the second clip is read, as the first is needed by nothing.
    """

    position: int
    seed: int
    second_only: frozenset[str] = frozenset()


class ClipSampler(Sampler[list[SampleKey]]):
    """Yields batches of sample keys without end, from batch number `position` on, each a function of (seed, number).

    Every pass over the split is a new permutation; what does not fill a batch at its end is left out of that
    pass. The consumer moves `position`, so that a checkpoint holds what was used, not what was prefetched.
    Of `world` processes each takes its `batch / world` keys of every batch. `second_only` returns, for the number of
    a batch, the records of which its items need the second clip only.
    """

    def __init__(self, videos: int, batch: int, seed: int, rank: int = 0, world: int = 1) -> None:
        if not 1 <= batch <= videos:
            raise TrainError(
                f"clips.batch: {batch} cannot be drawn from {videos} training videos; use {videos} or less"
            )
        self.videos, self.batch, self.seed = videos, batch, seed
        self.rank, self.world = rank, world
        self.position = 0
        self.second_only: Callable[[int], frozenset[str]] = lambda number: frozenset()

    @property
    def steps_per_pass(self) -> int:
        """Returns the number of batches in one pass over the split."""
        return self.videos // self.batch

    def sample_keys(self, number: int) -> list[SampleKey]:
        """Returns this rank's sample keys of the batch with this number."""
        turn, place = divmod(number, self.steps_per_pass)
        order = np.random.default_rng((self.seed, 0, turn)).permutation(self.videos)
        chosen = order[place * self.batch : (place + 1) * self.batch]
        seeds = np.random.default_rng((self.seed, 1, number)).integers(1 << 62, size=self.batch)
        return self._share(chosen, seeds, number)

    def _share(self, chosen: Positions, seeds: Positions, number: int) -> list[SampleKey]:
        """Returns this rank's keys of a batch."""
        share = self.batch // self.world
        mine, second_only = slice(self.rank * share, (self.rank + 1) * share), self.second_only(number)
        return [SampleKey(*each, second_only) for each in zip(chosen[mine].tolist(), seeds[mine].tolist())]

    def __iter__(self) -> Iterator[list[SampleKey]]:
        number = self.position
        while True:
            yield self.sample_keys(number)
            number += 1

    def state_dict(self) -> dict[str, int]:
        """Returns the position, and the split, batch size and seed that it belongs to."""
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


class MixedSampler(ClipSampler):
    """Yields batches of a fixed number of old and of new videos; a pass is one over the new ones.

    Old ones come in permutations of their own, so that all of them stay in use however few a batch has. `is_old` [M]
    bool marks them among the videos of the split, `old_share` is their share of each batch.
    """

    def __init__(
        self, is_old: npt.NDArray[np.bool_], old_share: float, batch: int, seed: int, rank: int, world: int
    ) -> None:
        super().__init__(len(is_old), batch, seed, rank, world)
        self.old, self.new = np.flatnonzero(is_old), np.flatnonzero(~is_old)
        self.old_in_batch = round(old_share * batch)
        for name, kind, wanted in (
            ("old", self.old, self.old_in_batch),
            ("new", self.new, batch - self.old_in_batch),
        ):
            if wanted > len(kind):
                raise TrainError(
                    f"old-share: a batch of {batch} with {old_share} of it old needs {wanted} {name} videos, and "
                    f"there are {len(kind)} for training; change --old-share, or take a smaller --batch"
                )
        if self.old_in_batch == batch:
            raise TrainError(f"old-share: {old_share} leaves no room for new videos in a batch of {batch}")

    @property
    def steps_per_pass(self) -> int:
        """Returns the number of batches in one pass over the new videos."""
        return len(self.new) // (self.batch - self.old_in_batch)

    def sample_keys(self, number: int) -> list[SampleKey]:
        """Returns this rank's sample keys of the batch with this number."""
        fresh = self.batch - self.old_in_batch
        chosen = np.concatenate(
            [self._drawn(self.old, self.old_in_batch, number, 5), self._drawn(self.new, fresh, number, 0)]
        )
        order = np.random.default_rng((self.seed, 6, number)).permutation(self.batch)
        seeds = np.random.default_rng((self.seed, 1, number)).integers(1 << 62, size=self.batch)
        return self._share(chosen[order], seeds, number)

    def _drawn(self, kind: np.ndarray, count: int, number: int, stream: int) -> np.ndarray:
        """Returns the `count` videos of a kind in a batch: pass after pass, each a permutation."""
        if not count:
            return kind[:0]
        turn, place = divmod(number, len(kind) // count)
        order = np.random.default_rng((self.seed, stream, turn)).permutation(kind)
        return order[place * count : (place + 1) * count]
