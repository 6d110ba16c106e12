"""Holds the memory queue of training videos, with the video of each entry."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ... import MultiViewQueue


class VideoQueue(MultiViewQueue):
    """Is a queue whose second column holds the index of each entry's video, where a plain queue holds its class."""

    @property
    def videos(self) -> Tensor:
        """Returns the video of each entry, [N] int64, -1 for an empty slot."""
        return self.labels

    def enqueue_clips(self, features: Mapping[str, Tensor], sources: Tensor, videos: Tensor) -> None:
        """Adds keys {view: [B, D]} with the source id [B] and the video [B] of each."""
        self.enqueue(features, sources, labels=videos)
