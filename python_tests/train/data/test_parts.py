"""A data set in parts, made by several processes of which one dies: one manifest over them, no frame copied."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("cv2", reason="the trainer's packages: pip install 'cpr_kernels[train]'")

import cv2
from forked import run_python

from cpr_kernels.__main__ import main
from cpr_kernels.train import TrainError
from cpr_kernels.train.batches.dataset import ClipDataset
from cpr_kernels.train.data import prepare as module
from cpr_kernels.train.data.decoding import FrameSettings
from cpr_kernels.train.data.manifest import Manifest
from cpr_kernels.train.data.parts import Part, PartedStore, open_store, parse_part, part_of, parts_in
from cpr_kernels.train.data.store import FrameStore
from cpr_kernels.train.data.workers import read_source

SETTINGS = FrameSettings(size=32, min_frames=4, flow="draft")
VIDEOS, OF = 12, 3
DYING = """
import os, signal, sys
from pathlib import Path
from cpr_kernels.train.data import prepare as module
from cpr_kernels.train.data.decoding import FrameSettings
from cpr_kernels.train.data.parts import Part
from cpr_kernels.train.data.workers import read_source

def read_all(todo, settings, processes):
    yield todo[0], read_source(todo[0], settings)
    os.kill(os.getpid(), signal.SIGKILL)

module.read_all = read_all
settings = FrameSettings(size=32, min_frames=4, flow="draft")
module.prepare(Path(sys.argv[1]), Path(sys.argv[2]), settings, part=Part(2, 3))
"""


@pytest.fixture(autouse=True)
def read_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads in this process: starting a pool takes longer than all that is read."""

    def read_all(todo: list[Any], settings: FrameSettings, processes: int) -> Iterator[tuple[Any, Any]]:
        for source in todo:
            yield source, read_source(source, settings)

    monkeypatch.setattr(module, "read_all", read_all)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of frames in two classes, one of them broken."""
    root = tmp_path_factory.mktemp("videos")
    draw = np.random.default_rng(0)
    for i in range(VIDEOS):
        folder = root / f"class{i % 2}" / f"v{i:02}"
        folder.mkdir(parents=True)
        for t in range(5):
            cv2.imwrite(str(folder / f"img_{t:05}.jpg"), draw.integers(0, 255, (32, 32, 3), np.uint8))
    (root / "class1/v03/img_00002.jpg").write_bytes(b"none")
    return root


def test_parts_are_one_data_set_whatever_dies(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "parts"
    expected = module.prepare(videos, whole, SETTINGS).manifest
    assert len(expected.videos) == VIDEOS - 1 and expected.skipped == [
        ("class1/v03", "img_00002.jpg is no picture")
    ]
    module.prepare(videos, out, SETTINGS, part=Part(1, OF))
    assert "parts 2, 3 of 3 are not finished" in capsys.readouterr().err
    killed = run_python("-c", DYING, videos, out)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    module.prepare(videos, out, SETTINGS, part=Part(3, OF))
    assert "parts 2 of 3 are not finished" in capsys.readouterr().err
    with pytest.raises(TrainError, match="is not finished; run the same `cpr prepare` again"):
        Manifest.load(out)
    again = module.prepare(videos, out, SETTINGS, part=Part(2, OF))
    assert again.kept == 1 and Manifest.load(out) == expected  # what the dead one had stored stays
    store = open_store(out)
    assert isinstance(store, PartedStore) and not (out / "data.mdb").exists()
    store.check()
    for video in expected.videos:
        for view in ("rgb", "flow"):
            assert np.array_equal(
                store.frames(video.id, view, 0, 4), FrameStore(whole).frames(video.id, view, 0, 4)
            )
    pairs = [ClipDataset(folder, 4, 16)[0, 7] for folder in (whole, out)]
    assert all((pairs[0][view] == pairs[1][view]).all() for view in ("rgb", "flow"))


def test_data_sets_cut_in_different_ways_do_not_mix(videos: Path, tmp_path: Path) -> None:
    module.prepare(videos, tmp_path, SETTINGS, part=Part(1, 2))
    with pytest.raises(TrainError, match="holds a data set in 2 parts; give --shard I/2"):
        module.prepare(videos, tmp_path, SETTINGS, part=Part(1, 3))
    with pytest.raises(TrainError, match="holds a data set in 2 parts"):
        module.prepare(videos, tmp_path, SETTINGS)
    module.prepare(videos, tmp_path / "one", SETTINGS)
    with pytest.raises(TrainError, match="in one part; give another --out, or no --shard"):
        module.prepare(videos, tmp_path / "one", SETTINGS, part=Part(1, 2))
    (tmp_path / "part-2-of-2").mkdir()
    module.prepare(
        videos, tmp_path / "other", FrameSettings(size=16, min_frames=4, flow="draft"), part=Part(2, 2)
    )
    (tmp_path / "part-2-of-2").rmdir()
    (tmp_path / "other/part-2-of-2").rename(tmp_path / "part-2-of-2")
    with pytest.raises(TrainError, match="were made with different settings"):
        module.prepare(videos, tmp_path, SETTINGS, part=Part(1, 2))


def test_parts_are_named_and_even() -> None:
    assert parse_part("2/8") == Part(2, 8)
    for text in ("0/8", "9/8", "2", "a/b", "-1/2"):
        with pytest.raises(TrainError, match="shard: expected I/N with 1 <= I <= N"):
            parse_part(text)
    counts = np.bincount([part_of(f"video{i}", 8) for i in range(8000)], minlength=9)
    assert counts[0] == 0 and counts[1:].min() > 850


def test_more_parts_than_videos_leave_some_empty(videos: Path, tmp_path: Path) -> None:
    for number in range(1, 17):
        made = module.prepare(videos, tmp_path, SETTINGS, part=Part(number, 16))
    assert len(made.manifest.videos) == VIDEOS - 1 and len(parts_in(tmp_path)) == 16
    open_store(tmp_path).check()


def test_the_command_makes_a_part_and_says_so_as_json(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["prepare", "--videos", str(videos), "--out", str(tmp_path), "--size", "32", "--min-frames", "4"]
    words += ["--flow", "draft", "--quiet", "--json"]
    said = []
    for shard in ("1/2", "2/2"):
        assert main([*words, "--shard", shard]) == 0
        printed = capsys.readouterr()
        assert printed.err == ""
        said.append(json.loads(printed.out))
    assert sum(one["stored"] for one in said) == said[1]["videos"] == VIDEOS - 1
    assert (
        said[1]["classes"] == 2 and said[1]["skipped"] == 1 and sum(said[1]["splits"].values()) == VIDEOS - 1
    )
    assert main([*words, "--shard", "3/2"]) == 2
    assert "shard: expected I/N" in capsys.readouterr().err
