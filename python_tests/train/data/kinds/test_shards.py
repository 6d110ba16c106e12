"""Videos inside WebDataset's tar shards are samples as the files would be."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("cv2", reason="the trainer's packages: pip install 'cpr_kernels[train]'")

from cpr_kernels.train import TrainError
from cpr_kernels.train.data.decoding import FrameSettings
from cpr_kernels.train.data.sources import list_sources
from cpr_kernels.train.data.synthetic import write_mp4
from cpr_kernels.train.data.workers import read_one, read_source

SETTINGS = FrameSettings(size=32, min_frames=4, flow="draft")


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("video") / "v.mp4"
    write_mp4(path, np.random.default_rng(0).integers(0, 255, (8, 48, 48, 3), np.uint8))
    return path.read_bytes()


def shard(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, body in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(body)
            archive.addfile(entry, io.BytesIO(body))
    return path


def test_videos_in_shards_are_read_with_their_classes(tmp_path: Path, video: bytes) -> None:
    shard(tmp_path / "train-000.tar", {
        "a/000.mp4": video, "a/000.cls": b"12\n", "a/001.json": json.dumps({"label": "jump"}).encode(),
        "a/001.mp4": video, "002.webm": video, "003.txt": b"a caption", "004.mp4": b"none", "004.cls": b"12",
    })  # fmt: skip
    shard(tmp_path / "val-000.tar", {"000.mp4": video, "000.cls": b"jump"})
    listing = list_sources(tmp_path)
    assert [(one.id, one.label, one.split) for one in listing.sources] == [
        ("train-000.tar/004", "12", "train"), ("train-000.tar/a/000", "12", "train"),
        ("train-000.tar/a/001", "jump", "train"), ("val-000.tar/000", "jump", "test"),
    ]  # fmt: skip
    assert dict(listing.passed_over) == {
        "train-000.tar/003.txt": "ending .txt is no video's",
        "train-000.tar/002": "no class in its .cls or .json",
    }
    (tmp_path / "plain.mp4").write_bytes(video)
    direct = read_one(tmp_path / "plain.mp4", SETTINGS)
    inside = read_source(listing.sources[1], SETTINGS)
    assert not isinstance(direct, str) and not isinstance(inside, str)
    assert (inside.rgb, inside.flow) == (direct.rgb, direct.flow) and len(inside.rgb) == 7
    assert (
        inside.entry["bytes"] == (tmp_path / "train-000.tar").stat().st_size
    )  # a changed shard is read again
    assert "not a video" in str(read_source(listing.sources[0], SETTINGS))
    without = list_sources(tmp_path / "train-000.tar", labels="none")
    assert len(without.sources) == 4 and {one.label for one in without.sources} == {""}


def test_a_damaged_shard_is_one_line(tmp_path: Path, video: bytes) -> None:
    whole = shard(tmp_path / "s.tar", {"a.mp4": video, "b.mp4": video})
    (tmp_path / "cut.tar").write_bytes(whole.read_bytes()[: 512 + len(video) + 2000])
    (tmp_path / "other.tar").write_bytes(b"\x1f\x8b no tar" * 99)
    with pytest.raises(TrainError, match="is no uncompressed tar, or is damaged"):
        list_sources(tmp_path / "other.tar")
    listing = list_sources(tmp_path / "cut.tar")
    assert [one.id for one in listing.sources] == ["cut.tar/a"]
    assert listing.passed_over == [
        ("cut.tar/b.mp4", "cut short, or sparse"),
        ("cut.tar", "damaged: unexpected end of data"),
    ]
    whole_listing = list_sources(whole)
    whole.unlink()
    assert read_source(whole_listing.sources[0], SETTINGS) == "missing file"


def test_a_key_ends_at_its_first_point(tmp_path: Path, video: bytes) -> None:
    shard(tmp_path / "s.tar", {"a.video.mp4": video, "a.cls": b"3", "b.mp4": video, "b.cls": b"4"})
    found = list_sources(tmp_path / "s.tar").sources
    assert [(one.id, one.label) for one in found] == [("s.tar/a", "3"), ("s.tar/b", "4")]
