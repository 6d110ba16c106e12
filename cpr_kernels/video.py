"""What is in a video file? Its frames as a player shows them, shrunk, with their times; and the flow between them."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .video_files import OPEN_OPTIONS

Frame = npt.NDArray[np.uint8]
Frames = npt.NDArray[np.uint8]

# Settings of OpenCV's DualTVL1: "full" is its default (116 ms for a pair of 112 x 112 frames on one core); fast takes
# a third of its time, draft a seventh. Mean relative error on textured discs of 22 px radius that move 2, 4 and 8 px a
# frame: full 0.11, 0.07, 0.41; fast 0.11, 0.10, 0.44; draft 0.15, 0.14, 0.63. None follows a fine texture at 12 px.
FLOW_SETTINGS: dict[str, dict[str, float]] = {
    "full": {},
    "fast": {"nscales": 5, "warps": 3, "epsilon": 0.02, "outerIterations": 5},
    "draft": {"nscales": 5, "warps": 2, "epsilon": 0.03, "outerIterations": 3, "innnerIterations": 15},
}

# Seconds. A clock that steps back by more than BACK, or forward by more than FORWARD, is another clock: recordings
# that were joined. FORWARD_JOINED holds for formats whose clocks may break at any place (MPEG-TS); it is FFmpeg's own.
BACK, FORWARD, FORWARD_JOINED = 1.0, 600.0, 10.0
SAME_TIME = 1e-6  # seconds: far below a frame, far above the rounding of a sum
HDR = {16: "PQ", 18: "HLG"}  # FFmpeg's numbers of transfer curves
WIDE = {9: "BT.2020", 11: "DCI-P3", 12: "P3"}  # of primaries that show more colours than BT.709's
BT709 = 1  # the same of BT.709's curve, and of its primaries
MAPS_HDR = 18  # the first PyAV that converts curves and primaries
LONGEST_PIXEL = 16  # pixels longer than this many times their breadth come from a damaged header


class UnreadableVideo(Exception):
    """The reason, in one line, why a file gives no clip."""


class FrameClock:
    """Reads the second of every decoded frame of a video, counted from its first frame; seconds never decrease.

    A frame's own presentation time decides; a frame without one comes one step after the last: as long as the step
    before, at first of the nominal rate. A time a little before the last one's becomes the last one's; where the clock
    breaks (see `BACK`) it runs on by one step. AVI stores decoding times only, which come a few frames late: its first
    frame is at the stream's start.

    Attributes:
        origin: the first frame's second on the file's own clock, which its sound shares; None until a frame has one.
        frames: how many frames were read.
        last: the second of the last one.
        mended: how many of them had a time that went back, or came after a break.
    """

    def __init__(self, container: Any, stream: Any) -> None:
        self.origin: float | None = None
        self.frames, self.last, self.mended = 0, 0.0, 0
        self._base = float(stream.time_base)
        self._step = 1 / float(stream.guessed_rate or stream.average_rate or 25)
        self._forward = longest_gap(container)
        self._clocks: list[
            float
        ] = []  # when the clock of this part of the file, and that before it, were at second 0
        self._decoding_times = container.format.name == "avi"
        self._start = float((stream.start_time or 0) * stream.time_base)

    def second(self, frame: Any) -> float:
        """The second of the next frame."""
        expected = self.last + self._step if self.frames else 0.0
        stamp = frame.dts if self._decoding_times else frame.pts
        self.last = max(self.last, expected if stamp is None else self._read(stamp * self._base, expected))
        self.frames += 1
        return self.last

    def _read(self, stamp: float, expected: float) -> float:
        """The second of a stamp on the file's clock, of which a second was expected."""
        if not self._clocks:
            self._clocks = [stamp - expected]
            self.origin = self._start if self._decoding_times else stamp - expected
        zero = min(self._clocks, key=lambda zero: abs(stamp - zero - expected))
        second = stamp - zero
        if not -BACK <= second - self.last <= self._forward:
            self._clocks = [stamp - expected, zero]
            second = expected
        elif second >= self.last - SAME_TIME:
            self._step = second - self.last if self.frames and second > self.last else self._step
            return second
        self.mended += 1
        return second

    @property
    def rate(self) -> float:
        """Mean frames a second of what was read; 0 of less than two frames."""
        return (self.frames - 1) / self.last if self.last > 0 else 0.0

    @property
    def note(self) -> str:
        """What is to be said of the times; empty where all is well."""
        if not self.mended:
            return ""
        return f"the times of {self.mended} of its frames go back or jump; there each follows the last"


def longest_gap(container: Any) -> float:
    """The seconds that may pass between two frames of an open file; what is longer is a break of its clock."""
    import av

    return FORWARD_JOINED if container.format.flags & av.format.Flags.ts_discont.value else FORWARD


def opened(path: Path) -> Any:
    """An open PyAV container; the name is a file's, whatever protocol its letters spell ("12:30.mp4")."""
    import av

    return av.open(f"file:{path}", metadata_errors="replace", options=OPEN_OPTIONS)


def picture_stream(container: Any) -> Any:
    """The video stream that a player shows: FFmpeg's choice among those that are no cover picture.

    Raises:
        UnreadableVideo: there is none.
    """
    import av

    cover = av.stream.Disposition.attached_pic
    moving = [stream for stream in container.streams.video if not stream.disposition & cover]
    if not moving:
        raise UnreadableVideo(
            "no video stream, only a cover picture" if container.streams.video else "no video stream"
        )
    best = container.streams.best("video")
    return best if best in moving else moving[0]


class TimedFrames(Iterator[tuple[Frame, float]]):
    """The frames of `timed_frames`, one after the other.

    Attributes:
        clock: reads their times; None before the first frame.
    """

    clock: FrameClock | None = None

    def __init__(self, path: Path, size: int, stride: int, fps: float) -> None:
        self._scaler = FrameScaler()
        frames = self._decoded(path, size)
        self._frames = at_rate(frames, fps) if fps else islice(frames, 0, None, stride)

    def __next__(self) -> tuple[Frame, float]:
        return next(self._frames)

    @property
    def note(self) -> str:
        """What is to be said of the times and colours; empty where all is well."""
        return "; ".join(note for note in (self.clock.note if self.clock else "", self._scaler.note) if note)

    def _decoded(self, path: Path, size: int) -> Iterator[tuple[Frame, float]]:
        """Every frame, with its second."""
        import av

        seen = 0
        try:
            if not path.is_file():
                raise UnreadableVideo("missing file")
            with opened(path) as container:
                stream = picture_stream(container)
                stream.thread_type = "NONE"
                self.clock = FrameClock(container, stream)
                for frame in container.decode(stream):
                    image = self._scaler.as_shown(frame, stream.sample_aspect_ratio, size)
                    yield image, self.clock.second(frame)
                    seen += 1
        except (av.FFmpegError, ValueError, OSError) as error:
            reason = str(error).split(":")[0].split("] ")[-1]
            if isinstance(error, av.error.ArgumentError) and not seen:  # refused by OPEN_OPTIONS
                reason = "no container of video, such as a text, a picture or a playlist"
            raise UnreadableVideo(
                f"broken after {seen} frames ({reason})" if seen else f"not a video ({reason})"
            ) from error


def timed_frames(path: Path, size: int, stride: int = 1, fps: float = 0.0) -> TimedFrames:
    """Returns the RGB frames [H, W, 3] of a video as a player shows them, shorter edge `size`, each with its second.

    The first frame is at second 0. Which frames: every `stride`-th, or with `fps` the one nearest in time to each of
    the seconds 0, 1/fps, 2/fps, ..., which is then its second.

    Args:
        path: the file.
        size: pixels; a smaller picture is not enlarged.
        stride: keeps every n-th frame.
        fps: frames a second; 0 leaves the video's own.

    Raises:
        UnreadableVideo: on the way; missing, no video, or broken. What came before was sound.
    """
    return TimedFrames(path, size, stride, fps)


def at_rate(frames: Iterable[tuple[Frame, float]], fps: float) -> Iterator[tuple[Frame, float]]:
    """Resamples frames in time: for the seconds 0, 1/fps, 2/fps, ... the nearest frame, of two the earlier.

    The last second is the last one that is not after the last frame.
    """
    count = 0
    held: tuple[Frame, float] | None = None
    for frame, second in frames:
        while held is not None and count / fps <= (held[1] + second) / 2 + SAME_TIME:
            yield held[0], count / fps
            count += 1
        held = frame, second
    while held is not None and count / fps <= held[1] + SAME_TIME:
        yield held[0], count / fps
        count += 1


class FrameScaler:
    """Turns decoded frames into pictures as a player shows them; one is kept for all frames of a video.

    HDR (BT.2100's curves PQ and HLG) and wide primaries become what a standard screen shows, by FFmpeg's libswscale:
    curve and primaries of BT.709, HDR's white at 203 cd/m2, what is brighter clipped. Making its table takes seconds,
    once a video.

    Attributes:
        note: what is to be said of the colours; empty where all is well.
    """

    note = ""

    def __init__(self) -> None:
        from av.video.reformatter import VideoReformatter

        self._scale, self._map = VideoReformatter(), VideoReformatter()

    def as_shown(self, frame: Any, pixel_aspect: Fraction | None, size: int) -> Frame:
        """A frame as RGB [H, W, 3], shorter edge `size`: square pixels, turned and mirrored.

        Args:
            frame: PyAV's.
            pixel_aspect: width of a pixel by its height; None is a square.
            size: pixels; a smaller picture is not enlarged.
        """
        aspect = float(pixel_aspect or 1)
        if not 1 / LONGEST_PIXEL <= aspect <= LONGEST_PIXEL:
            raise UnreadableVideo(f"its header is damaged: pixels {aspect:g}:1")
        image = self._rgb(frame, *shrunk(max(1, round(frame.width * aspect)), frame.height, size))
        matrix = frame.side_data.get("DISPLAYMATRIX")
        return image if matrix is None else turned(image, struct.unpack("=9i", bytes(matrix)))

    def _rgb(self, frame: Any, width: int, height: int) -> Frame:
        import av

        how: dict[str, Any] = {"width": width, "height": height, "interpolation": "AREA", "threads": 1}
        curve, wide = HDR.get(frame.color_trc), WIDE.get(frame.color_primaries)
        if not curve and not wide:
            return np.asarray(self._scale.reformat(frame, format="rgb24", **how).to_ndarray())
        if int(av.__version__.partition(".")[0]) >= MAPS_HDR:
            small = self._scale.reformat(frame, format="gbrp16le", **how)
            image = self._map.reformat(
                small, format="rgb24", threads=1, dst_color_trc=BT709, dst_color_primaries=BT709
            )
            return np.asarray(image.to_ndarray())
        kind = f"HDR ({curve})" if curve else f"of wide primaries ({wide})"
        self.note = f"its colours are {kind} and taken as they are: PyAV {MAPS_HDR} or newer maps them"
        return np.asarray(self._scale.reformat(frame, format="rgb24", **how).to_ndarray())


def turned(image: Frame, matrix: Sequence[int]) -> Frame:
    """An image [H, W, C] under a display matrix (FFmpeg's, 9 numbers), by the nearest of the 8 that keep a rectangle.

    A pixel at (x, y) is shown at (m0 x + m3 y, m1 x + m4 y). A matrix that has no inverse turns nothing.
    """
    right, down, right_y, down_y = matrix[0], matrix[1], matrix[3], matrix[4]
    if right * down_y == down * right_y:
        return image
    if abs(right) + abs(down_y) < abs(down) + abs(right_y):
        image = image.swapaxes(0, 1)
        right, down_y = right_y, down
    return np.ascontiguousarray(image[:: -1 if down_y < 0 else 1, :: -1 if right < 0 else 1])


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
            "optical flow needs OpenCV with its contributed part: pip install 'cpr_kernels[deploy]' (or "
            "opencv-contrib-python-headless by itself)"
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
