"""When is a frame shown? Variable rates, clocks that start late, jump or lack, and rates that differ."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from odd_videos import MS, av, pictures, write
from sound_files import sine
from train_sets import DRAFT

from cpr_kernels.train.data.decoding import FrameSettings, knots
from cpr_kernels.train.data.manifest import Manifest, Video
from cpr_kernels.train.data.prepare import prepare, rate_warning
from cpr_kernels.train.data.sound import HOP, RATE, read_sound
from cpr_kernels.train.data.store import FrameStore
from cpr_kernels.train.views import KNOWN
from cpr_kernels.video import at_rate, timed_frames

VARIABLE = [
    *(i / 25 for i in range(25)),
    *(1 + i / 5 for i in range(11)),
]  # a second at 25, two at 5 a second


def seconds(path: Path, **how: float) -> list[float]:
    return [round(second, 4) for _, second in timed_frames(path, 48, **how)]  # type: ignore[arg-type]


@pytest.mark.parametrize("ending", ["mkv", "mp4", "ts"])
def test_frames_are_shown_when_their_stamps_say(ending: str, tmp_path: Path) -> None:
    late = [7 + second for second in VARIABLE]
    assert seconds(write(tmp_path / f"a.{ending}", pictures(36), late)) == [round(t, 4) for t in VARIABLE]
    assert seconds(tmp_path / f"a.{ending}", stride=7) == [round(t, 4) for t in VARIABLE[::7]]


@pytest.mark.parametrize(("ending", "codec"), [("h264", "libx264"), ("m4v", "mpeg4"), ("avi", "libx264")])
def test_frames_without_a_stamp_follow_one_another(ending: str, codec: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{ending}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=50)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.max_b_frames = 2 if codec == "libx264" else 0
        for image in pictures(12):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        container.mux(stream.encode(None))
    frames = timed_frames(path, 48)
    assert [round(second, 4) for _, second in frames] == [round(i / 50, 4) for i in range(12)]
    assert frames.clock is not None and frames.clock.note == ""


def stamped(path: Path, stamps: list[int]) -> Path:
    """A file whose frames have these presentation times in ms, in this order."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        stream.time_base = MS
        for i, (image, stamp) in enumerate(zip(pictures(len(stamps)), stamps)):
            [packet] = stream.encode(av.VideoFrame.from_ndarray(image, "rgb24"))
            packet.time_base, packet.pts, packet.dts = MS, stamp, i
            container.mux(packet)
    return path


def test_times_never_go_back(tmp_path: Path) -> None:
    cases = {
        (1000, 1040, 1030, 1120): [0.0, 0.04, 0.04, 0.12],  # a little back: at once with the last
        (5000, 5040, 200, 5120, 5160): [0.0, 0.04, 0.08, 0.12, 0.16],  # one wrong stamp
        (5000, 5040, 200, 240, 280): [0.0, 0.04, 0.08, 0.12, 0.16],  # another clock from there on
        (0, 40, 36_000_000, 36_000_040): [0.0, 0.04, 0.08, 0.12],  # ten hours later
        (0, 40, 40, 80): [0.0, 0.04, 0.04, 0.08],
    }
    for number, (stamps, wanted) in enumerate(cases.items()):
        frames = timed_frames(stamped(tmp_path / f"{number}.mkv", list(stamps)), 48)
        assert [round(second, 4) for _, second in frames] == wanted
        assert frames.clock is not None
        said = (
            "" if number == 4 else "the times of 1 of its frames go back or jump; there each follows the last"
        )
        assert frames.clock.note == said


def test_joined_recordings_keep_sound_and_picture_together(tmp_path: Path) -> None:
    first = write(
        tmp_path / "1.ts", pictures(20), [900 + i / 25 for i in range(20)], sound=(sine(300, 0.8), 900)
    )
    second = write(tmp_path / "2.ts", pictures(20), sound=(sine(3000, 0.8), 0))
    for name, parts, pitches in (
        ("down", (first, second), (300, 3000)),
        ("up", (second, first), (3000, 300)),
    ):
        path = tmp_path / f"{name}.ts"
        path.write_bytes(b"".join(part.read_bytes() for part in parts))
        frames = timed_frames(path, 48)
        times = [second for _, second in frames]
        assert len(times) == 40 and np.diff(times) == pytest.approx(0.04, abs=1e-3)
        assert frames.clock is not None and frames.clock.note.startswith("the times of 1 of its frames")
        sound = read_sound(path, times[-1], frames.clock.origin)
        for pitch, half in zip(pitches, np.split(sound[: len(sound) // 2 * 2], 2)):
            piece = half[2000:-2000]
            loudest = np.abs(np.fft.rfft(piece)).argmax() * RATE / len(piece)
            assert loudest == pytest.approx(pitch, rel=0.02)


def test_a_gap_in_the_sound_is_silent_and_jitter_is_not_heard(tmp_path: Path) -> None:
    whole = sine(1000, 2.0)
    late, lost = whole[:8000], whole[16_000:24_000]
    path = write(tmp_path / "gap.mkv", pictures(50), sound=[(late, 10.25), (lost, 11.25)])
    sound = read_sound(path, 2.0, 10.0)
    wanted = np.zeros(2 * RATE, np.float32)
    wanted[4000:12_000], wanted[20_000:28_000] = late, lost
    assert np.abs(sound - wanted).max() < 1e-3
    pieces = [
        (piece, i / 10 + (0.01 if i % 2 else 0.0)) for i, piece in enumerate(np.split(whole[:16_000], 10))
    ]
    sound = read_sound(write(tmp_path / "jitter.mkv", pictures(50), sound=pieces), 1.0)
    assert np.abs(sound - whole[:16_000]).max() < 1e-3


@pytest.fixture(scope="module")
def variable(tmp_path_factory: pytest.TempPathFactory) -> tuple[Manifest, FrameStore]:
    """Variable rate, a beep from second 1.6 on; and the same cut out of a longer recording."""
    folder = tmp_path_factory.mktemp("variable")
    for name, begin in (("a.mkv", 0.0), ("b.ts", 4000.0)):
        at = [begin + second for second in VARIABLE]
        write(folder / "v" / "x" / name, pictures(36), at, sound=(sine(1000, 1.4), begin + 1.6))
    first, again = (prepare(folder / "v", folder / "d", DRAFT, processes=1) for _ in range(2))
    assert (first.stored, again.stored) == (2, 0)
    assert first.manifest == again.manifest == Manifest.load(folder / "d")
    return Manifest.load(folder / "d"), FrameStore(folder / "d")


def test_sound_and_picture_stay_together_where_the_rate_varies(variable: tuple[Manifest, FrameStore]) -> None:
    manifest, store = variable
    assert len(manifest.videos) == 2
    for video in manifest.videos:
        assert video.frames == 35 and video.silence == "" and video.note == ""
        assert video.knots == ((0, 0.0), (25, 1.0), (35, 3.0)) and video.fps == pytest.approx(
            35 / 3, abs=1e-3
        )
        spectrogram = store.spectrogram(video.id)
        assert spectrogram.shape == (128, 300)
        begun = np.flatnonzero(spectrogram.max(axis=0) > 150)[0]
        assert begun * HOP / RATE == pytest.approx(1.6, abs=0.03)
        # Frame 28 is shown at 1.6 s: a clip that ends there is silent, one that begins there is not.
        view = KNOWN["audio"]
        before, after = view.load(store, video, 20, 8), view.load(store, video, 28, 7)
        assert before.shape == (128, 128) and after.shape == (128, 140)
        assert np.array_equal(after, spectrogram[:, 160:300])
        assert np.array_equal(before, spectrogram[:, 56:184])  # around frames 20 to 28, 0.8 to 1.6 s


def test_old_data_sets_take_frames_for_evenly_spaced() -> None:
    video = Video("a", 0, 0, "train", 30, "")
    whole = np.tile(np.arange(300) % 256, (128, 1)).astype(np.uint8)
    assert video.second(10) is None
    assert np.array_equal(KNOWN["audio"].part(whole, video, 10, 20), whole[:, 100:300])


def test_a_polyline_holds_the_times() -> None:
    even = [i * 1001 / 30000 for i in range(300)]
    assert knots(even) == ((0, 0.0), (299, round(even[-1], 4)))
    assert knots([round(t, 3) for t in even]) == ((0, 0.0), (299, round(even[-1], 3)))
    random = np.random.default_rng(0).random(200).cumsum()
    corners = knots(random.tolist())
    assert np.abs(np.interp(np.arange(200), *zip(*corners)) - random).max() < 0.0051
    assert knots([0.0, 0.0, 0.0]) == ((0, 0.0), (2, 0.0))


def test_resampling_takes_the_nearest_frame_in_time() -> None:
    def taken(times: list[float], fps: float) -> list[int]:
        frames = at_rate(((np.full((1, 1, 3), i, np.uint8), t) for i, t in enumerate(times)), fps)
        found = [(int(frame[0, 0, 0]), second) for frame, second in frames]
        assert [second for _, second in found] == [i / fps for i in range(len(found))]
        return [frame for frame, _ in found]

    assert taken([i / 25 for i in range(9)], 25) == list(range(9))
    assert taken([i / 60 for i in range(9)], 30) == [0, 2, 4, 6, 8]
    assert taken([i / 15 for i in range(4)], 30) == [0, 0, 1, 1, 2, 2, 3]  # of two as near the earlier
    assert taken([i / 30 for i in range(7)], 25) == [0, 1, 2, 4, 5, 6]
    assert taken([0.0, 0.09, 0.1, 0.1, 0.31], 10) == [0, 2, 3, 4]
    assert taken([0.0], 10) == [0] and taken([], 10) == []


def moving(rate: int, length: float = 0.8) -> np.ndarray:
    """A textured square that moves by 30 pixels a second, seen `rate` times a second: [T, 48, 64, 3]."""
    rng = np.random.default_rng(1)
    ground = rng.integers(60, 100, (12, 16, 3), np.uint8).repeat(4, 0).repeat(4, 1)
    square = rng.integers(120, 255, (5, 5, 3), np.uint8).repeat(4, 0).repeat(4, 1)
    clip = np.repeat(ground[None], round(length * rate), axis=0)
    for t in range(len(clip)):
        left = 4 + round(30 * t / rate)
        clip[t, 14:34, left : left + 20] = square
    return clip


def test_mixed_rates_are_told_and_fps_makes_flow_mean_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from cpr_kernels.__main__ import main

    for rate in (15, 30, 60):
        clip = moving(rate)
        write(tmp_path / "v" / "x" / f"{rate}.mkv", clip, [i / rate for i in range(len(clip))], codec="ffv1")
    options = f"--videos {tmp_path / 'v'} --size 48 --min-frames 9 --flow-bound 8 --processes 1"
    command = ["prepare", *options.split()]
    assert main([*command, "--out", str(tmp_path / "own")]) == 0
    said = " ".join("".join(capsys.readouterr()).split())
    assert "frame rates differ: 15 to 60 a second, median 30" in said and "--fps R" in said
    assert main([*command, "--out", str(tmp_path / "alike"), "--fps", "15"]) == 0
    assert "frame rates differ" not in " ".join("".join(capsys.readouterr()).split())
    flows: dict[str, list[float]] = {}
    for name, rates in (("own", [15, 30, 60]), ("alike", [15, 15, 15])):
        manifest, store = Manifest.load(tmp_path / name), FrameStore(tmp_path / name)
        assert [video.fps for video in manifest.videos] == pytest.approx(rates, abs=0.1)
        for video in manifest.videos:
            flow = store.frames(video.id, "flow", 2, 6).astype(float)[..., 0]
            inside = [flow[t, 18:30, 10 + round(30 * (t + 2) / video.fps) :][:, :8] for t in range(6)]
            flows.setdefault(name, []).append(float((np.median(inside) - 127.5) * 8 / 127.5))
    assert flows["own"] == pytest.approx([2.0, 1.0, 0.5], abs=0.3)
    assert flows["alike"] == pytest.approx([2.0, 2.0, 2.0], abs=0.3)
    assert Manifest.load(tmp_path / "alike").settings.fps == 15


def test_a_rate_above_the_videos_own_is_told(tmp_path: Path) -> None:
    write(tmp_path / "v" / "x" / "a.mkv", pictures(15), [i / 10 for i in range(15)])
    prepared = prepare(
        tmp_path / "v", tmp_path / "d", FrameSettings(**{**DRAFT.__dict__, "fps": 25.0}), processes=1
    )
    [video] = prepared.manifest.videos
    assert video.note == "10 frames a second are repeated up to 25, with no flow between copies"
    assert video.fps == 25 and video.frames == 35 and rate_warning(prepared.manifest) == ""
    with pytest.raises(ValueError, match="give one"):
        FrameSettings(fps=25, fps_stride=2)
    with pytest.raises(ValueError, match="fps must be at least 0"):
        FrameSettings(fps=-1)
