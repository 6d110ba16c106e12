"""A run that goes on from another, with new videos: how its batches are mixed and what it starts from."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from torch import nn

from .. import TrainError
from ..batches.dataset import ClipDataset, ClipSampler, Ticket
from ..data.store import write_atomically
from ..encoders.published import load


@dataclass(frozen=True)
class GoOn:
    """What `cpr update` notes for the run that it starts.

    run: the folder whose encoders, momentum encoders and queue are taken over. old_videos: videos of its data set,
    the first ones of the new manifest. old_share: their share in each batch.
    """

    run: str
    old_videos: int
    old_share: float

    def save(self, path: Path) -> None:
        """Writes it, atomically."""
        write_atomically(path, json.dumps(asdict(self), indent=1).encode())

    @classmethod
    def load(cls, path: Path) -> GoOn:
        """Reads what `save` wrote."""
        if not path.is_file():
            raise TrainError(f"goes-on: {path} is missing; run the same `cpr update` again")
        return cls(**json.loads(path.read_text()))


class MixedSampler(ClipSampler):
    """Batches of a fixed number of old and of new videos; a pass is one over the new ones.

    The old ones come in permutations of their own, so that all of them stay in play however few a batch has.
    """

    def __init__(
        self, dataset: ClipDataset, note: GoOn, batch: int, seed: int, rank: int, world: int
    ) -> None:
        super().__init__(len(dataset), batch, seed, rank, world)
        self.old = np.array(
            [i for i, video in enumerate(dataset.videos) if video < note.old_videos], dtype=np.int64
        )
        self.new = np.array(
            [i for i, video in enumerate(dataset.videos) if video >= note.old_videos], dtype=np.int64
        )
        self.old_in_batch = round(note.old_share * batch)
        for name, kind, wanted in (
            ("old", self.old, self.old_in_batch),
            ("new", self.new, batch - self.old_in_batch),
        ):
            if wanted > len(kind):
                raise TrainError(
                    f"old-share: a batch of {batch} with {note.old_share} of it old needs {wanted} {name} videos, and "
                    f"there are {len(kind)} for training; change --old-share, or take a smaller --batch"
                )
        if self.old_in_batch == batch:
            raise TrainError(
                f"old-share: {note.old_share} leaves no room for new videos in a batch of {batch}"
            )

    @property
    def steps_per_pass(self) -> int:
        """Batches in one pass over the new videos."""
        return len(self.new) // (self.batch - self.old_in_batch)

    def tickets(self, number: int) -> list[Ticket]:
        """The batch with this number."""
        fresh = self.batch - self.old_in_batch
        chosen = np.concatenate(
            [self._drawn(self.old, self.old_in_batch, number, 5), self._drawn(self.new, fresh, number, 0)]
        )
        order = np.random.default_rng((self.seed, 6, number)).permutation(self.batch)
        seeds = np.random.default_rng((self.seed, 1, number)).integers(1 << 62, size=self.batch)
        share = self.batch // self.world
        mine = slice(self.rank * share, (self.rank + 1) * share)
        return list(zip(chosen[order][mine].tolist(), seeds[mine].tolist()))

    def _drawn(self, kind: np.ndarray, count: int, number: int, stream: int) -> np.ndarray:
        """The `count` videos of a kind in a batch: pass after pass, each a permutation."""
        if not count:
            return kind[:0]
        turn, place = divmod(number, len(kind) // count)
        order = np.random.default_rng((self.seed, stream, turn)).permutation(kind)
        return order[place * count : (place + 1) * count]


def warm_start(model: nn.Module, note: GoOn) -> None:
    """Encoders, momentum encoders and queue of the run before; its videos keep their numbers, so its entries stay."""
    path = Path(note.run) / "checkpoint.pt"
    state = load(path)
    try:
        model.load_state_dict(state["model"])
    except (RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise TrainError(f"run: {path} does not fit the model of its own settings ({reason})") from None
