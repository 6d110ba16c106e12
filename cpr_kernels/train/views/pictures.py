"""Draws flow and spectrograms as RGB pictures."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..data.sound import DECIBELS

SHOWN_DECIBELS = 60.0  # of a spectrogram, from its loudest place down


def flow_picture(flow: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Draws stored flow [T, H, W, 2] as one picture [H, W, 3]: direction as colour, white where nothing moves.

    Each pixel shows its fastest moment.
    """
    import cv2

    moved = flow.astype(np.float32) - 127.5
    speed = np.hypot(moved[..., 0], moved[..., 1])
    fastest = speed.argmax(axis=0)[None, ..., None]
    u, v = np.take_along_axis(moved, fastest, axis=0)[0].transpose(2, 0, 1)
    peak = speed.max(axis=0)
    scale = max(float(np.percentile(peak, 99)), 4.0)
    hue = (np.degrees(np.arctan2(v, u)) % 360).astype(np.float32)
    saturation = np.clip(peak / scale, 0, 1)
    picture = cv2.cvtColor(np.stack([hue, saturation, np.ones_like(hue)], axis=-1), cv2.COLOR_HSV2RGB)
    return np.asarray((picture * 255).round(), np.uint8)


def spectrogram_picture(
    spectrogram: npt.NDArray[np.uint8], width: int = 96, height: int = 48
) -> npt.NDArray[np.uint8]:
    """Draws a stored spectrogram [bands, L] as a picture [height, width, 3]: time to the right, high bands above.

    Colours run from dark blue to yellow (viridis) over the 60 dB below its own loudest place.
    """
    import cv2

    low, high = DECIBELS
    small = cv2.resize(spectrogram[::-1].astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
    span = SHOWN_DECIBELS * 255 / (high - low)
    level = (small - (small.max() - span)) / span
    grey = np.asarray((np.clip(level, 0, 1) * 255).round(), np.uint8)
    return np.asarray(cv2.applyColorMap(grey, cv2.COLORMAP_VIRIDIS)[..., ::-1], np.uint8)
