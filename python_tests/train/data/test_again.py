"""A data set that is prepared again: what is stored or refused is not read twice, whatever version wrote it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from odd_videos import av, pictures, write
from train_sets import DRAFT

from cpr_kernels.reading.records import read_large_record
from cpr_kernels.reading.seals import SEAL, TEXT_SEAL, sealed, sealed_text
from cpr_kernels.train import TrainError
from cpr_kernels.train.data import manifest as manifests
from cpr_kernels.train.data import prepare as module
from cpr_kernels.train.data import workers
from cpr_kernels.train.data.manifest import Manifest
from cpr_kernels.train.data.prepare import prepare
from cpr_kernels.train.data.store import FrameStore, record_key
from cpr_kernels.train.data.workers import read_source


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of what is read, in this process: starting a pool takes longer than all that is read."""
    ids: list[str] = []

    def read_all(todo: list[Any], settings: Any, processes: int) -> Iterator[tuple[Any, Any]]:
        for source in todo:
            ids.append(source.id)
            yield source, read_source(source, settings)

    monkeypatch.setattr(module, "read_all", read_all)
    return ids


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """A folder of a good video, one that is too short, and one that is none."""
    write(tmp_path / "v/x/good.mkv", pictures(12))
    write(tmp_path / "v/x/short.mkv", pictures(5))
    (tmp_path / "v/x/text.mp4").write_text("no video")
    return tmp_path / "v"


def again(videos: Path, out: Path, read: list[str]) -> tuple[list[str], int, dict[str, str]]:
    """What a further run reads, how many it keeps, and what it skips."""
    read.clear()
    made = prepare(videos, out, DRAFT)
    return list(read), made.kept, dict(made.manifest.skipped)


def test_what_was_refused_is_read_again_only_when_it_may_be_read_otherwise(
    videos: Path, tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "d"
    first = prepare(videos, out, DRAFT).manifest
    assert len(read) == 3 and [name for name, _ in first.skipped] == ["x/short.mkv", "x/text.mp4"]
    assert again(videos, out, read) == ([], 1, dict(first.skipped))
    write(videos / "x/short.mkv", pictures(13))  # another file of that name
    assert again(videos, out, read)[:2] == (["x/short.mkv"], 1)
    assert again(videos, out, read)[:2] == ([], 2)
    monkeypatch.setattr(av, "__version__", "99.0")
    assert again(videos, out, read)[0] == ["x/text.mp4"]


def test_a_fault_of_the_disk_or_a_decoder_is_tried_again(
    videos: Path, tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any) -> Any:
        raise workers.UnreadableVideo("broken after 3 frames (Input/output error)") from OSError(5, "I/O")

    with monkeypatch.context() as patch:
        patch.setattr(workers, "read_views", failing)
        with pytest.raises(TrainError, match="none of the 3 files"):
            prepare(videos, tmp_path / "d", DRAFT)
    assert again(videos, tmp_path / "d", read)[0] == ["x/good.mkv", "x/short.mkv", "x/text.mp4"]


def test_entries_of_older_versions_are_kept_and_damaged_ones_named(
    videos: Path, tmp_path: Path, read: list[str]
) -> None:
    out = tmp_path / "d"
    expected = prepare(videos, out, DRAFT).manifest
    store, key = FrameStore(out, writable=True), record_key("entry", "x/good.mkv")
    entry = store.get_json(key)
    assert entry and SEAL not in entry and TEXT_SEAL not in entry
    for older in (json.dumps(sealed(entry)), json.dumps(entry)):
        store.put({key: older.encode()})
        assert again(videos, out, read)[:2] == ([], 1)
        assert prepare(videos, out, DRAFT).manifest == expected
    store = FrameStore(out, writable=True)
    damaged = json.dumps(sealed(entry)).replace('"frames": 11', '"frames": 12')
    store.put({key: damaged.encode()})
    with pytest.raises(TrainError, match=rf"record {key} of .*data\.mdb is damaged"):
        prepare(videos, out, DRAFT)


def test_copied_files_are_kept_and_changed_ones_read_again(
    videos: Path, tmp_path: Path, read: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    write(videos / "y/other.mkv", pictures(14))
    out = tmp_path / "d"
    first = prepare(videos, out, DRAFT).manifest
    for path in videos.rglob("*.mkv"):
        os.utime(path, ns=(1, 1))
    other = (videos / "y/other.mkv").read_bytes()
    (videos / "y/other.mkv").write_bytes(other[:-1] + bytes([other[-1] ^ 1]))  # the same size
    capsys.readouterr()
    assert again(videos, out, read)[:2] == (["x/short.mkv", "y/other.mkv"], 1)
    said = capsys.readouterr().err
    assert "1 files have another time of change and the same content: kept" in said
    assert "1 files have changed since they were stored: they are read again" in said
    assert again(videos, out, read)[:2] == ([], 2) and "content" not in capsys.readouterr().err
    assert Manifest.load(out) == first


def test_a_manifest_in_use_is_decoded_once(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(videos, tmp_path / "d", DRAFT)
    decoded: list[type] = []

    def counting(text: bytes, kind: type) -> Any:
        decoded.append(kind)
        return read_large_record(text, kind)

    monkeypatch.setattr(manifests, "read_large_record", counting)
    held = Manifest.load(tmp_path / "d")
    assert Manifest.load(tmp_path / "d") is held and len(decoded) == 1
    dropped = held.videos[0].id
    replace(held, videos=held.videos[1:]).save(tmp_path / "d")
    assert dropped not in {video.id for video in Manifest.load(tmp_path / "d").videos} and len(decoded) == 2
    body = json.loads((tmp_path / "d/manifest.json").read_text())
    body.pop(TEXT_SEAL)
    (tmp_path / "d/manifest.json").write_bytes(sealed_text({**body, "version": 9, "videos": {}}))
    with pytest.raises(TrainError, match="it has version 9, expected 1 or 2"):
        Manifest.load(tmp_path / "d")
