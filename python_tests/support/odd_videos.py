"""Small videos as cameras and broken tools write them: any times, display matrices, pixel shapes, late sound."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

av = pytest.importorskip("av")

MS = Fraction(1, 1000)


def pictures(frames: int, width: int = 64, height: int = 48) -> np.ndarray:
    """A bright square, 12 pixels wide, that goes right by 2 pixels a frame over a textured ground: [T, H, W, 3]."""
    ground = np.random.default_rng(0).integers(20, 90, (height, width, 1), np.uint8).repeat(3, 2)
    clip = np.repeat(ground[None], frames, axis=0)
    for t in range(frames):
        clip[t, 8:20, (2 * t) % (width - 12) : (2 * t) % (width - 12) + 12] = 220
    return clip


def write(path: Path, clip: np.ndarray, seconds: Sequence[float] | None = None, **how: Any) -> Path:
    """Writes frames [T, H, W, 3], shown at `seconds` (25 a second by default).

    how: `codec`; `matrix`, a display matrix; `pixel`, the shape of a pixel; `sound`, (samples at 16 kHz, the second at
    which they begin), or a list of such; `cover`, a stream of one picture before the video's.
    """
    seconds = [i / 25 for i in range(len(clip))] if seconds is None else seconds
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(f"file:{path}", "w") as container:
        cover = _stream(container, "mjpeg", (240, 320)) if how.get("cover") else None
        stream = _stream(container, how.get("codec", "libx264"), clip.shape[1:3])
        if "pixel" in how:
            stream.sample_aspect_ratio = how["pixel"]
        if "matrix" in how:
            stream.set_display_matrix(how["matrix"])
        codec = "pcm_s16le" if path.suffix == ".mkv" else "aac"
        track = container.add_stream(codec, rate=16_000, layout="mono") if how.get("sound") else None
        if cover is not None:
            frame = av.VideoFrame.from_ndarray(np.full((240, 320, 3), 99, np.uint8), "rgb24")
            container.mux([*cover.encode(frame), *cover.encode(None)])
        for image, second in zip(clip, seconds):
            frame = av.VideoFrame.from_ndarray(image, "rgb24")
            frame.pts, frame.time_base = round(second * 1000), MS
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if track is not None:
            for samples, begin in how["sound"] if isinstance(how["sound"], list) else [how["sound"]]:
                for i in range(0, len(samples), 1024):
                    frame = av.AudioFrame.from_ndarray(samples[None, i : i + 1024], "fltp", "mono")
                    frame.sample_rate, frame.pts = 16_000, round(begin * 16_000) + i
                    container.mux(track.encode(frame))
            container.mux(track.encode(None))
    return path


def _stream(container: Any, codec: str, shape: Sequence[int]) -> Any:
    stream = container.add_stream(codec, rate=25)
    stream.height, stream.width = shape
    stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    if codec == "mjpeg":
        stream.disposition = av.stream.Disposition.attached_pic
    else:
        stream.codec_context.time_base, stream.codec_context.max_b_frames = MS, 0
    return stream
