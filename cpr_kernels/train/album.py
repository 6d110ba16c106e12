"""Thumbnails that play: for each video a strip of small frames, its flow below, as one JPEG."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .figures import flow_picture
from .store import FrameStore, Manifest, Video

SPAN = 40  # video frames that a strip covers


@dataclass(frozen=True)
class Strips:
    """How thumbnails are made: frames of one strip, pixels of a frame's side, with flow below or without."""

    frames: int
    size: int
    flow: bool
    quality: int = 72


# (at most so many videos, how); a page of 10,000 stays near 25 MB
BY_COUNT = (
    (400, Strips(8, 96, True)),
    (1500, Strips(6, 72, True, 65)),
    (4000, Strips(4, 64, False, 60)),
    (1 << 62, Strips(1, 56, False, 55)),
)


class Album:
    """The videos of one data set that a page shows, each with its strip."""

    def __init__(self, data: Path, manifest: Manifest) -> None:
        self.manifest, self.store = manifest, FrameStore(data)
        self.wanted: dict[int, int] = {}  # video: its place in the page

    def places(self, videos: Sequence[int]) -> list[int]:
        """Places in the page of these videos of the manifest; new ones are appended."""
        return [self.wanted.setdefault(video, len(self.wanted)) for video in videos]

    def page(self, tick: Callable[[], None]) -> dict[str, Any]:
        """What the page reads: classes, and for each video its id, class, source and strip."""
        how = next(strips for most, strips in BY_COUNT if len(self.wanted) <= most)
        videos = []
        for index in self.wanted:
            video = self.manifest.videos[index]
            videos.append({"id": video.id, "class": video.label, "strip": self._strip(video, how)})
            tick()
        return {"classes": self.manifest.classes, "frames": how.frames, "flow": how.flow, "videos": videos}

    def _strip(self, video: Video, how: Strips) -> str:
        """Base64 of a JPEG: frames side by side, below them the flow at the same moments."""
        import cv2

        span = min(SPAN, video.frames)
        first = (video.frames - span) // 2
        moments = first + np.linspace(0, span - 1, how.frames).round().astype(int)
        rows = [np.concatenate([self._frame(video, "rgb", int(moment), how) for moment in moments], axis=1)]
        if how.flow:
            rows.append(np.concatenate([self._frame(video, "flow", int(m), how) for m in moments], axis=1))
        picture = np.concatenate(rows)
        good, encoded = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, how.quality])
        if not good:
            raise ValueError(f"a strip of shape {picture.shape} cannot be encoded")
        return base64.b64encode(bytes(encoded)).decode()

    def _frame(self, video: Video, record: str, moment: int, how: Strips) -> npt.NDArray[np.uint8]:
        """The middle square of one frame of a record, `how.size` pixels a side."""
        import cv2

        stored = self.store.frames(video.id, record, moment, 1)
        frame = flow_picture(stored) if record == "flow" else stored[0]
        height, width = frame.shape[:2]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        square = frame[top : top + side, left : left + side]
        how_to = cv2.INTER_AREA if side > how.size else cv2.INTER_LINEAR
        return np.asarray(cv2.resize(square, (how.size, how.size), interpolation=how_to), np.uint8)
