"""Crops clips: one box for all frames of a clip."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Frames = npt.NDArray[np.uint8]


def resized_crop(
    frames: Frames, size: int, draws: npt.NDArray[np.float64] | None = None, min_area: float = 1.0
) -> Frames:
    """Cuts one box from all frames [T, H, W, C], resized to [T, size, size, C].

    `draws` [4] in 0..1 choose the area (`min_area` to 1 of the picture), the aspect (3/4 to 4/3) and the
    place; without them it is the largest centre square.
    """
    import cv2

    height, width = frames.shape[1:3]
    if draws is None:
        box_height = box_width = min(height, width)
        top, left = (height - box_height) // 2, (width - box_width) // 2
    else:
        area = height * width * (min_area + (1 - min_area) * draws[0])
        aspect = (3 / 4) ** (1 - 2 * draws[1])
        box_height = min(height, max(1, round((area / aspect) ** 0.5)))
        box_width = min(width, max(1, round((area * aspect) ** 0.5)))
        top, left = round((height - box_height) * draws[2]), round((width - box_width) * draws[3])
    box = frames[:, top : top + box_height, left : left + box_width]
    if box_height == box_width == size:
        return np.ascontiguousarray(box)
    shrinks = box_height > size and box_width > size
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.stack([cv2.resize(frame, (size, size), interpolation=how) for frame in box])


def corners(frames: Frames, size: int) -> Frames:
    """Returns centre and four corners [5, T, size, size, C] of frames whose shorter edge is resized to 8/7 of `size`.

    With their mirror images these are the ten crops of a test.
    """
    import cv2

    height, width = frames.shape[1:3]
    edge = round(size * 8 / 7)
    scale = edge / min(height, width)
    tall, wide = max(edge, round(height * scale)), max(edge, round(width * scale))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    resized = np.stack([cv2.resize(frame, (wide, tall), interpolation=how) for frame in frames])
    middle = ((tall - size) // 2, (wide - size) // 2)
    places = [middle, (0, 0), (0, wide - size), (tall - size, 0), (tall - size, wide - size)]
    return np.stack([resized[:, top : top + size, left : left + size] for top, left in places])
