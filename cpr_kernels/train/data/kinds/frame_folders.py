"""Reads a folder of frames as a video: img_00001.jpg, ..., and ready flow flow_x_00001.jpg, flow_y_00001.jpg."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ....video import UnreadableVideo, shrunk
from ....video_files import numbered_frames

Frame = npt.NDArray[np.uint8]
READY_BOUND = 20.0  # pixels: what 0 and 255 stand for in ready flow, as denseflow and mmaction2 write it
FLOW = ("flow_x", "flow_y")


def frames_of(folder: Path, size: int) -> Iterator[Frame]:
    """Yields the frames RGB [H, W, 3], shorter edge `size`; raises `UnreadableVideo`."""
    for path in _pictures(folder)[0]:
        yield _read(path, size, colour=True)


def ready_flow(folder: Path, size: int, bound: float) -> list[Frame] | None:
    """Returns the flow [2H, W] from each frame to the next, u above v, at the frames' size; None where there is none.

    Its pixels shrink with the pictures, and `bound` pixels are what 0 and 255 stand for.

    Raises:
        UnreadableVideo: fewer flow pictures than pairs of frames.
    """
    pictures, flow = _pictures(folder)
    if not any(flow):
        return None
    pairs = len(pictures) - 1
    if min(map(len, flow)) < pairs:
        counts = " and ".join(f"{len(paths)} {name}" for name, paths in zip(FLOW, flow))
        raise UnreadableVideo(
            f"{counts} pictures for {len(pictures)} frames, at least {pairs} of each are needed"
        )
    return [_scaled(across, down, size, bound) for across, down in zip(flow[0][:pairs], flow[1][:pairs])]


def _scaled(across: Path, down: Path, size: int, bound: float) -> Frame:
    """A pair of flow pictures at the stored size."""
    made = []
    for path in (across, down):
        whole = _decoded(path, colour=False)
        part = _shrink(whole, size)
        shrinking = min(part.shape[:2]) / min(whole.shape[:2])
        pixels = (part.astype(np.float32) - 127.5) * (READY_BOUND / 127.5 * shrinking)
        made.append(np.clip(pixels * (127.5 / bound) + 127.5, 0, 255).round().astype(np.uint8))
    if made[0].shape != made[1].shape:
        raise UnreadableVideo(f"{across.name} and {down.name} differ in size")
    return np.concatenate(made)


def _pictures(folder: Path) -> tuple[list[Path], tuple[list[Path], list[Path]]]:
    groups = numbered_frames([path.name for path in folder.iterdir()])
    names = {kind: [folder / name for name in group] for kind, group in groups.items()}
    flow = tuple(names.pop(kind, []) for kind in FLOW)
    if len(names) != 1:
        raise UnreadableVideo(f"frames of {len(names)} kinds ({', '.join(sorted(names))}); expected one")
    return next(iter(names.values())), (flow[0], flow[1])


def _read(path: Path, size: int, colour: bool) -> Frame:
    return _shrink(_decoded(path, colour), size)


def _decoded(path: Path, colour: bool) -> Frame:
    import cv2

    body = np.frombuffer(path.read_bytes(), np.uint8)
    picture: Any = (
        cv2.imdecode(body, cv2.IMREAD_COLOR_RGB if colour else cv2.IMREAD_GRAYSCALE) if len(body) else None
    )
    if picture is None:
        raise UnreadableVideo(f"{path.name} is no picture")
    return np.asarray(picture, np.uint8)


def _shrink(picture: Frame, size: int) -> Frame:
    import cv2

    height, width = picture.shape[:2]
    if min(height, width) <= size:
        return picture
    return np.asarray(
        cv2.resize(picture, shrunk(width, height, size), interpolation=cv2.INTER_AREA), np.uint8
    )
