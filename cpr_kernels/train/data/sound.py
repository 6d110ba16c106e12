"""What does a video sound like? Its sound track, decoded, resampled and turned into a log-mel spectrogram."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.float32]
Spectrogram = npt.NDArray[np.uint8]

RATE = 16_000  # samples a second, one channel
WINDOW, FFT, HOP = 512, 1024, 160  # samples: Hann window of 32 ms, padded with zeros, every 10 ms
BANDS = 128  # mel bands from 0 to RATE / 2 (Slaney's scale), triangles of height 1
COLUMNS = 128  # of the image of one clip: 1.28 s, what 32 frames take at 25 a second
DECIBELS = (-90.0, 0.0)  # stored as 0 to 255; the power of a sine of full scale is 0 dB
SILENT = 1e-3  # a track that never gets louder than this share of full scale counts as none


class NoSound(Exception):
    """The reason, in a few words, why a video has no usable sound."""


def read_sound(path: Path, frames: int, stride: int = 1) -> Samples:
    """The sound of the first `frames` kept video frames (every `stride`-th), mono at `RATE`, in -1..1.

    Starts with the video: a track that begins later or ends earlier is filled up with silence. A track whose
    sample rate or channels change on the way is resampled part by part.

    Raises:
        NoSound: no track, one that cannot be decoded, or a silent one.
    """
    import av

    decoded = 0
    parts = []
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            if not container.streams.audio:
                raise NoSound("no sound track")
            video, audio = container.streams.video[0], container.streams.audio[0]
            fps = video.average_rate or video.guessed_rate or 25
            wanted = round(frames * stride / float(fps) * RATE)
            late = _seconds(audio) - _seconds(video)
            audio.thread_type = "NONE"
            for part in _resampled(container.decode(audio)):
                parts.append(part)
                decoded += len(part)
                if decoded >= wanted - round(late * RATE):
                    break
    except (av.FFmpegError, ValueError, OSError) as error:
        reason = str(error).split(":")[0].split("] ")[-1]
        raise NoSound(f"sound track broken after {decoded / RATE:.1f} s ({reason})") from error
    if not decoded:
        raise NoSound("empty sound track")
    sound = np.concatenate(parts)
    lead = round(late * RATE)
    sound = np.concatenate((np.zeros(lead, np.float32), sound)) if lead > 0 else sound[-lead:]
    sound = np.pad(sound[:wanted], (0, max(0, wanted - len(sound))))
    if not np.isfinite(sound).all():
        raise NoSound("sound track broken (values that are no number)")
    if np.abs(sound).max(initial=0.0) < SILENT:
        raise NoSound("silent sound track")
    return sound


def log_mel(sound: Samples) -> Spectrogram:
    """Log-mel spectrogram [BANDS, L] uint8 of a sound, a column every `HOP` samples, low bands first.

    0 is -90 dB and less; 255 is 0 dB, the power of a sine of full scale.
    """
    count = max(1, round(len(sound) / HOP))
    padded = np.pad(sound, (WINDOW // 2, WINDOW + HOP))
    windows = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[: count * HOP : HOP]
    hann = np.hanning(WINDOW + 1)[:-1].astype(np.float32)
    power = np.abs(np.fft.rfft(windows * hann, FFT)) ** 2 / (FFT * (hann**2).sum() / 4)  # [L, FFT / 2 + 1]
    low, high = DECIBELS
    level = 10 * np.log10(np.maximum(power @ mel_bank().T, 10 ** (low / 10)))
    scaled = (np.clip(level, low, high) - low) * (255 / (high - low))
    return np.asarray(np.ascontiguousarray(scaled.T).round(), np.uint8)


@cache
def mel_bank() -> npt.NDArray[np.float64]:
    """Weights [BANDS, FFT / 2 + 1] of overlapping triangles, evenly spaced on Slaney's mel scale."""
    edges = mel_to_hz(np.linspace(0.0, float(hz_to_mel(np.array(RATE / 2))), BANDS + 2))
    bins = np.arange(FFT // 2 + 1) * RATE / FFT
    rising = (bins - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - bins) / np.diff(edges)[1:, None]
    return np.maximum(0.0, np.minimum(rising, falling))


def hz_to_mel(hz: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Slaney's mel scale (Auditory Toolbox, 1998): linear up to 1 kHz (15 mel), then 27 mel for a factor of 6.4."""
    hz = np.asarray(hz, np.float64)
    return np.where(hz < 1000, hz * 3 / 200, 15 + 27 * np.log(np.maximum(hz, 1) / 1000) / np.log(6.4))


def mel_to_hz(mel: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The inverse of `hz_to_mel`."""
    return np.where(mel < 15, mel * 200 / 3, 1000 * 6.4 ** ((mel - 15) / 27))


def packed_spectrogram(spectrogram: Spectrogram) -> bytes:
    """The spectrogram as it is stored: a grey PNG, without loss."""
    import cv2

    good, encoded = cv2.imencode(".png", spectrogram)
    if not good:
        raise NoSound(f"a spectrogram of shape {spectrogram.shape} cannot be stored")
    return bytes(encoded)


def unpacked_spectrogram(record: bytes | memoryview) -> Spectrogram:
    """The inverse of `packed_spectrogram`."""
    import cv2

    return np.asarray(cv2.imdecode(np.frombuffer(record, np.uint8), cv2.IMREAD_GRAYSCALE), np.uint8)


def _seconds(stream: Any) -> float:
    """When a stream starts."""
    return float(stream.start_time * stream.time_base) if stream.start_time is not None else 0.0


def _resampled(frames: Iterator[Any]) -> Iterator[Samples]:
    """Mono float parts at `RATE`; a resampler of its own for every run of frames of one format."""
    import av

    resampler, form = None, None
    for frame in frames:
        if resampler is None or form != _form(frame):
            if resampler is not None:
                yield from (part.to_ndarray()[0] for part in resampler.resample(None))
            resampler, form = av.AudioResampler("fltp", "mono", RATE), _form(frame)
        yield from (part.to_ndarray()[0] for part in resampler.resample(frame))
    if resampler is not None:
        yield from (part.to_ndarray()[0] for part in resampler.resample(None))


def _form(frame: Any) -> tuple[int, str, str]:
    return frame.sample_rate, frame.layout.name, frame.format.name
