"""Encodes the small pictures of pages: single frames, and strips of frames that play."""

from __future__ import annotations

import base64
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class StripFormat:
    """Sets how strips are drawn: frames of one strip, pixels of a frame's side, with flow below or without."""

    frames: int
    size: int
    flow: bool
    quality: int = 72


def encoded(picture: npt.NDArray[np.uint8], quality: int, kind: str = ".webp") -> str:
    """Returns an RGB picture [H, W, 3] in base64, as a WebP (half of a JPEG where pictures are small) or as `kind`.

    Raises:
        ValueError: a picture that OpenCV cannot encode.
    """
    import cv2

    setting = cv2.IMWRITE_JPEG_QUALITY if kind == ".jpg" else cv2.IMWRITE_WEBP_QUALITY
    good, body = cv2.imencode(kind, picture[..., ::-1], [setting, quality])
    if not good:
        raise ValueError(f"a picture of shape {picture.shape} cannot be encoded")
    return base64.b64encode(bytes(body)).decode()
