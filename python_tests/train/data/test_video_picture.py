"""The picture as a player shows it: turned, mirrored, and of the width that its pixels have."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from odd_videos import av, write
from train_sets import DRAFT

from cpr_kernels.train.data.decoding import FrameSettings
from cpr_kernels.train.data.prepare import prepare
from cpr_kernels.train.data.store import FrameStore
from cpr_kernels.video import MAPS_HDR, UnreadableVideo, timed_frames, turned

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


MATRIX = {
    1: (0.2126, 0.0722),
    5: (0.299, 0.114),
    6: (0.299, 0.114),
    9: (0.2627, 0.0593),
}  # weights of red and blue
BARS = np.array(
    [(200, 50, 50), (50, 200, 50), (50, 50, 200), (255, 255, 255), (0, 0, 0), (128, 128, 128)], np.uint8
)


def write_yuv(path: Path, planes: np.ndarray, pixels: str, **tags: int) -> Path:
    """Writes 12 lossless frames of bars, 16 wide, of which `planes` [bars, 3] has luma and chroma."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 16 * len(planes), 32, pixels
        frame = av.VideoFrame(stream.width, stream.height, pixels)
        for plane, values in zip(frame.planes, planes.T):
            row = values.repeat(16).view(np.uint8)
            lines = np.zeros((plane.height, plane.line_size), np.uint8)
            lines[:, : len(row)] = row
            plane.update(lines)
        for name, tag in tags.items():
            setattr(frame, name, tag)
            setattr(stream.codec_context, name, tag)
        for i in range(12):
            frame.pts = i
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def bars_of(path: Path, size: int) -> np.ndarray:
    """The colours in the middle of the bars of the first frame."""
    [(frame, _), *_] = timed_frames(path, size)
    return frame[len(frame) // 2, frame.shape[1] // 12 :: frame.shape[1] // 6].astype(int)


@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("matrix", MATRIX)
def test_colours_follow_the_matrix_and_the_range_of_the_file(matrix: int, full: bool, tmp_path: Path) -> None:
    red, blue = MATRIX[matrix]
    rgb = BARS / 255
    luma = rgb @ [red, 1 - red - blue, blue]
    chroma = [(rgb[:, i] - luma) / (2 * (1 - weight)) for i, weight in ((2, blue), (0, red))]
    black, luma_range, chroma_range = (0, 255, 255) if full else (16, 219, 224)
    planes = np.stack([black + luma_range * luma, *(128 + chroma_range * one for one in chroma)], 1)
    planes = planes.round().clip(0, 255).astype(np.uint8)
    path = write_yuv(tmp_path / "a.mkv", planes, "yuv444p", colorspace=matrix, color_range=1 + full)
    for size in (32, 24):
        assert np.abs(bars_of(path, size) - BARS).max() <= 3


def pq(light: np.ndarray) -> np.ndarray:
    """SMPTE ST 2084: the signal of light in cd/m2."""
    power = (light / 10_000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375


def hlg(light: np.ndarray) -> np.ndarray:
    """ARIB STD-B67: the signal of scene light, 1 at most."""
    return np.where(
        light <= 1 / 12,
        np.sqrt(3 * light),
        0.17883277 * np.log(np.maximum(12 * light - 0.28466892, 1e-9)) + 0.55991073,
    )


@pytest.mark.skipif(int(av.__version__.partition(".")[0]) < MAPS_HDR, reason="PyAV 18 maps HDR")
@pytest.mark.parametrize(
    "curve", [pytest.param(16, id="PQ"), pytest.param(18, id="HLG", marks=pytest.mark.slow)]
)
def test_hdr_becomes_what_a_standard_screen_shows(curve: int, tmp_path: Path) -> None:
    light = np.array([0, 20.3, 50.75, 101.5, 203, 1000])  # white is 203 cd/m2, in HLG 75 % of the signal
    signal = pq(light) if curve == 16 else hlg(np.array([0, 0.039, 0.083, 0.148, 0.265, 1]))
    planes = np.full((6, 3), 512, np.uint16)
    planes[:, 0] = np.round(64 + 876 * signal)
    path = write_yuv(
        tmp_path / "a.mkv",
        planes,
        "yuv444p10le",
        colorspace=9,
        color_range=1,
        color_primaries=9,
        color_trc=curve,
    )
    shown = bars_of(path, 32)
    assert np.ptp(shown, axis=1).max() <= 2  # grey stays grey
    grey = shown[:, 1]
    assert grey[0] <= 2 and grey[4] >= 250 and grey[5] == 255
    if curve == 16:  # BT.1886 is a power of 2.4
        assert np.abs(grey[1:4] - 255 * (light[1:4] / 203) ** (1 / 2.4)).max() <= 6, grey
    assert (np.diff(grey) >= 0).all() and grey[2] > np.round(255 * signal[2]) - 10


def test_hdr_that_cannot_be_mapped_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planes = np.full((6, 3), 512, np.uint16)
    planes[:, 0] = np.arange(6) * 100 + 200
    path = write_yuv(tmp_path / "a.mkv", planes, "yuv444p10le", colorspace=9, color_range=1, color_trc=16)
    monkeypatch.setattr("cpr_kernels.video.MAPS_HDR", 10_000)
    frames = timed_frames(path, 32)
    assert len(list(frames)) == 12 and "HDR (PQ)" in frames.note


TO_709 = {  # linear light of D65 primaries to BT.709's
    9: [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]],
    12: [[1.2249, -0.2247, 0.0], [-0.0420, 1.0419, 0.0], [-0.0197, -0.0786, 1.0979]],
}


@pytest.mark.skipif(int(av.__version__.partition(".")[0]) < MAPS_HDR, reason="PyAV 18 maps primaries")
@pytest.mark.parametrize("primaries", [9, pytest.param(12, marks=pytest.mark.slow)])
def test_wide_primaries_become_those_of_a_standard_screen(primaries: int, tmp_path: Path) -> None:
    bars = np.array(
        [(150, 120, 120), (120, 150, 120), (120, 120, 150), (255, 255, 255), (0, 0, 0), (128, 128, 128)]
    )
    red, blue = MATRIX[1]
    luma = bars / 255 @ [red, 1 - red - blue, blue]
    chroma = [(bars[:, i] / 255 - luma) / (2 * (1 - weight)) for i, weight in ((2, blue), (0, red))]
    planes = np.stack([16 + 219 * luma, *(128 + 224 * one for one in chroma)], 1).round().astype(np.uint8)
    path = write_yuv(
        tmp_path / "a.mkv",
        planes,
        "yuv444p",
        colorspace=1,
        color_range=1,
        color_primaries=primaries,
        color_trc=1,
    )
    wanted = 255 * ((bars / 255) ** 2.4 @ np.array(TO_709[primaries]).T).clip(0, 1) ** (1 / 2.4)
    assert np.abs(bars_of(path, 32) - wanted).max() <= 3
    assert np.abs(wanted - bars).max() > 6  # it matters


def test_wide_primaries_that_cannot_be_mapped_are_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planes = np.full((6, 3), 128, np.uint8)
    path = write_yuv(tmp_path / "a.mkv", planes, "yuv444p", color_primaries=12)
    monkeypatch.setattr("cpr_kernels.video.MAPS_HDR", 10_000)
    frames = timed_frames(path, 32)
    assert len(list(frames)) == 12 and "of wide primaries (P3)" in frames.note
