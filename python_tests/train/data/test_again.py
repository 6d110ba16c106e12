"""A data set that is prepared again: what is stored or refused is not read twice, whatever version wrote it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from odd_videos import av, pictures, write
from train_sets import DRAFT

from cpr_kernels.reading.seals import SEAL, TEXT_SEAL, sealed
from cpr_kernels.train import TrainError
from cpr_kernels.train.data import prepare as module
from cpr_kernels.train.data import workers
from cpr_kernels.train.data.prepare import prepare
from cpr_kernels.train.data.store import FrameStore, record_key
from cpr_kernels.train.data.workers import read_one


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of what is read, in this process: starting a pool takes longer than all that is read."""
    ids: list[str] = []

    def read_all(todo: list[Any], settings: Any, processes: int) -> Iterator[tuple[Any, Any]]:
        for source in todo:
            ids.append(source.id)
            yield source, read_one(source.path, settings, source.segment)

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
