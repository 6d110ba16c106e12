"""What is in a video file? Its frames, decoded and shrunk, and the TV-L1 flow between them, as JPEGs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Frame = npt.NDArray[np.uint8]

# Settings of OpenCV's DualTVL1: "full" is its default (116 ms for a pair of 112 x 112 frames on one core); fast takes
# a quarter of its time, draft a ninth. Mean relative error on textured discs of 22 px radius that move 2, 4 and 8 px a
# frame: full 0.11, 0.07, 0.41; fast 0.11, 0.10, 0.44; draft 0.15, 0.14, 0.63. None follows a fine texture at 12 px.
FLOW_SETTINGS: dict[str, dict[str, float]] = {
    "full": {},
    "fast": {"nscales": 5, "warps": 3, "epsilon": 0.02, "outerIterations": 5},
    "draft": {"nscales": 5, "warps": 2, "epsilon": 0.03, "outerIterations": 3, "innnerIterations": 15},
}


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


class UnreadableVideo(Exception):
    """The reason, in one line, why a file gives no clip."""


def read_frames(path: Path, settings: FrameSettings) -> Iterator[Frame]:
    """RGB frames [H, W, 3] of a video, upright, shorter edge `settings.size`; raises `UnreadableVideo`."""
    import av

    if not path.is_file():
        raise UnreadableVideo("missing file")
    seen = kept = 0
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            if not container.streams.video:
                raise UnreadableVideo("no video stream")
            stream = container.streams.video[0]
            stream.thread_type = "NONE"
            for frame in container.decode(stream):
                if seen % settings.fps_stride == 0:
                    width, height = shrunk(frame.width, frame.height, settings.size)
                    image = frame.reformat(width, height, "rgb24", interpolation="AREA").to_ndarray()
                    yield np.ascontiguousarray(np.rot90(image, round(frame.rotation / 90) % 4))
                    kept += 1
                    if kept == settings.frames:
                        return
                seen += 1
    except (av.FFmpegError, ValueError, OSError) as error:
        reason = str(error).split(":")[0].split("] ")[-1]
        raise UnreadableVideo(
            f"broken after {seen} frames ({reason})" if seen else f"not a video ({reason})"
        ) from error


def shrunk(width: int, height: int, size: int) -> tuple[int, int]:
    """Width and height with the shorter edge at `size`, the aspect kept; never enlarges."""
    scale = min(1.0, size / min(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def read_views(path: Path, settings: FrameSettings) -> tuple[list[bytes], list[bytes]]:
    """JPEGs of F - 1 frames of a video, and of the flow from each to the next; raises `UnreadableVideo`.

    Flow is estimated on grey frames, clipped to +-`flow_bound` px and rescaled to 0..255 (128 is no motion);
    the two components lie one above the other in one grey image [2H, W].
    """
    import cv2

    optflow: Any = cv2.optflow  # OpenCV's contributed part has no type hints
    estimator = optflow.DualTVL1OpticalFlow_create(**FLOW_SETTINGS[settings.flow])
    rgb: list[bytes] = []
    flow: list[bytes] = []
    previous: Frame | None = None
    for frame in read_frames(path, settings):
        grey = np.asarray(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), np.uint8)
        if previous is not None:
            if previous.shape != grey.shape:
                raise UnreadableVideo("the frame size changes inside the video")
            moved = estimator.calc(previous, grey, None)
            flow.append(_jpeg(quantised_flow(moved, settings.flow_bound), settings.jpeg_quality))
        rgb.append(_jpeg(frame[..., ::-1], settings.jpeg_quality))
        previous = grey
    if len(rgb) < settings.min_frames:
        raise UnreadableVideo(f"too short: {len(rgb)} frames, at least {settings.min_frames} are needed")
    if len(set(rgb)) == 1:
        raise UnreadableVideo(f"no motion: all {len(rgb)} frames are the same")
    return rgb[:-1], flow


def quantised_flow(flow: npt.NDArray[np.float32], bound: float) -> Frame:
    """Flow [H, W, 2] in pixels as one grey image [2H, W]: u above v, -bound..bound mapped to 0..255."""
    scaled = np.clip(flow, -bound, bound) * (127.5 / bound) + 127.5
    return np.concatenate((scaled[..., 0], scaled[..., 1])).round().astype(np.uint8)


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
