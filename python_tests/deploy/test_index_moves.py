"""An index follows its archive: copied together, they find each other; files that are gone can be dropped."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

pytest.importorskip("faiss", reason="indexes need faiss: pip install 'cpr_kernels[deploy]'")

from cpr_kernels.deploy import ClipIndex, clip_index
from cpr_kernels.deploy.clip_index import Clip


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An archive of two files, and an index of them."""
    archive = tmp_path / "home" / "archive"
    archive.mkdir(parents=True)
    clips = []
    for name in ("x.mp4", "y.mp4"):
        (archive / name).write_bytes(b"video")
        clips.append(Clip(str(archive / name), 0.0, 1.0, 5, 6))
    clip_index.extend(archive.parent / "known", "m", clips, torch.eye(3)[:2])
    return archive.parent


def paths(index: ClipIndex) -> list[Path]:
    return [Path(clip.path) for clip in index.clips]


def test_copied_together_they_find_each_other(home: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(home, tmp_path / "copy"))
    archive = copy / "archive"
    assert paths(ClipIndex(copy / "known")) == [archive / "x.mp4", archive / "y.mp4"]
    alone = Path(shutil.copytree(home / "known", tmp_path / "alone"))
    assert paths(ClipIndex(alone)) == [home / "archive" / "x.mp4", home / "archive" / "y.mp4"]
    clip_index.extend(copy / "known", "m", [Clip(str(archive / "x.mp4"), 0.0, 2.0, 5, 7)], torch.eye(3)[2:])
    assert paths(ClipIndex(copy / "known")) == [archive / "y.mp4", archive / "x.mp4"]  # replaced, not added


def test_an_index_without_its_place_still_reads(home: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(home, tmp_path / "copy")) / "known"
    manifest = json.loads((moved / "manifest.json").read_text())
    del manifest["folder"], manifest["sha256"]
    (moved / "manifest.json").write_text(json.dumps(manifest))
    assert paths(ClipIndex(moved)) == [home / "archive" / "x.mp4", home / "archive" / "y.mp4"]


def test_files_that_are_gone_are_dropped(home: Path) -> None:
    known, x, y = home / "known", home / "archive" / "x.mp4", home / "archive" / "y.mp4"
    assert clip_index.prune(known, "m") == [] and ClipIndex(known).generation == 1
    x.unlink()
    assert clip_index.prune(known, "m") == [str(x)]
    [[near]] = ClipIndex(known).search(torch.eye(3)[1:2], 5)
    assert (near.clip.path, near.score) == (str(y), 1.0)
    y.unlink()
    assert clip_index.prune(known, "m") == [str(y)]
    assert ClipIndex(known).nearest_files(torch.eye(3)[:1], 3) == []
    with pytest.raises(ValueError, match="of another model"):
        clip_index.prune(known, "other")
