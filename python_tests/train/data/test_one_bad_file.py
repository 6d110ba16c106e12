"""One file never ends a run: late sound, odd names, covers, files that vanish, decoders that fail or die."""

from __future__ import annotations

import os
import tracemalloc
from concurrent.futures import ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from odd_videos import av, pictures, write
from sound_files import sine
from train_sets import DRAFT

from cpr_kernels.train.data import sound as sounds
from cpr_kernels.train.data import workers as room
from cpr_kernels.train.data.prepare import prepare
from cpr_kernels.train.data.sound import NoSound, log_mel, read_sound
from cpr_kernels.train.data.sources import Source
from cpr_kernels.train.data.workers import Reading, read_one
from cpr_kernels.video import UnreadableVideo, timed_frames

TEN_HOURS = 36_000.0


def test_every_odd_file_is_stored_or_named(tmp_path: Path) -> None:
    folder = tmp_path / "v" / "x"
    beep = sine(1000, 0.8)
    write(folder / "good.mkv", pictures(20), sound=(beep, 0.0))
    write(folder / "late sound.mkv", pictures(20), sound=(beep, TEN_HOURS))
    late = [TEN_HOURS + i / 25 for i in range(20)]
    write(folder / "late pictures.mkv", pictures(20), late, sound=(beep, 0.0))
    write(folder / "a frame a minute.mkv", pictures(12), [60.0 * i for i in range(12)], sound=(beep, 0.0))
    write(folder / "12:30:05.mp4", pictures(20), sound=(beep, 0.0))
    write(folder / "cover.mkv", pictures(20), cover=True, sound=(beep, 0.0))
    write(folder / "cover.mp4", pictures(20), cover=True, sound=(beep, 0.0))
    only_a_cover(folder / "only a cover.mp4")
    (folder / "rubbish.mp4").write_bytes(bytes(range(256)) * 40)
    manifest = prepare(tmp_path / "v", tmp_path / "d", DRAFT, processes=2).manifest
    assert {Path(video.id).name: video.silence for video in manifest.videos} == {
        "good.mkv": "",
        "late sound.mkv": "no sound while its pictures are shown",
        "late pictures.mkv": "no sound while its pictures are shown",
        "a frame a minute.mkv": "no sound of pictures that are 2 s apart or more",
        "12:30:05.mp4": "",
        "cover.mkv": "",
        "cover.mp4": "",
    }
    assert {video.frames for video in manifest.videos} == {19, 11}
    reasons = dict(manifest.skipped)
    assert reasons["x/only a cover.mp4"] == "no video stream, only a cover picture"
    assert reasons["x/rubbish.mp4"].startswith("not a video") and len(reasons) == 2


def only_a_cover(path: Path) -> None:
    """Sound with a picture of its album."""
    with av.open(str(path), "w") as container:
        cover = container.add_stream("mjpeg", rate=25)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        track = container.add_stream("aac", rate=16_000, layout="mono")
        container.mux(
            [*cover.encode(av.VideoFrame.from_ndarray(pictures(1)[0], "rgb24")), *cover.encode(None)]
        )
        frame = av.AudioFrame.from_ndarray(sine(440, 0.064)[None], "fltp", "mono")
        frame.sample_rate, frame.pts = 16_000, 0
        container.mux([*track.encode(frame), *track.encode(None)])


def test_a_cover_is_not_the_video(tmp_path: Path) -> None:
    for ending in ("mkv", "mp4"):
        path = write(tmp_path / f"a.{ending}", pictures(20), cover=True)
        frames = [frame for frame, _ in timed_frames(path, 48)]
        assert len(frames) == 20 and frames[0].shape == (48, 64, 3), ending


def test_memory_is_that_of_the_clip_whatever_the_stamps(tmp_path: Path) -> None:
    beep = sine(1000, 4.0)
    for name, begin in (("late.mkv", TEN_HOURS), ("early.mkv", 0.0)):
        path = write(tmp_path / name, pictures(20), sound=(beep, begin))
        tracemalloc.start()
        with pytest.raises(NoSound, match="no sound while its pictures are shown"):
            read_sound(path, 0.8, TEN_HOURS - begin)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 4 << 20, name  # ten hours are 2 GiB


def test_a_spectrogram_made_in_parts_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).standard_normal(16_000).astype(np.float32) / 8
    whole = log_mel(noise)
    monkeypatch.setattr(sounds, "CHUNK", 7)
    assert np.array_equal(log_mel(noise), whole)


def test_a_name_that_spells_a_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("12:30:05.mp4"), pictures(20), sound=(sine(1000, 0.8), 0.0))
    Path(os.fsdecode(b"\xff\xe9.mp4")).write_bytes(Path("12:30:05.mp4").read_bytes())
    for name in ("12:30:05.mp4", os.fsdecode(b"\xff\xe9.mp4")):
        reading = read_one(Path(name), DRAFT)
        assert isinstance(reading, Reading) and reading.entry["frames"] == 19 and reading.audio


def test_a_file_that_vanishes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.mkv", pictures(20), sound=(sine(1000, 0.8), 0.0))
    size = path.stat().st_size

    def read_then_lost(path: Path, *settings: Any) -> Any:
        pictures = whole(path, *settings)
        path.unlink()
        return pictures

    whole = room.read_views
    monkeypatch.setattr(room, "read_views", read_then_lost)
    reading = read_one(path, DRAFT)
    assert isinstance(reading, Reading) and reading.entry["bytes"] == size
    assert reading.audio == b"" and reading.entry["silence"].startswith("sound track broken after 0.0 s")
    assert read_one(path, DRAFT) == "missing file"
    with pytest.raises(UnreadableVideo, match="missing file"):
        next(timed_frames(path, 48))
    with pytest.raises(UnreadableVideo, match="File name too long"):
        next(timed_frames(tmp_path / ("a" * 300), 48))


def test_whatever_a_decoder_raises_names_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.mkv", pictures(20), sound=(sine(1000, 0.8), 0.0))

    def failing(*_: Any) -> Any:
        raise RuntimeError("no\nframe")

    with monkeypatch.context() as patch:
        patch.setattr(room, "read_sound", failing)
        reading = read_one(path, DRAFT)
        assert isinstance(reading, Reading) and len(reading.rgb) == 19
        assert reading.entry["silence"] == "its sound's decoder failed (RuntimeError: no frame)"
    with monkeypatch.context() as patch:
        patch.setattr(room, "read_views", failing)
        assert read_one(path, DRAFT) == "its decoder failed (RuntimeError: no frame)"


def test_a_pool_that_breaks_between_two_files_loses_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = []
    for i in range(2):
        path = write(tmp_path / f"{i}.mkv", pictures(12))
        sources.append(Source(path.name, str(path), "x", path.name))
    fresh, made = room._pool, []

    def broken_at_first(processes: int) -> ProcessPoolExecutor:
        made.append(pool := fresh(processes))
        if len(made) == 1:
            wait([pool.submit(os._exit, 1)])
        return pool

    monkeypatch.setattr(room, "_pool", broken_at_first)
    found = {source.id: outcome for source, outcome in room.read_all(sources, DRAFT, 1)}
    assert sorted(found) == ["0.mkv", "1.mkv"]
    assert all(isinstance(outcome, Reading) for outcome in found.values()) and len(made) > 1
