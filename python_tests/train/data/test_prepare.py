"""From video files to the stored frames: what is read, what is skipped, and what a kill leaves behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from forked import Program
from places import ROOT, SHARED_DATA
from train_sets import DRAFT

from cpr_kernels.train import TrainError
from cpr_kernels.train.data.decoding import FrameSettings, read_frames
from cpr_kernels.train.data.manifest import Manifest
from cpr_kernels.train.data.prepare import prepare
from cpr_kernels.train.data.sources import list_sources
from cpr_kernels.train.data.store import FrameStore
from cpr_kernels.train.data.synthetic import write_mp4

pytest_plugins = ["train_fixtures"]

Frames = np.ndarray


def moving_square(frames: int, dx: int, dy: int, size: int = 48) -> Frames:
    """A textured square that moves by (dx, dy) pixels a frame on a still textured ground."""
    rng = np.random.default_rng(0)
    ground = rng.integers(60, 120, (size // 4, size // 4, 3), np.uint8).repeat(4, 0).repeat(4, 1)
    square = rng.integers(120, 255, (4, 4, 3), np.uint8).repeat(5, 0).repeat(5, 1)
    clip = np.repeat(ground[None], frames, axis=0)
    for t in range(frames):
        top, left = 18 + dy * t, 8 + dx * t
        clip[t, top : top + 20, left : left + 20] = square
    return clip


def stored(out: Path) -> dict[bytes, bytes]:
    """Every record of a data set, without the entries' file times."""
    store = FrameStore(out)
    store.close()  # another process may have let it grow
    with store.env.begin() as transaction:
        return {key: value for key, value in transaction.cursor() if not key.startswith(b"entry/")}


def test_folder_becomes_frames_and_flow(data: Path) -> None:
    manifest = Manifest.load(data)
    assert len(manifest.videos) == 72 and len(manifest.classes) == 9 and manifest.skipped == []
    assert sum(video.split == "test" for video in manifest.videos) == 18
    groups = {(video.label, video.group) for video in manifest.videos}
    assert len(groups) == 36 and all(video.frames == 13 for video in manifest.videos)
    store = FrameStore(data)
    rgb, flow = (store.frames(manifest.videos[0].id, view, 4, 5) for view in ("rgb", "flow"))
    assert (
        rgb.shape == (5, 32, 32, 3) and flow.shape == (5, 32, 32, 2) and rgb.dtype == flow.dtype == np.uint8
    )
    with pytest.raises(TrainError, match=r"data: rgb of .* has 13 frames, wanted"):
        store.frames(manifest.videos[0].id, "rgb", 10, 4)


def test_flow_has_the_direction_and_size_of_the_motion(tmp_path: Path) -> None:
    write_mp4(tmp_path / "v" / "right" / "a.mp4", moving_square(10, 2, 0))
    write_mp4(tmp_path / "v" / "up" / "a.mp4", moving_square(10, 0, -1))
    prepare(tmp_path / "v", tmp_path / "d", FrameSettings(size=48, min_frames=9, flow_bound=8.0), processes=1)
    manifest, store = Manifest.load(tmp_path / "d"), FrameStore(tmp_path / "d")
    for video, moved in zip(manifest.videos, [(2.0, 0.0), (0.0, -1.0)]):
        flow = store.frames(video.id, "flow", 0, 1)[0].astype(float)
        inside = (flow[22:34, 12:24].mean(axis=(0, 1)) - 127.5) * 8.0 / 127.5
        assert np.abs(inside - moved).max() < 0.35, (video.id, inside)
        still = (flow[:8, :8].mean(axis=(0, 1)) - 127.5) * 8.0 / 127.5
        assert np.abs(still).max() < 0.2


def test_bad_files_are_skipped_with_their_reason(clip_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "v"
    good = sorted((clip_folder / "train" / "SwingRound").glob("*.mp4"))
    (folder / "SwingRound").mkdir(parents=True)
    for path in good:
        shutil.copy(path, folder / "SwingRound")
    (folder / "SwingRound" / "cut.mp4").write_bytes(good[0].read_bytes()[:1500])
    damaged = bytearray(good[1].read_bytes())
    start = damaged.find(b"mdat") + (damaged.find(b"moov") - damaged.find(b"mdat")) * 3 // 4
    damaged[start : damaged.find(b"moov") - 4] = b"\xff" * (damaged.find(b"moov") - 4 - start)
    (folder / "SwingRound" / "damaged.mp4").write_bytes(damaged)
    (folder / "SwingRound" / "empty.mp4").touch()
    (folder / "SwingRound" / "notes.txt").write_text("not a video")
    (folder / "loose.mp4").write_bytes(good[0].read_bytes())
    write_mp4(folder / "Short" / "short.mp4", np.zeros((5, 32, 32, 3), np.uint8))
    write_mp4(folder / "Still" / "still.mp4", np.zeros((12, 32, 32, 3), np.uint8))
    (folder / "Nothing").mkdir()
    prepared = prepare(folder, tmp_path / "d", DRAFT)
    reasons = dict(prepared.manifest.skipped)
    assert [video.id for video in prepared.manifest.videos] == [f"SwingRound/{path.name}" for path in good]
    assert prepared.manifest.classes == ["SwingRound"]
    assert reasons["Short/short.mp4"] == "too short: 5 frames, at least 9 are needed"
    assert reasons["Still/still.mp4"] == "no motion: all 12 frames are the same"
    assert reasons["Nothing/"] == "empty folder"
    assert reasons["loose.mp4"] == "not inside a class folder"
    assert reasons["SwingRound/notes.txt"] == "text"
    for name in ("cut.mp4", "empty.mp4"):
        assert reasons[f"SwingRound/{name}"].startswith("not a video"), reasons
    assert reasons["SwingRound/damaged.mp4"].startswith("broken after ")
    assert len((tmp_path / "d" / "skipped.txt").read_text().splitlines()) == 8


def test_csv_lists_splits_groups_and_missing_files(clip_folder: Path, tmp_path: Path) -> None:
    videos = sorted(clip_folder.rglob("*.mp4"))[:4]
    rows = [f"{path},thing,{'test' if i == 0 else 'train'},source{i // 2}" for i, path in enumerate(videos)]
    table = tmp_path / "list.csv"
    table.write_text(
        "\n".join(["path,label,split,group", *rows, "gone.mp4,thing,train,", f"{videos[1]},thing,,"])
    )
    prepared = prepare(table, tmp_path / "d", DRAFT, processes=1)
    assert [(video.split, video.group) for video in prepared.manifest.videos] == [
        ("test", 0), ("train", 0), ("train", 1), ("train", 1),
    ]  # fmt: skip
    reasons = dict(prepared.manifest.skipped)
    assert reasons["gone.mp4"] == "missing file" and reasons[str(videos[1])] == "listed twice: line 7"
    table.write_text("file,class\na,b\n")
    with pytest.raises(TrainError, match=r"needs a header with path\[,label"):
        list_sources(table)
    for body in (b"\xff\xfe\x00p", videos[0].read_bytes()):  # another encoding; a video where a list belongs
        table.write_bytes(body)
        with pytest.raises(TrainError, match=r"list\.csv (is a file, and no CSV in UTF-8|needs a header)"):
            list_sources(table)
    table.write_text("path,label,split\na,b,both\n")
    with pytest.raises(TrainError, match="line 2: split must be train, val or test, got 'both'"):
        list_sources(table)


def test_split_keeps_sources_together(tmp_path: Path) -> None:
    for group in range(5, 11):
        for clip in (1, 2):
            (tmp_path / "Run").mkdir(exist_ok=True)
            (tmp_path / "Run" / f"v_Run_g{group:02}_c{clip:02}.avi").touch()
    for i in range(8):
        (tmp_path / "Jump").mkdir(exist_ok=True)
        (tmp_path / "Jump" / f"{i}.mp4").touch()
    sources = list_sources(tmp_path).sources
    ucf = {source.group: source.split for source in sources if source.label == "Run"}
    assert ucf == {f"Run/g{g:02}": "test" if g <= 7 else "train" for g in range(5, 11)}
    assert sum(source.split == "test" for source in sources if source.label == "Jump") == 2
    assert sources == list_sources(tmp_path).sources


def test_other_settings_or_nothing_usable_is_an_error(clip_folder: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=r"other settings \(size 32 -> 40\)"):
        prepare(clip_folder, data, FrameSettings(**{**DRAFT.__dict__, "size": 40}))
    (tmp_path / "v" / "a").mkdir(parents=True)
    with pytest.raises(TrainError, match="no video found"):
        prepare(tmp_path / "v", tmp_path / "d", DRAFT)
    (tmp_path / "v" / "a" / "b.mp4").write_text("x")
    with pytest.raises(TrainError, match=r"none of the 1 files .* could be used"):
        prepare(tmp_path / "v", tmp_path / "d", DRAFT)
    with pytest.raises(TrainError, match="is not finished"):
        Manifest.load(tmp_path / "d")
    with pytest.raises(TrainError, match="does not exist"):
        prepare(tmp_path / "absent", tmp_path / "d", DRAFT)


def start_prepare(videos: Path, out: Path) -> Program:
    """`cpr prepare` with the settings of `DRAFT`, running, with at least two videos stored."""
    options = ["--size", "32", "--frames", "40", "--min-frames", "9", "--flow", "draft", "--flow-bound", "8"]
    command = ["-m", "cpr_kernels", "prepare", "--videos", videos, "--out", out]
    process = Program([*command, *options], cwd=ROOT)
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline and not ((out / "data.mdb").is_file() and len(stored(out)) >= 5):
        time.sleep(0.02)
    return process


def workers_of(process: Program) -> list[int]:
    """The decoding processes of a running prepare: the children of its server of processes."""

    def children(pid: int) -> list[int]:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    [server] = [
        pid for pid in children(process.pid) if "forkserver" in Path(f"/proc/{pid}/cmdline").read_text()
    ]
    return children(server)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc to see the worker processes")
def test_killed_prepare_resumes_with_nothing_lost_or_doubled(
    clip_folder: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "d"
    process = start_prepare(clip_folder, out)
    workers = workers_of(process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = len(stored(out)) // 2
    assert 2 <= before < 72 and not (out / "manifest.json").exists()
    with pytest.raises(TrainError, match="not finished"):
        Manifest.load(out)
    prepared = prepare(clip_folder, out, DRAFT)
    assert prepared.kept == before and prepared.kept + prepared.stored == 72
    assert stored(out) == stored(data)
    assert prepare(clip_folder, out, DRAFT).stored == 0
    deadline = time.monotonic() + 30
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert workers and not any(map(alive, workers))  # a killed prepare leaves no process behind


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc to see the worker processes")
def test_a_crashed_decoder_costs_no_other_video(clip_folder: Path, data: Path, tmp_path: Path) -> None:
    process = start_prepare(clip_folder, tmp_path / "d")
    os.kill(workers_of(process)[0], signal.SIGKILL)
    assert process.wait(timeout=100) == 0
    assert stored(tmp_path / "d") == stored(data)


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason=f"no real clips: {SHARED_DATA} is absent")
def test_real_clips_decode(tmp_path: Path) -> None:
    settings = FrameSettings(size=64, frames=6, min_frames=5, fps_stride=2)
    clips = [path for path in sorted((SHARED_DATA / "extra").iterdir()) if path.suffix in (".mp4", ".avi")]
    assert len(clips) == 9
    for path in clips:
        frames = list(read_frames(path, settings))
        assert len(frames) == 6 and min(frames[0].shape[:2]) == 64 and np.std(frames[0]) > 5, path.name
    folder = tmp_path / "v" / "Archery"
    folder.mkdir(parents=True)
    for name in ("v_Archery_g01_c01.mp4", "v_Archery_g08_c01.mp4"):
        (folder / name).symlink_to(SHARED_DATA / "ucf101" / "Archery" / name)
    manifest = prepare(tmp_path / "v", tmp_path / "d", settings).manifest
    assert [(video.split, video.frames) for video in manifest.videos] == [("test", 5), ("train", 5)]


def test_drawn_clips_are_the_same_in_every_process(tmp_path: Path) -> None:
    from cpr_kernels.train.data.synthetic import SyntheticSettings, generate

    program = (
        "import sys; from pathlib import Path; from cpr_kernels.train.data.synthetic import SyntheticSettings, generate; "
        "generate(Path(sys.argv[1]), SyntheticSettings(sources=2, test_sources=1, clips=1, frames=14, size=40))"
    )
    generate(tmp_path / "one", SyntheticSettings(sources=2, test_sources=1, clips=1, frames=14, size=40))
    subprocess.run([sys.executable, "-c", program, tmp_path / "two"], check=True, capture_output=True)
    one, two = (
        {path.name: path.read_bytes() for path in (tmp_path / name).rglob("*.mp4")} for name in ("one", "two")
    )
    assert len(one) == 18 and one == two


def test_a_program_without_a_main_guard_ends_with_the_reason(clip_folder: Path, tmp_path: Path) -> None:
    """Its helper processes import it, and would wait for the folder that it holds."""
    program = tmp_path / "program.py"
    program.write_text(
        "from pathlib import Path\nfrom cpr_kernels.train.data.prepare import prepare\n"
        f"prepare(Path({str(clip_folder)!r}), Path({str(tmp_path / 'out')!r}))\n"
    )
    ended = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=200, cwd=ROOT)
    assert ended.returncode == 1
    assert 'under `if __name__ == "__main__":`' in ended.stderr
    assert "a decoding process ends as soon as it starts" in ended.stderr.splitlines()[-1]
