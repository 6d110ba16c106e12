"""`cpr predict`, `index` and `search` on videos as people have them: clip times, odd names, runs that are stopped."""

from __future__ import annotations

import csv
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import train_sets  # noqa: F401  skips without the trainer's packages
from odd_videos import av, pictures, write
from small_artifact import small

from cpr_kernels.__main__ import main
from cpr_kernels.deploy import ClipIndex, Model


@pytest.fixture(scope="module")
def namer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small(tmp_path_factory.mktemp("small") / "namer.cpr", 7)


def bare(path: Path, frames: int, rate: int) -> Path:
    """A stream of H.264 without a container, and so without times."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for image in pictures(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        container.mux(stream.encode(None))
    return path


def test_clips_begin_at_the_video_s_first_frame(namer: Path, tmp_path: Path, capsys: Any) -> None:
    """12 frames, 2 clips of 8 that end with the 9th and the last: at their own times, wherever the clock starts."""
    pytest.importorskip("faiss", reason="indexes need faiss: pip install 'cpr_kernels[deploy]'")
    uneven = [*(i / 25 for i in range(6)), *(0.2 + i / 5 for i in range(1, 7))]
    folder = tmp_path / "v"
    write(folder / "cut.ts", pictures(12), [5000 + second for second in uneven])
    write(folder / "late.mkv", pictures(12), [7 + second for second in uneven])
    bare(folder / "bare.h264", 12, 50)
    other = write(tmp_path / "other.mp4", pictures(14)[:, ::-1])
    files = [str(path) for path in sorted(folder.iterdir())]
    assert main(["index", str(namer), *files, "--out", str(tmp_path / "known")]) == 0
    capsys.readouterr()
    found: dict[str, list[tuple[float, float]]] = {}
    for clip in ClipIndex(tmp_path / "known").clips:
        found.setdefault(Path(clip.path).name, []).append((round(clip.start, 3), round(clip.end, 3)))
    wanted = [(0.0, 0.8), (0.12, 1.4)]
    assert found["cut.ts"] == found["late.mkv"] == wanted
    assert found["bare.h264"] == [(0.0, 0.16), (0.06, 0.22)]
    assert main(["search", str(namer), str(tmp_path / "known"), str(other), "--format", "jsonl"]) == 0
    near = {Path(one["known"]).name: one for one in json.loads(capsys.readouterr().out)["near"]}
    assert all((one["start"], one["end"]) in found[name] for name, one in near.items()) and len(near) == 3


def test_an_artifact_with_a_rate_resamples(namer: Path, tmp_path: Path) -> None:
    model = Model(namer)
    model.clip = replace(model.clip, fps=12.5)
    path = write(tmp_path / "a.mkv", pictures(30))
    assert [(round(a, 3), round(b, 3)) for a, b in model.video(path).times] == [(0.0, 0.64), (0.48, 1.12)]
    assert model.video(path).note == ""


def test_no_file_ends_a_run(
    namer: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("12:30:05.mp4", "bad.mp4", "good.mp4"):
        write(Path(name), pictures(12))
    latin = os.fsdecode(b"caf\xe9.mp4")
    Path(latin).write_bytes(Path("good.mp4").read_bytes())
    joined = [
        write(tmp_path / f"{i}.ts", pictures(12), [i * 900 + k / 25 for k in range(12)]) for i in (1, 0)
    ]
    Path("joined.ts").write_bytes(b"".join(path.read_bytes() for path in joined))
    whole = Model.video

    def fails_once(model: Model, path: Path, clips: int | None = None) -> Any:
        if path.name == "bad.mp4":
            raise MemoryError("cannot take 2 GB")
        return whole(model, path, clips)

    monkeypatch.setattr(Model, "video", fails_once)
    files = ["12:30:05.mp4", "bad.mp4", latin, "joined.ts", "good.mp4"]
    assert main(["predict", str(namer), *files, "--format", "csv", "--out", "o.csv", "--topk", "1"]) == 1
    said = capsys.readouterr()
    assert "bad.mp4: failed (MemoryError: cannot take 2 GB)" in said.err
    assert "joined.ts: the times of 1 of its frames go back or jump" in said.err
    rows = list(csv.DictReader(Path("o.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["path"] for row in rows] == ["12:30:05.mp4", "caf\\xe9.mp4", "joined.ts", "good.mp4"]
    assert main(["predict", str(namer), latin]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "caf\\xe9.mp4"


def test_an_index_keeps_copied_files_and_says_what_changed_or_is_gone(
    namer: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("faiss", reason="indexes need faiss: pip install 'cpr_kernels[deploy]'")
    files = [write(tmp_path / f"v/{i}.mkv", pictures(12 + i)) for i in range(3)]
    command = ["index", str(namer), str(tmp_path / "v"), "--out", str(tmp_path / "known")]
    assert main(command) == 0
    before = ClipIndex(tmp_path / "known").vectors()
    seen: list[str] = []
    whole = Model.video

    def watched(model: Model, path: Path, clips: int | None = None) -> Any:
        seen.append(path.name)
        return whole(model, path, clips)

    monkeypatch.setattr(Model, "video", watched)
    for path in files:
        os.utime(path, ns=(1, 1))
    body = files[1].read_bytes()
    files[1].write_bytes(body[:-1] + bytes([body[-1] ^ 1]))  # the same size
    capsys.readouterr()
    assert main(command) == 0
    said = capsys.readouterr().err
    assert seen == ["1.mkv"] and "2 files have another time of change and the same content: kept" in said
    assert "1 files have changed since they were indexed: they are read again" in said
    assert main(command) == 0 and seen == ["1.mkv"]
    assert sorted(map(tuple, ClipIndex(tmp_path / "known").vectors())) == sorted(map(tuple, before))
    files[2].unlink()
    capsys.readouterr()
    assert main(command) == 0 and seen == ["1.mkv"]
    assert "1 files of the index are gone; --prune drops them" in capsys.readouterr().err


@pytest.mark.parametrize("how", ["predict", "search", "index"])
def test_a_stopped_run_keeps_what_was_finished(
    how: str, namer: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("faiss", reason="indexes need faiss: pip install 'cpr_kernels[deploy]'")
    files = [str(write(tmp_path / f"{i}.mp4", pictures(12 + i))) for i in range(4)]
    known, out = tmp_path / "known", tmp_path / "new" / "o.jsonl"
    if how != "index":
        assert main(["index", str(namer), *files, "--out", str(known)]) == 0
    whole = Model.video

    def stopped(model: Model, path: Path, clips: int | None = None) -> Any:
        if path.name == "2.mp4":
            if how != "index":  # what a kill would leave
                assert len(out.with_name("o.jsonl.partial").read_text().splitlines()) == 2
            raise KeyboardInterrupt
        return whole(model, path, clips)

    monkeypatch.setattr(Model, "video", stopped)
    command = {
        "predict": ["predict", str(namer), *files, "--format", "jsonl", "--out", str(out)],
        "search": ["search", str(namer), str(known), *files, "--format", "jsonl", "--out", str(out)],
        "index": ["index", str(namer), *files, "--out", str(known)],
    }[how]
    status = main(command)
    assert status not in (0, 1)
    if how == "index":
        assert {Path(clip.path).name for clip in ClipIndex(known).clips} == {"0.mp4", "1.mp4"}
    else:
        assert [Path(json.loads(line)["path"]).name for line in out.read_text().splitlines()] == [
            "0.mp4",
            "1.mp4",
        ]
        assert f"{out} holds what was finished" in capsys.readouterr().err
        assert list(out.parent.iterdir()) == [out]
