"""What is in a video file? Its frames, decoded and shrunk, and the TV-L1 flow between them, as JPEGs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ...video import FLOW_SETTINGS, UnreadableVideo, flow_estimator, timed_frames

Frame = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class FrameSettings:
    """How videos become stored frames; kept in the manifest, and one data set has one.

    size: shorter edge of the stored frames, in pixels.
    frames: most RGB frames kept of a video, from its start.
    min_frames: videos with fewer RGB frames are skipped.
    fps_stride: keep every n-th frame.
    flow: TV-L1 effort; see `FLOW_SETTINGS`.
    flow_bound: flow is clipped to +- this many pixels a frame and stored as 0 to 255.
    jpeg_quality: 1 to 100, for both views.
    """

    size: int = 128
    frames: int = 300
    min_frames: int = 17
    fps_stride: int = 1
    flow: Literal["full", "fast", "draft"] = "full"
    flow_bound: float = 20.0
    jpeg_quality: int = 95

    def __post_init__(self) -> None:
        least_values = {
            "size": 16,
            "frames": 2,
            "min_frames": 2,
            "fps_stride": 1,
            "jpeg_quality": 1,
            "flow_bound": 0.1,
        }
        for name, least in least_values.items():
            value = getattr(self, name)
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if self.flow not in FLOW_SETTINGS:
            raise ValueError(f"flow must be one of {', '.join(FLOW_SETTINGS)}, got {self.flow!r}")


def read_frames(path: Path, settings: FrameSettings) -> Iterator[Frame]:
    """RGB frames [H, W, 3] of a video, upright, shorter edge `settings.size`; raises `UnreadableVideo`."""
    frames = timed_frames(path, settings.size, settings.fps_stride)
    yield from (frame for frame, _ in itertools.islice(frames, settings.frames))


def read_views(path: Path, settings: FrameSettings) -> tuple[list[bytes], list[bytes]]:
    """JPEGs of F - 1 frames of a video, and of the flow from each to the next; raises `UnreadableVideo`.

    Flow is estimated on grey frames, clipped to +-`flow_bound` px and rescaled to 0..255 (128 is no motion);
    the two components lie one above the other in one grey image [2H, W].
    """
    between = flow_estimator(settings.flow, settings.flow_bound)
    rgb: list[bytes] = []
    flow: list[bytes] = []
    previous: Frame | None = None
    for frame in read_frames(path, settings):
        if previous is not None:
            if previous.shape != frame.shape:
                raise UnreadableVideo("the frame size changes inside the video")
            flow.append(_jpeg(between(previous, frame), settings.jpeg_quality))
        rgb.append(_jpeg(frame[..., ::-1], settings.jpeg_quality))
        previous = frame
    if len(rgb) < settings.min_frames:
        raise UnreadableVideo(f"too short: {len(rgb)} frames, at least {settings.min_frames} are needed")
    if len(set(rgb)) == 1:
        raise UnreadableVideo(f"no motion: all {len(rgb)} frames are the same")
    return rgb[:-1], flow


def decode_rgb(jpeg: bytes | memoryview) -> Frame:
    """A stored RGB frame [H, W, 3]."""
    import cv2

    return np.asarray(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB), np.uint8)


def decode_flow(jpeg: bytes | memoryview) -> Frame:
    """A stored flow frame [H, W, 2], components u and v, 0..255."""
    import cv2

    stacked = np.asarray(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_GRAYSCALE), np.uint8)
    return np.stack(np.split(stacked, 2), axis=-1)


def _jpeg(image: Any, quality: int) -> bytes:
    import cv2

    good, encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not good:
        raise UnreadableVideo(f"a frame of shape {image.shape} cannot be stored as JPEG")
    return bytes(encoded)
