"""What does a video sound like? Its sound track, decoded, resampled and turned into a log-mel spectrogram."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...video import BACK, longest_gap, opened
from .decoding import DamagedRecord, decode_picture

Samples = npt.NDArray[np.float32]
Spectrogram = npt.NDArray[np.uint8]

RATE = 16_000  # samples a second, one channel
WINDOW, FFT, HOP = 512, 1024, 160  # samples: Hann window of 32 ms, padded with zeros, every 10 ms
BANDS = 128  # mel bands from 0 to RATE / 2 (Slaney's scale), triangles of height 1
COLUMNS = 128  # of the image of one clip: 1.28 s, what 32 frames take at 25 a second
DECIBELS = (-90.0, 0.0)  # stored as 0 to 255; the power of a sine of full scale is 0 dB
CHUNK = 4096  # columns transformed at once
SEAM = 0.05  # seconds: stamps of milliseconds, and of tracks that drift, are off by less
SILENT = 1e-3  # a track that never gets louder than this share of full scale counts as none


class NoSound(Exception):
    """The reason, in a few words, why a video has no usable sound."""


def read_sound(path: Path, seconds: float, begin: float | None = 0.0) -> Samples:
    """Returns the sound of a part of a video, mono at `RATE`, in -1..1, where the stamps of the file put it.

    There is silence before the track begins, in its gaps and after its end. A track whose sample rate or channels
    change on the way is resampled part by part. Memory is that of the part, whatever the stamps say.

    Args:
        path: the file.
        seconds: how long the part is.
        begin: where it begins on the file's own clock; None is where the track begins.

    Raises:
        NoSound: no track, one that cannot be decoded, or nothing but silence in this part.
    """
    import av

    sound = np.zeros(max(1, round(seconds * RATE)), np.float32)
    decoded, inside = 0, False
    try:
        with opened(path) as container:
            if not container.streams.audio:
                raise NoSound("no sound track")
            audio = container.streams.audio[0]
            audio.thread_type = "NONE"
            for at, part in _placed(container.decode(audio), begin, longest_gap(container)):
                decoded += len(part)
                if at >= len(sound):
                    break
                if at + len(part) > 0:
                    inside, first = True, max(0, at)
                    piece = part[first - at : len(sound) - at]
                    sound[first : first + len(piece)] = piece
    except (av.FFmpegError, ValueError, OSError) as error:
        reason = str(error).split(":")[0].split("] ")[-1]
        raise NoSound(f"sound track broken after {decoded / RATE:.1f} s ({reason})") from error
    if not decoded:
        raise NoSound("empty sound track")
    if not inside:
        raise NoSound("no sound while its pictures are shown")
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
    low, high = DECIBELS
    levels = np.empty((BANDS, count), np.uint8)
    for first in range(0, count, CHUNK):
        part = slice(first, first + CHUNK)
        power = np.abs(np.fft.rfft(windows[part] * hann, FFT)) ** 2 / (
            FFT * (hann**2).sum() / 4
        )  # [l, FFT / 2 + 1]
        level = 10 * np.log10(np.maximum(power @ mel_bank().T, 10 ** (low / 10)))
        levels[:, part] = ((np.clip(level, low, high) - low) * (255 / (high - low))).T.round()
    return levels


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
    """The inverse of `packed_spectrogram`; raises `DamagedRecord`, also by the checksums that a PNG holds."""
    import cv2

    _check_png(memoryview(record))
    return decode_picture(record, cv2.IMREAD_GRAYSCALE)


def _check_png(record: memoryview) -> None:
    """Raises `DamagedRecord` where a part of a PNG has another CRC-32 than it says."""
    at = 8
    while at + 12 <= len(record):
        (length,) = struct.unpack_from(">I", record, at)
        if at + 12 + length > len(record):
            break
        (check,) = struct.unpack_from(">I", record, at + 8 + length)
        if zlib.crc32(record[at + 4 : at + 8 + length]) != check:
            break
        at += 12 + length
    if at != len(record):
        raise DamagedRecord("is damaged: its picture has another checksum, or is cut short")


def _placed(frames: Iterator[Any], begin: float | None, longest: float) -> Iterator[tuple[int, Samples]]:
    """Mono float parts at `RATE`, each with the sample after `begin` at which it belongs.

    Frames follow one another without a seam; a stamp that is later by more than `SEAM` leaves a gap. One that is later
    by more than `longest`, or earlier by more than `BACK`, is of another clock, which is read on from there. A
    resampler of its own for every run of frames of one format.
    """
    import av

    resampler: Any = None
    form = None
    at, expected = 0, 0.0  # where the next part belongs, in samples, and the next frame, in seconds
    for frame in frames:
        if begin is None:
            begin = frame.time or 0.0
        second = expected if frame.time is None else frame.time - begin
        if resampler is not None and not -BACK <= second - expected <= longest:
            begin, second = begin + second - expected, expected
        gap = resampler is None or second - expected > SEAM
        if gap or form != _form(frame):
            for part in _rest(resampler):
                yield at, part
                at += len(part)
            if gap:
                at, expected = round(second * RATE), second
            resampler, form = av.AudioResampler("fltp", "mono", RATE), _form(frame)
        for made in resampler.resample(frame):
            part = made.to_ndarray()[0]
            yield at, part
            at += len(part)
        expected += frame.samples / frame.sample_rate
    yield from ((at, part) for part in _rest(resampler))


def _rest(resampler: Any) -> list[Samples]:
    """What a resampler still holds, in one part or none."""
    held = [] if resampler is None else [made.to_ndarray()[0] for made in resampler.resample(None)]
    return [np.concatenate(held)] if held else []


def _form(frame: Any) -> tuple[int, str, str]:
    return frame.sample_rate, frame.layout.name, frame.format.name
