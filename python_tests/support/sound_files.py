"""Small video files with known sound, for the tests of the audio view."""

from __future__ import annotations

import numpy as np
import pytest

from cpr_kernels.train.data.sound import RATE

av = pytest.importorskip("av")


def sine(hz, seconds, rate=RATE, level=0.5):
    return (level * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def write(path, tracks, frames=50, fps=25, codec="pcm_s16le", start=0.0, squares=None):
    """A video with one sound track; `tracks` are (samples, rate) written one after the other."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=fps)
        video.width = video.height = 32
        video.pix_fmt = "yuv420p"
        sound = container.add_stream(codec, rate=tracks[0][1], layout="mono") if tracks else None
        for i in range(frames):
            picture = np.full((32, 32, 3), i, np.uint8)
            if squares is not None:
                top, left = (squares[0] + i) % 24, squares[1]
                picture[top : top + 8, left : left + 8] = 200
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        at = round(start * tracks[0][1]) if tracks else 0
        for samples, rate in tracks:
            frame = av.AudioFrame.from_ndarray(samples[None], "fltp", "mono")
            frame.sample_rate, frame.pts = rate, at
            at += len(samples)
            container.mux(sound.encode(frame))
        if sound is not None:
            container.mux(sound.encode(None))
    return path


def sound_set(folder, videos=5, frames=24):
    """Three classes of moving squares: low and high sines, and one without sound; `videos` sources each."""
    rng = np.random.default_rng(0)
    for label, hz in (("low", 300), ("high", 3000), ("mute", None)):
        (folder / label).mkdir()
        for i in range(videos):
            tracks = [] if hz is None else [(sine(hz * (1 + 0.1 * rng.random()), frames / 25), RATE)]
            write(
                folder / label / f"v_{label}_g{i + 1:02}_c01.mkv",
                tracks,
                frames,
                squares=rng.integers(8, 24, 2),
            )
    return folder
