"""The picture as a player shows it: turned, mirrored, and of the width that its pixels have."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from odd_videos import write
from train_sets import DRAFT

from cpr_kernels.train.data.decoding import FrameSettings
from cpr_kernels.train.data.prepare import prepare
from cpr_kernels.train.data.store import FrameStore
from cpr_kernels.video import UnreadableVideo, timed_frames, turned

ONE = 1 << 16
# Display matrices, and what each shows of an image.
MATRICES = {
    "plain": ([ONE, 0, 0, 0, ONE, 0, 0, 0, 1 << 30], lambda image: image),
    "90 clockwise": ([0, ONE, 0, -ONE, 0, 0, 48 * ONE, 0, 1 << 30], lambda image: np.rot90(image, -1)),
    "180": ([-ONE, 0, 0, 0, -ONE, 0, 64 * ONE, 48 * ONE, 1 << 30], lambda image: np.rot90(image, 2)),
    "270 clockwise": ([0, -ONE, 0, ONE, 0, 0, 0, 64 * ONE, 1 << 30], lambda image: np.rot90(image, 1)),
    "mirrored": ([-ONE, 0, 0, 0, ONE, 0, 64 * ONE, 0, 1 << 30], lambda image: image[:, ::-1]),
    "upside down": ([ONE, 0, 0, 0, -ONE, 0, 0, 48 * ONE, 1 << 30], lambda image: image[::-1]),
    "transposed": ([0, ONE, 0, ONE, 0, 0, 0, 0, 1 << 30], lambda image: image.swapaxes(0, 1)),
    "anti-transposed": (
        [0, -ONE, 0, -ONE, 0, 0, 48 * ONE, 64 * ONE, 1 << 30],
        lambda image: np.rot90(image, 2).swapaxes(0, 1),
    ),
    "zero": ([0] * 9, lambda image: image),
    "no inverse": ([-ONE, 0, 0, 0, 0, 0, 0, 0, 1 << 30], lambda image: image),
    "nearly upright": ([65000, 8000, 0, -8000, 65000, 0, 0, 0, 1 << 30], lambda image: image),
}


def scene(frames: int = 12) -> np.ndarray:
    """Four quarters of other colours, a dot that moves: [T, 48, 64, 3]."""
    clip = np.zeros((frames, 48, 64, 3), np.uint8)
    clip[:, :24, :32], clip[:, :24, 32:] = (230, 30, 30), (30, 200, 30)
    clip[:, 24:, :32], clip[:, 24:, 32:] = (30, 30, 230), (220, 220, 220)
    for t in range(frames):
        clip[t, 4:8, 2 * t : 2 * t + 4] = 0
    return clip


def like(image: np.ndarray, wanted: np.ndarray) -> bool:
    """Whether two images are the same up to coding."""
    return image.shape == wanted.shape and bool(np.abs(image.astype(int) - wanted.astype(int)).mean() < 12)


@pytest.mark.parametrize("name", MATRICES)
def test_a_display_matrix_turns_the_picture(name: str, tmp_path: Path) -> None:
    matrix, shown = MATRICES[name]
    image = scene(1)[0]
    assert np.array_equal(turned(image, matrix), shown(image))
    for ending in ("mp4", "mov"):
        [(frame, _), *_] = timed_frames(write(tmp_path / f"a.{ending}", scene(), matrix=matrix), 48)
        assert like(frame, shown(image)) and frame.flags.c_contiguous, ending


PIXELS = [
    (720, 576, Fraction(16, 15), 768),  # PAL, 4:3
    (720, 576, Fraction(64, 45), 1024),  # PAL, 16:9
    (720, 480, Fraction(8, 9), 640),  # NTSC, 4:3
    (1440, 1080, Fraction(4, 3), 1920),  # HDV
    (720, 576, None, 720),
]


@pytest.mark.parametrize(("width", "height", "pixel", "shown"), PIXELS)
def test_pixels_have_their_shape(
    width: int, height: int, pixel: Fraction, shown: int, tmp_path: Path
) -> None:
    clip = np.zeros((8, height, width, 3), np.uint8)
    clip[:, :, : width // 2] = 200
    how = {} if pixel is None else {"pixel": pixel}
    for ending in ("mp4", "mkv", "ts"):
        path = write(tmp_path / f"a.{ending}", clip, **how)
        [(whole, _), *_] = timed_frames(path, 4000)
        assert whole.shape == (height, shown, 3), ending
        [(small, _), *_] = timed_frames(path, 96)
        assert small.shape == (96, round(96 * shown / height), 3)
        edge = np.flatnonzero(small[48, :, 0] < 100)[0]
        assert abs(edge - small.shape[1] / 2) <= 1.5


def test_a_turned_picture_has_its_pixels_turned_too(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", scene(), pixel=Fraction(2), matrix=MATRICES["90 clockwise"][0])
    [(frame, _), *_] = timed_frames(path, 48)
    assert frame.shape == (128, 48, 3)
    with pytest.raises(UnreadableVideo, match="damaged: pixels 20:1"):
        next(timed_frames(write(tmp_path / "b.mp4", scene(), pixel=Fraction(20)), 48))


def test_prepare_stores_what_deploy_sees(tmp_path: Path) -> None:
    """Pictures and flow: a dot that goes right goes down where the picture is turned, left where it is mirrored."""
    moving = np.full((12, 48, 64, 3), 60, np.uint8)
    texture = np.random.default_rng(0).integers(120, 255, (6, 6, 3), np.uint8).repeat(4, 0).repeat(4, 1)
    for t in range(12):
        moving[t, 12:36, 8 + 2 * t : 32 + 2 * t] = texture
    directions = {
        "plain": (2, 0),
        "90 clockwise": (0, 2),
        "180": (-2, 0),
        "mirrored": (-2, 0),
        "upside down": (2, 0),
    }
    for name in directions:
        write(tmp_path / "v" / "x" / f"{name}.mp4", moving, matrix=MATRICES[name][0])
    write(tmp_path / "v" / "x" / "wide.mp4", moving, pixel=Fraction(3, 2))
    settings = FrameSettings(**{**DRAFT.__dict__, "size": 48, "flow": "full"})
    manifest, store = (
        prepare(tmp_path / "v", tmp_path / "d", settings, processes=1).manifest,
        FrameStore(tmp_path / "d"),
    )
    assert len(manifest.videos) == 6
    for video in manifest.videos:
        [(frame, _), *_] = timed_frames(tmp_path / "v" / video.id, 48)
        stored = store.frames(video.id, "rgb", 0, 1)[0]
        assert like(stored, frame), video.id
        name = Path(video.id).stem
        if name == "wide":
            assert stored.shape == (48, 96, 3)
            continue
        inside = np.zeros((48, 64), bool)
        inside[16:32, 16:28] = True
        flow = store.frames(video.id, "flow", 0, 1)[0][MATRICES[name][1](inside[..., None])[..., 0]]
        found = (flow.astype(float).mean(axis=0) - 127.5) * settings.flow_bound / 127.5
        assert found == pytest.approx(directions[name], abs=0.5), video.id
