"""What is in a video file? Its frames, decoded and shrunk, and the TV-L1 flow between them, as JPEGs; their times."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ...video import FLOW_SETTINGS, TimedFrames, UnreadableVideo, flow_estimator, timed_frames
from .kinds.frame_folders import frames_of, ready_flow
from .segments import WHOLE, Segment

Frame = npt.NDArray[np.uint8]
Knots = tuple[tuple[int, float], ...]  # (frame, second): a polyline

MOST = 1_000_000  # of every number of FrameSettings
EVEN = 0.005  # seconds by which a time may be off the polyline: half a column of a spectrogram
REPEATED = 0.9  # a video of fewer frames a second than this share of `fps` is said to be repeated


@dataclass(frozen=True)
class FrameSettings:
    """How videos become stored frames; kept in the manifest, and one data set has one.

    size: shorter edge of the stored frames, in pixels.
    frames: most RGB frames kept of a video, from its start.
    min_frames: videos with fewer RGB frames are skipped.
    fps_stride: keep every n-th frame.
    fps: keep the frames nearest in time to this many instants a second; 0 keeps each video's own rate.
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
    fps: float = 0.0

    def __post_init__(self) -> None:
        least_values = {
            "size": 16,
            "frames": 2,
            "min_frames": 2,
            "fps_stride": 1,
            "jpeg_quality": 1,
            "flow_bound": 0.1,
            "fps": 0.0,
        }
        for name, least in least_values.items():
            value = getattr(self, name)
            if not least <= value <= MOST:
                raise ValueError(f"{name} must be at least {least} and at most {MOST}, got {value}")
        if self.fps and self.fps_stride > 1:
            raise ValueError(
                f"fps and fps_stride both say which frames are kept, got {self.fps:g} and {self.fps_stride}; give one"
            )
        if self.flow not in FLOW_SETTINGS:
            raise ValueError(f"flow must be one of {', '.join(FLOW_SETTINGS)}, got {self.flow!r}")


@dataclass(frozen=True)
class Pictures:
    """What the pictures of a video, or of a segment of it, gave: JPEGs of F frames, and of the flow from each to the
    next.

    times: [F + 1] seconds of the frames and of the one that ends the last flow, from the first of them on; none where
    frames have no times.
    origin: the first frame's second on the file's own clock, which its sound shares; None where the file has none.
    note: what is to be said of the times and colours; empty where all is well.
    """

    rgb: list[bytes]
    flow: list[bytes]
    times: list[float]
    origin: float | None
    note: str

    @property
    def rate(self) -> float:
        """Frames a second, the mean; 0 where all are at one time."""
        return round(len(self.rgb) / self.times[-1], 3) if self.times and self.times[-1] > 0 else 0.0


def read_frames(path: Path, settings: FrameSettings, segment: Segment = WHOLE) -> Iterator[Frame]:
    """RGB frames [H, W, 3] of a segment, as shown, shorter edge `settings.size`; raises `UnreadableVideo`."""
    if path.is_dir():
        frames_only = itertools.islice(frames_of(path, settings.size), 0, None, settings.fps_stride)
        yield from itertools.islice(frames_only, settings.frames)
        return
    frames = segment.inside(_timed(path, settings))
    yield from (frame for frame, _ in itertools.islice(frames, settings.frames))


def _read_folder(folder: Path, settings: FrameSettings) -> Pictures:
    """The frames of a folder of pictures, and its ready flow, or flow between the frames that are kept."""
    if settings.fps:
        raise UnreadableVideo("a folder of frames has no times, so --fps cannot resample it")
    rgb = list(read_frames(folder, settings))
    if len({frame.shape for frame in rgb}) > 1:
        raise UnreadableVideo("the frame size changes inside the video")
    flow = ready_flow(folder, settings.size, settings.flow_bound) if settings.fps_stride == 1 else None
    if flow is None:
        between = flow_estimator(settings.flow, settings.flow_bound)
        flow = [between(first, second) for first, second in itertools.pairwise(rgb)]
    jpegs = [encode_jpeg(frame[..., ::-1], settings.jpeg_quality) for frame in rgb]
    _refuse_unfit(jpegs, settings)
    flow_jpegs = [encode_jpeg(one, settings.jpeg_quality) for one in flow[: len(rgb) - 1]]
    return Pictures(jpegs[:-1], flow_jpegs, [], None, "")


def _refuse_unfit(jpegs: list[bytes], settings: FrameSettings) -> None:
    if len(jpegs) < settings.min_frames:
        raise UnreadableVideo(f"too short: {len(jpegs)} frames, at least {settings.min_frames} are needed")
    if len(set(jpegs)) == 1:
        raise UnreadableVideo(f"no motion: all {len(jpegs)} frames are the same")


def read_views(path: Path, settings: FrameSettings, segment: Segment = WHOLE) -> Pictures:
    """Reads the frames of a segment and the flow between them; raises `UnreadableVideo`.

    Flow is estimated on grey frames, clipped to +-`flow_bound` px and rescaled to 0..255 (128 is no motion);
    the two components lie one above the other in one grey image [2H, W].
    """
    if path.is_dir():
        return _read_folder(path, settings)
    between = flow_estimator(settings.flow, settings.flow_bound)
    rgb: list[bytes] = []
    flow: list[bytes] = []
    times: list[float] = []
    previous: Frame | None = None
    frames = _timed(path, settings)
    for frame, second in itertools.islice(segment.inside(frames), settings.frames):
        if previous is not None:
            if previous.shape != frame.shape:
                raise UnreadableVideo("the frame size changes inside the video")
            flow.append(encode_jpeg(between(previous, frame), settings.jpeg_quality))
        rgb.append(encode_jpeg(frame[..., ::-1], settings.jpeg_quality))
        times.append(second)
        previous = frame
    _refuse_unfit(rgb, settings)
    clock = frames.clock
    assert clock is not None  # there was a frame
    notes = [frames.note] if frames.note else []
    if 0 < clock.rate < REPEATED * settings.fps:
        notes.append(
            f"{clock.rate:.3g} frames a second are repeated up to {settings.fps:g}, with no flow between copies"
        )
    origin = None if clock.origin is None else clock.origin + times[0]
    since_first = [second - times[0] for second in times]
    return Pictures(rgb[:-1], flow, since_first, origin, "; ".join(notes))


def _timed(path: Path, settings: FrameSettings) -> TimedFrames:
    return timed_frames(path, settings.size, settings.fps_stride, settings.fps)


def knots(times: Sequence[float]) -> Knots:
    """The corners of a polyline that is nowhere more than `EVEN` off the times of frames 0, 1, 2, ...: Douglas-Peucker.

    Two where the frame rate is constant.
    """
    if not times:
        return ()
    seconds = np.asarray(times)
    corners, open_parts = {0, len(times) - 1}, [(0, len(times) - 1)]
    while open_parts:
        first, last = open_parts.pop()
        line = np.interp(np.arange(first, last + 1), (first, last), (seconds[first], seconds[last]))
        off = np.abs(seconds[first : last + 1] - line)
        worst = first + int(off.argmax())
        if off[worst - first] > EVEN:
            corners.add(worst)
            open_parts += [(first, worst), (worst, last)]
    return tuple((corner, round(float(seconds[corner]), 4)) for corner in sorted(corners))


class DamagedRecord(Exception):
    """Says how a stored picture is damaged."""


def decode_rgb(jpeg: bytes | memoryview) -> Frame:
    """A stored RGB frame [H, W, 3]; raises `DamagedRecord`."""
    import cv2

    return decode_picture(jpeg, cv2.IMREAD_COLOR_RGB)


def decode_flow(jpeg: bytes | memoryview) -> Frame:
    """A stored flow frame [H, W, 2], components u and v, 0..255; raises `DamagedRecord`."""
    import cv2

    stacked = decode_picture(jpeg, cv2.IMREAD_GRAYSCALE)
    if len(stacked) % 2:
        raise DamagedRecord("is damaged: a flow frame has an odd height")
    return np.stack(np.split(stacked, 2), axis=-1)


def decode_picture(body: bytes | memoryview, flags: int) -> Frame:
    """A stored picture, uint8; raises `DamagedRecord`."""
    import cv2

    try:
        picture = cv2.imdecode(np.frombuffer(body, np.uint8), flags)
    except cv2.error as error:
        raise DamagedRecord(f"is damaged: a picture cannot be decoded ({error.err})") from None
    if picture is None:
        raise DamagedRecord("is damaged: a picture cannot be decoded")
    return np.asarray(picture, np.uint8)


def encode_jpeg(image: Any, quality: int) -> bytes:
    """An image as a JPEG of this quality, grey or in the order blue, green, red."""
    import cv2

    good, encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not good:
        raise UnreadableVideo(f"a frame of shape {image.shape} cannot be stored as JPEG")
    return bytes(encoded)
