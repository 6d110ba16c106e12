"""Defines what every view does: read, cut, augment and encode its clips. Frames are the common case."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ...networks import new_encoder
from ...networks.inputs import unit
from ..data.manifest import Video
from ..data.store import FrameStore
from .augment import Augment, Draws
from .crops import Frames, corners, resized_crop

__all__ = ["Frames", "View", "unit", "where_clip"]


class View:
    """Is one modality. This base reads frames stored as JPEGs and encodes them with the run's backbone.

    name: what options, files and logs call it. label: what figures call it. stored: the record that
    `cpr prepare` wrote and this view reads; views that share one record share its clips too. pictured: galleries
    show its `picture`, beside the frame and the flow that they show of every video.
    """

    name: str
    label: str
    stored: str
    pictured: bool = False

    def has(self, video: Video) -> bool:
        """Returns whether the data set holds this view of a video."""
        return True

    def blank(self) -> Frames:
        """Returns what fills a clip's place in a batch whose video lacks the view; it is never encoded."""
        raise NotImplementedError

    def picture(self, store: FrameStore, video: Video) -> tuple[Frames, str]:
        """Returns the extra picture of a whole video that has the view, [H, W, 3] uint8 RGB, and its caption."""
        raise NotImplementedError

    def load(self, store: FrameStore, video: Video, start: int, count: int) -> Frames:
        """Returns the stored signal of video frames start .. start+count-1: [count, H, W, C] uint8."""
        return store.frames(video.id, self.stored, start, count)

    def part(self, whole: Frames, video: Video, start: int, count: int) -> Frames:
        """Returns the same, cut from what `load` gave for the whole video."""
        return whole[start : start + count]

    def clip(
        self, signal: Frames, size: int, draws: npt.NDArray[np.float64] | None = None, min_area: float = 1.0
    ) -> Frames:
        """Returns one clip for a batch, from a loaded signal; `draws` [4] choose its crop, None is the centre."""
        return resized_crop(signal, size, draws, min_area)

    def test_crops(self, signal: Frames, size: int, ten: bool) -> Frames:
        """Returns the crops tested of one clip: the centre [1, ...], or with `ten` centre and corners [5, ...].

        Their mirror images are taken too. A view without a picture gives its one clip.
        """
        return corners(signal, size) if ten else self.clip(signal, size)[None]

    def augmented(self, clips: Tensor, draws: Draws, how: Augment) -> Tensor:
        """Returns the encoder's input, float32, from clips [2, B, ...] on the device of the run."""
        raise NotImplementedError

    def plain(self, clips: Tensor, mirror: bool = False) -> Tensor:
        """Returns the encoder's input without augmentation, from clips [..., T, H, W, C] on the run's device.

        `mirror` turns the picture; a view without a picture leaves it out.
        """
        raise NotImplementedError

    def encoder(self, backbone: str, width: float, embedding: int) -> nn.Module:
        """Returns a new encoder: `forward` gives L2-normalised embeddings [M, D], `features` pooled ones [M, F]."""
        return new_encoder(backbone, width, embedding)


def where_clip(chosen: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """Returns `yes` for the clips [2, B] that were chosen, `no` for the others; both [2, B, ...]."""
    return torch.where(chosen.view(*chosen.shape, *[1] * (yes.dim() - chosen.dim())), yes, no)
