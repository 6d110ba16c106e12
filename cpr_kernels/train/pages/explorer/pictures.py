"""Draws the thumbnails of a table's rows from images and videos: strips that play, or sheets of single frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ....video import UnreadableVideo, centre_square, timed_frames
from ....video_files import ENDINGS
from ..strips import StripFormat, encoded
from .packed import share

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".jp2")
VIDEOS = ENDINGS.difference(IMAGES)
RATE = 4.0  # frames a second of a strip
A_ROW = 480  # bytes of each row's picture in a page of packed.ROWS rows or more; of fewer, they share as much
STRIPS = 4_000  # rows; of more, none is a strip: every strip is a picture that the browser holds by itself
# From the best to the smallest; the first that fits is taken.
MOVING = (StripFormat(8, 96, False), StripFormat(6, 72, False, 65), StripFormat(4, 64, False, 55))
STILL = (
    StripFormat(1, 112, False), StripFormat(1, 80, False, 65), StripFormat(1, 64, False, 60),
    StripFormat(1, 64, False, 40), StripFormat(1, 64, False, 25), StripFormat(1, 48, False, 30),
    StripFormat(1, 32, False, 30), StripFormat(1, 32, False, 10),
)  # fmt: skip
COLUMNS = (
    16  # thumbnails across a sheet, and at most as many down: one file of many costs a fifth less than many
)
TRIED = 2 * COLUMNS  # files by which a format is judged

Frames = npt.NDArray[np.uint8]


class Pictures(NamedTuple):
    """Holds what the page shows of the rows: a strip each, or cells of sheets."""

    frames: int  # of each strip
    strips: list[str]  # base64; empty where the file cannot be read
    sheets: dict[str, Any] | None  # {columns, cells, data}: base64 of sheets of columns^2 cells
    cells: list[int | None]  # of each row, None where the file cannot be read
    unread: list[str]  # why, one line a file


def is_picture(name: str) -> bool:
    """Whether a name ends as files of images and videos do."""
    return Path(name).suffix.lower() in VIDEOS.union(IMAGES)


def pictures(paths: Sequence[Path], tick: Callable[[], None]) -> Pictures:
    """Returns the thumbnails of files of images and videos, as good as A_ROW allows.

    A strip shows the first seconds of a video. `tick` is called after each file.
    """
    form = _chosen(paths)
    unread: list[str] = []
    read: list[Frames] = []  # not yet in a sheet
    strips: list[str] = []
    data: list[str] = []
    cells: list[int | None] = []
    for path in paths:
        try:
            found: Frames | None = _joined(_squares(path, form.frames, form.size), form)
        except (UnreadableVideo, OSError, ValueError) as error:
            found = None
            unread.append(f"{path}: {error}")
        if form.frames > 1:
            strips.append("" if found is None else encoded(found, form.quality))
        else:
            cells.append(None if found is None else len(data) * COLUMNS**2 + len(read))
            read += [] if found is None else [found]
            if len(read) == COLUMNS**2:
                data.append(_sheet(read, form.quality))
                read = []
        tick()
    if read:
        data.append(_sheet(read, form.quality))
    count = sum(cell is not None for cell in cells)
    sheets = {"columns": COLUMNS, "cells": count, "data": data} if form.frames == 1 else None
    return Pictures(form.frames, strips, sheets, cells, unread)


def _chosen(paths: Sequence[Path]) -> StripFormat:
    """Returns the best format of which the pictures of all files fit, as far as some of the files say."""
    moving = len(paths) <= STRIPS and any(path.suffix.lower() in VIDEOS for path in paths)
    forms = (*MOVING, *STILL) if moving else STILL
    allowed = share(A_ROW, len(paths))
    largest = max(form.size for form in forms)
    tried = []
    for path in paths[:: max(1, len(paths) // TRIED)][:TRIED]:
        try:
            tried.append(_squares(path, forms[0].frames, largest))
        except (UnreadableVideo, OSError, ValueError):
            continue
    for form in forms:
        drawn = [_joined(squares, form) for squares in tried]
        parts = (
            [_sheet(drawn, form.quality)]
            if form.frames == 1 and drawn
            else [encoded(one, form.quality) for one in drawn]
        )
        if sum(map(len, parts)) * 3 / 4 <= allowed * len(tried):
            return form
    return forms[-1]


def _sheet(thumbnails: Sequence[Frames], quality: int) -> str:
    """Returns thumbnails [side, side, 3] as one picture, COLUMNS across; the free places of its last row are black."""
    rows = -(-len(thumbnails) // COLUMNS)
    cells = np.zeros((rows * COLUMNS, *thumbnails[0].shape), np.uint8)
    cells[: len(thumbnails)] = thumbnails
    side = cells.shape[1]
    grid = cells.reshape(rows, COLUMNS, side, side, 3).swapaxes(1, 2)
    return encoded(grid.reshape(rows * side, COLUMNS * side, 3), quality)


def _squares(path: Path, count: int, side: int) -> list[Frames]:
    """Returns up to `count` frames of a file, [side, side, 3]."""
    if path.suffix.lower() in VIDEOS:
        frames = [frame for frame, _ in islice(timed_frames(path, side, fps=RATE if count > 1 else 0), count)]
    else:
        frames = [_image(path)]
    if not frames:
        raise UnreadableVideo("no frame")
    return [centre_square(frame[None], side)[0] for frame in frames]


def _joined(squares: list[Frames], form: StripFormat) -> Frames:
    """Returns a format's frames side by side, [side, count * side, 3]; a short video's last one is repeated."""
    some = [centre_square(square[None], form.size)[0] for square in squares[: form.frames]]
    return np.concatenate(some + some[-1:] * (form.frames - len(some)), axis=1)


def _image(path: Path) -> Frames:
    """Returns an image as RGB [H, W, 3]."""
    import cv2

    found = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
    if found is None:
        raise ValueError("not an image that OpenCV reads")
    return np.ascontiguousarray(found[..., ::-1], np.uint8)
