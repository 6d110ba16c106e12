"""What is in a video file? Its frames, decoded, upright and shrunk, with their times; and the flow between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Frame = npt.NDArray[np.uint8]
Frames = npt.NDArray[np.uint8]

# Settings of OpenCV's DualTVL1: "full" is its default (116 ms for a pair of 112 x 112 frames on one core); fast takes
# a quarter of its time, draft a ninth. Mean relative error on textured discs of 22 px radius that move 2, 4 and 8 px a
# frame: full 0.11, 0.07, 0.41; fast 0.11, 0.10, 0.44; draft 0.15, 0.14, 0.63. None follows a fine texture at 12 px.
FLOW_SETTINGS: dict[str, dict[str, float]] = {
    "full": {},
    "fast": {"nscales": 5, "warps": 3, "epsilon": 0.02, "outerIterations": 5},
    "draft": {"nscales": 5, "warps": 2, "epsilon": 0.03, "outerIterations": 3, "innnerIterations": 15},
}


class UnreadableVideo(Exception):
    """The reason, in one line, why a file gives no clip."""


def timed_frames(path: Path, size: int, stride: int = 1) -> Iterator[tuple[Frame, float]]:
    """RGB frames [H, W, 3] of a video, upright, shorter edge `size`, every `stride`-th; and each one's second.

    Raises:
        UnreadableVideo: missing, no video, or broken; what came before was sound.
    """
    import av

    if not path.is_file():
        raise UnreadableVideo("missing file")
    seen = 0
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            if not container.streams.video:
                raise UnreadableVideo("no video stream")
            stream = container.streams.video[0]
            stream.thread_type = "NONE"
            for frame in container.decode(stream):
                if seen % stride == 0:
                    width, height = shrunk(frame.width, frame.height, size)
                    image = frame.reformat(width, height, "rgb24", interpolation="AREA").to_ndarray()
                    upright = np.ascontiguousarray(np.rot90(image, round(frame.rotation / 90) % 4))
                    yield upright, float(frame.time or 0.0)
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


def flow_estimator(effort: str, bound: float) -> Callable[[Frame, Frame], Frame]:
    """TV-L1 flow from one RGB frame to the next, as one grey image [2H, W] (see `quantised_flow`).

    Raises:
        ImportError: OpenCV, or its contributed part, is missing.
    """
    try:
        import cv2

        optflow: Any = cv2.optflow  # OpenCV's contributed part has no type hints
    except (ImportError, AttributeError) as error:
        raise ImportError(
            "optical flow needs OpenCV with its contributed part: pip install opencv-contrib-python-headless"
        ) from error
    estimator = optflow.DualTVL1OpticalFlow_create(**FLOW_SETTINGS[effort])

    def between(first: Frame, second: Frame) -> Frame:
        greys = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in (first, second)]
        return quantised_flow(estimator.calc(*greys, None), bound)

    return between


def quantised_flow(flow: npt.NDArray[np.float32], bound: float) -> Frame:
    """Flow [H, W, 2] in pixels as one grey image [2H, W]: u above v, -bound..bound mapped to 0..255."""
    scaled = np.clip(flow, -bound, bound) * (127.5 / bound) + 127.5
    return np.concatenate((scaled[..., 0], scaled[..., 1])).round().astype(np.uint8)


def centre_square(frames: Frames, size: int) -> Frames:
    """The largest centre square of frames [T, H, W, C], resized to [T, size, size, C].

    Each pixel is the mean of the area that it covers, or linear between the nearest two where it grows: what
    OpenCV's INTER_AREA and INTER_LINEAR do, up to rounding.
    """
    height, width = frames.shape[1:3]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    box = frames[:, top : top + side, left : left + side]
    if side == size:
        return np.ascontiguousarray(box)
    weights = _area(side, size) if side > size else _linear(side, size)
    values = np.einsum("oh,thwc->towc", weights, box.astype(np.float32))
    values = np.einsum("ow,thwc->thoc", weights, values)
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _area(old: int, new: int) -> npt.NDArray[np.float32]:
    """[new, old]: how much of each old pixel a new one covers; rows sum to 1."""
    edges = np.arange(new + 1) * (old / new)
    cover = np.minimum(edges[1:, None], np.arange(1, old + 1)) - np.maximum(edges[:-1, None], np.arange(old))
    return (np.clip(cover, 0, None) * (new / old)).astype(np.float32)


def _linear(old: int, new: int) -> npt.NDArray[np.float32]:
    """[new, old]: the two nearest old pixels of each new one, by nearness; the ends are repeated."""
    places = np.clip((np.arange(new) + 0.5) * (old / new) - 0.5, 0, old - 1)
    return np.clip(1 - np.abs(places[:, None] - np.arange(old)), 0, None).astype(np.float32)
