"""Folders of frames are read as videos, with the flow pictures that are beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("cv2", reason="the trainer's packages: pip install 'cpr_kernels[train]'")

import cv2

from cpr_kernels.train.data.decoding import FrameSettings, decode_flow, decode_rgb, knots, read_views
from cpr_kernels.train.data.workers import read_one
from cpr_kernels.video import UnreadableVideo
from cpr_kernels.video_files import walk

SETTINGS = FrameSettings(size=32, min_frames=4, flow="draft", jpeg_quality=100)
COUNT = 6


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    """A texture that moves by 2 pixels a frame to the right: [T, 64, 96, 3]."""
    ground = np.random.default_rng(0).integers(0, 255, (16, 30, 3), np.uint8).repeat(4, 0).repeat(4, 1)
    return np.stack([ground[:, 20 - 2 * t : 116 - 2 * t] for t in range(COUNT)])


def written(folder: Path, clip: np.ndarray, flow: int = 0) -> Path:
    folder.mkdir()
    for i, frame in enumerate(clip, start=1):
        cv2.imwrite(str(folder / f"img_{i:05}.png"), frame[..., ::-1])
    for i in range(1, flow + 1):
        for name, pixels in (("flow_x", 2.0), ("flow_y", -4.0)):
            value = round(pixels * 127.5 / 20 + 127.5)
            cv2.imwrite(str(folder / f"{name}_{i:05}.png"), np.full(clip.shape[1:3], value, np.uint8))
    return folder


def test_frames_become_views_and_ready_flow_shrinks_with_them(tmp_path: Path, clip: np.ndarray) -> None:
    pictures = read_views(written(tmp_path / "v", clip, flow=COUNT - 1), SETTINGS)
    assert len(pictures.rgb) == len(pictures.flow) == COUNT - 1
    first = decode_rgb(pictures.rgb[0])
    assert first.shape == (32, 48, 3)
    shrunk = cv2.resize(clip[0], (48, 32), interpolation=cv2.INTER_AREA)
    assert np.corrcoef(first.mean(-1).ravel(), shrunk.mean(-1).ravel())[0, 1] > 0.9  # JPEG halves its colours
    flow = decode_flow(pictures.flow[2])
    pixels = (flow.astype(float) - 127.5) * 20 / 127.5
    assert flow.shape == (32, 48, 2) and np.allclose(
        pixels.mean((0, 1)), (1, -2), atol=0.1
    )  # half of 2 and -4
    near = read_views(tmp_path / "v", FrameSettings(size=32, min_frames=4, flow_bound=5, jpeg_quality=100))
    fine = (decode_flow(near.flow[2]).astype(float) - 127.5) * 5 / 127.5
    assert np.allclose(fine.mean((0, 1)), (1, -2), atol=0.1)


def test_without_flow_pictures_it_is_estimated(tmp_path: Path, clip: np.ndarray) -> None:
    folder = written(tmp_path / "v", clip)
    flow = np.stack([decode_flow(one) for one in read_views(folder, SETTINGS).flow]).astype(float)
    across = (flow[:, 8:-8, 8:-8, 0] - 127.5) * 20 / 127.5
    assert np.median(across) == pytest.approx(1.0, abs=0.25)
    twice = read_views(folder, FrameSettings(size=32, min_frames=3, fps_stride=2, flow="draft"))
    assert len(twice.rgb) == 2 and knots(twice.times) == ()


def test_an_entry_of_a_folder_knows_no_times(tmp_path: Path, clip: np.ndarray) -> None:
    reading = read_one(written(tmp_path / "v", clip, COUNT), SETTINGS)
    assert not isinstance(reading, str)
    entry = reading.entry
    assert (entry["frames"], entry["fps"], entry["silence"]) == (
        COUNT - 1,
        0.0,
        "no sound of a folder of frames",
    )
    assert len(entry["knots"]) == 0 and reading.audio == b""


def test_what_is_wrong_with_a_folder_is_one_line(tmp_path: Path, clip: np.ndarray) -> None:
    folder = written(tmp_path / "v", clip, flow=3)
    with pytest.raises(
        UnreadableVideo, match="3 flow_x and 3 flow_y pictures for 6 frames, at least 5 of each"
    ):
        read_views(folder, SETTINGS)
    with pytest.raises(UnreadableVideo, match="has no times, so --fps cannot resample it"):
        read_views(folder, FrameSettings(size=32, fps=10))
    with pytest.raises(UnreadableVideo, match="too short: 6 frames, at least 17"):
        read_views(written(tmp_path / "w", clip), FrameSettings(size=32, flow="draft"))
    (tmp_path / "w/img_00002.png").write_bytes(b"none")
    assert read_one(tmp_path / "w", SETTINGS) == "img_00002.png is no picture"
    (tmp_path / "w/img_00002.png").write_bytes(b"")
    assert read_one(tmp_path / "w", SETTINGS) == "img_00002.png is no picture"
    cv2.imwrite(str(tmp_path / "w/img_00002.png"), clip[0, :40])
    assert read_one(tmp_path / "w", SETTINGS) == "the frame size changes inside the video"


def test_folders_that_are_nearly_frames_are_told(tmp_path: Path) -> None:
    names = {
        "good": ["img_1.jpg", "img_2.jpg", "img_3.jpg", "Thumbs.db", "desktop.ini", ".DS_Store"],
        "gap": ["img_1.jpg", "img_2.jpg", "img_4.jpg"], "kinds": ["img_1.jpg", "img_2.jpg", "flow_u_1.jpg"],
        "photos": ["a.jpg", "b.jpg"],
    }  # fmt: skip
    for folder, inside in names.items():
        for name in inside:
            (tmp_path / "Run" / folder).mkdir(parents=True, exist_ok=True)
            (tmp_path / "Run" / folder / name).write_text(name)
    found, passed_over = walk(tmp_path, frames=True)
    assert found == ["Run/good"]
    assert dict(passed_over) == {
        "Run/gap/": "numbers of frames have a gap: 1 missing from 1 to 4",
        "Run/kinds/": "numbered pictures of several names, so no folder of frames: flow_u, img",
        "Run/photos/a.jpg": "picture", "Run/photos/b.jpg": "picture",
    }  # fmt: skip
