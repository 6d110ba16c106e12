"""Draws the thumbnails of a table's rows from files of images and videos: single frames, or strips that play."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ....video import UnreadableVideo, centre_square, timed_frames
from ....video_files import ENDINGS
from ..strips import StripFormat, encoded

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".jp2")
VIDEOS = ENDINGS.difference(IMAGES)
RATE = 4.0  # frames a second of a strip
# (most rows of a page, format of videos, side of images)
BY_COUNT = (
    (400, StripFormat(8, 96, False), 112),
    (1_500, StripFormat(6, 72, False, 65), 96),
    (4_000, StripFormat(4, 64, False, 55), 80),
    (20_000, StripFormat(1, 48, False, 45), 48),
    (1 << 62, StripFormat(1, 32, False, 40), 32),
)

Frames = npt.NDArray[np.uint8]


class Pictures(NamedTuple):
    """Holds what the page shows of the rows."""

    frames: int  # of each strip
    strips: list[str]  # base64; empty where the file cannot be read
    unread: list[str]  # why, one line a file


def is_picture(name: str) -> bool:
    """Whether a name ends as files of images and videos do."""
    return Path(name).suffix.lower() in VIDEOS.union(IMAGES)


def pictures(paths: Sequence[Path], tick: Callable[[], None]) -> Pictures:
    """Returns the thumbnails of files of images and videos; a video's strip shows its first seconds.

    `tick` is called after each file.
    """
    form, side = next((form, side) for most, form, side in BY_COUNT if len(paths) <= most)
    moving = any(path.suffix.lower() in VIDEOS for path in paths)
    count, side = (form.frames, form.size) if moving else (1, side)
    strips, unread = [], []
    for path in paths:
        try:
            strips.append(encoded(_strip(path, count, side), form.quality))
        except (UnreadableVideo, OSError, ValueError) as error:
            strips.append("")
            unread.append(f"{path}: {error}")
        tick()
    return Pictures(count, strips, unread)


def _strip(path: Path, count: int, side: int) -> Frames:
    """Returns `count` frames of a file side by side, [side, count * side, 3]; a short video's last one is repeated."""
    if path.suffix.lower() in VIDEOS:
        frames = [frame for frame, _ in islice(timed_frames(path, side, fps=RATE if count > 1 else 0), count)]
    else:
        frames = [_image(path)]
    if not frames:
        raise UnreadableVideo("no frame")
    squares = [centre_square(frame[None], side)[0] for frame in frames]
    return np.concatenate(squares + squares[-1:] * (count - len(squares)), axis=1)


def _image(path: Path) -> Frames:
    """Returns an image as RGB [H, W, 3]."""
    import cv2

    found = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
    if found is None:
        raise ValueError("not an image that OpenCV reads")
    return np.ascontiguousarray(found[..., ::-1], np.uint8)
