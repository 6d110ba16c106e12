"""Draws flow and spectrograms as RGB pictures."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..data.sound import DECIBELS

STILL = 0.15  # share of a picture's speed that shows as white
SHOWN_DECIBELS = 60.0  # of a spectrogram, from its loudest place down


def flow_picture(flow: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Draws stored flow [T, H, W, 2] as one picture [H, W, 3]: direction as colour, fading to white as speed falls.

    It is the moment at which something moves most against the rest: 99th percentile less median of the speed. Below
    STILL of that moment's 99th percentile, and below 2 steps of the stored numbers, nothing counts as moving.
    """
    import cv2

    moved = flow.astype(np.float32) - 127.5
    speed = np.hypot(moved[..., 0], moved[..., 1])
    fast, middle = np.percentile(speed, [99, 50], axis=(1, 2))
    moment = int((fast - middle).argmax())
    u, v = moved[moment].transpose(2, 0, 1)
    scale = max(float(fast[moment]), 4.0)
    still = max(STILL * scale, 2.0)
    hue = (np.degrees(np.arctan2(v, u)) % 360).astype(np.float32)
    saturation = np.clip((speed[moment] - still) / (scale - still), 0, 1)
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
