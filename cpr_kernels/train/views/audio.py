"""Reads and augments sound: a log-mel spectrogram around the clip's middle, warped in time and masked."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from ...networks import new_encoder
from ...networks.inputs import unit
from ...networks.resnet import SpectrogramEncoder
from ..data.manifest import Video
from ..data.sound import BANDS, COLUMNS, HOP, RATE
from ..data.store import FrameStore
from .augment import Augment, Draws
from .base import View
from .crops import Frames
from .pictures import spectrogram_picture

MEAN, STD = 0.4, 0.2  # of spectrograms in 0..1, roughly
BENDS = 5  # places along time whose shift is drawn; it is interpolated in between and 0 at both ends


class Audio(View):
    """Reads the stored spectrogram, 128 bands x 128 columns of 10 ms for a clip, encoded by ResNet-18.

    A clip shorter than 1.28 s gets the sound around it, a longer one a part of its own: a random one in training,
    the middle one in testing. Augmented as in SpecAugment (Park et al. 2019), the warp drawn densely along time.
    """

    name, label, stored = "audio", "audio", "audio"
    pictured = True

    def has(self, video: Video) -> bool:
        """Returns whether sound of the video is stored."""
        return not video.silence

    def blank(self) -> Frames:
        """Returns [BANDS, COLUMNS] of zeros."""
        return np.zeros((BANDS, COLUMNS), np.uint8)

    def picture(self, store: FrameStore, video: Video) -> tuple[Frames, str]:
        """Returns the whole spectrogram, time to the right, high bands above; and a caption with its length."""
        spectrogram = store.spectrogram(video.id)
        return spectrogram_picture(spectrogram), f"{self.label}, {spectrogram.shape[1] * HOP / RATE:.1f} s"

    def load(self, store: FrameStore, video: Video, start: int, count: int) -> Frames:
        """Returns the spectrogram [BANDS, L] of video frames start .. start+count-1, L at least `COLUMNS` if there
        are.
        """
        return self.part(store.spectrogram(video.id), video, start, count)

    def part(self, whole: Frames, video: Video, start: int, count: int) -> Frames:
        """Returns the same, cut from the whole video's spectrogram."""
        columns = whole.shape[1]
        begin, end = (_column(frame, video, columns) for frame in (start, start + count))
        middle = (begin + end) // 2
        begin, end = min(begin, middle - COLUMNS // 2), max(end, middle + COLUMNS // 2)
        begin, end = max(0, min(begin, columns - (end - begin))), min(columns, max(end, end - begin))
        return whole[:, begin:end]

    def clip(
        self, signal: Frames, size: int, draws: npt.NDArray[np.float64] | None = None, min_area: float = 1.0
    ) -> Frames:
        """Returns [BANDS, COLUMNS] of a longer signal, or a shorter one padded with its mean.

        The last of `draws` is its place.
        """
        extra = signal.shape[1] - COLUMNS
        if extra >= 0:
            left = round(extra * (0.5 if draws is None else float(draws[3])))
            return np.ascontiguousarray(signal[:, left : left + COLUMNS])
        sides = ((0, 0), (-extra // 2, -extra - -extra // 2))
        return np.pad(signal, sides, constant_values=round(float(signal.mean())))

    def test_crops(self, signal: Frames, size: int, ten: bool) -> Frames:
        """Returns the one clip [1, BANDS, COLUMNS]: a spectrogram has no corners."""
        return self.clip(signal, size)[None]

    def augmented(self, clips: Tensor, draws: Draws, how: Augment) -> Tensor:
        """Maps [2, B, BANDS, COLUMNS] uint8 to [2, B, 1, BANDS, COLUMNS]."""
        own = torch.rand(*clips.shape[:2], BENDS + 4, generator=draws.generator).to(clips.device)
        sound = warped(unit(clips), how.warp * (2 * own[..., :BENDS] - 1))
        level = sound.mean(dim=(-2, -1))[..., None, None]
        masked = _span(own[..., -4], own[..., -3], how.time_mask, COLUMNS)[..., None, :]
        masked = masked | _span(own[..., -2], own[..., -1], how.band_mask, BANDS)[..., :, None]
        return _as_input(torch.where(masked, level, sound))

    def plain(self, clips: Tensor, mirror: bool = False) -> Tensor:
        """Maps [..., BANDS, COLUMNS] uint8 to [..., 1, BANDS, COLUMNS]; sound has no mirror image."""
        return _as_input(unit(clips))

    def encoder(self, backbone: str, width: float, embedding: int) -> nn.Module:
        """Returns a ResNet-18 of the run's width, whatever encodes the frames."""
        made: Any = new_encoder(SpectrogramEncoder.architecture, width, embedding)
        return made


def _column(frame: int, video: Video, columns: int) -> int:
    """Returns the column at which a frame is shown; frames of unknown time are taken to be evenly spaced."""
    second = video.second(frame)
    return round(frame * columns / video.frames if second is None else second * RATE / HOP)


def warped(sound: Tensor, shifts: Tensor) -> Tensor:
    """Reads sound [..., COLUMNS] (bands before) at shifted times: column t shows t + shift(t), interpolated.

    shifts: [2, B, BENDS] in columns, at evenly spaced times between the ends, which stay where they are.
    """
    columns = sound.shape[-1]
    pinned = functional.pad(shifts, (1, 1))
    shift = functional.interpolate(pinned, size=columns, mode="linear", align_corners=True)
    times = (torch.arange(columns, device=sound.device) + shift).clamp(0, columns - 1)
    before = times.floor().long().clamp(max=columns - 2)
    share = (times - before)[..., None, :]
    at = before[..., None, :].expand(sound.shape)
    return torch.lerp(sound.gather(-1, at), sound.gather(-1, at + 1), share.expand(sound.shape))


def _span(length: Tensor, place: Tensor, longest: int, size: int) -> Tensor:
    """Returns [..., size] bool, true on one run of 0 to `longest` places, from two draws [...] in 0..1."""
    count = (length * (min(longest, size) + 1)).floor()
    first = (place * (size - count + 1)).floor()
    places = torch.arange(size, device=length.device)
    return (places >= first[..., None]) & (places < (first + count)[..., None])


def _as_input(sound: Tensor) -> Tensor:
    return ((sound - MEAN) / STD)[..., None, :, :]
