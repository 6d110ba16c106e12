"""Segments of videos as samples: from a CSV and from ActivityNet's JSON, with the frames and the sound of their times."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from sound_files import RATE, sine, write
from train_sets import DRAFT

from cpr_kernels.train import TrainError
from cpr_kernels.train.data.manifest import Manifest
from cpr_kernels.train.data.prepare import prepare
from cpr_kernels.train.data.segments import Segment, segment_of
from cpr_kernels.train.data.sound import HOP
from cpr_kernels.train.data.sources import list_sources
from cpr_kernels.train.data.store import FrameStore
from cpr_kernels.train.update import union

FPS = 25


def long_video(path: Path, frames: int = 100) -> Path:
    """Frame i is of brightness i, with a square that moves; low sound in the first half, high sound in the second."""
    half = frames / FPS / 2
    sound = np.concatenate((sine(300, half), sine(3000, half)))
    return write(path, [(sound, RATE)], frames, squares=(4, 8))


def listed(folder: Path, *rows: str, head: str = "path,label,start,end") -> Path:
    (folder / "list.csv").write_text("\n".join([head, *rows]))
    return folder / "list.csv"


def test_every_segment_is_a_sample_with_the_frames_and_sound_of_its_time(tmp_path: Path) -> None:
    long_video(tmp_path / "a.mkv")
    table = listed(
        tmp_path,
        "a.mkv,Run,0,1",
        "a.mkv,Jump,2.4,3.2",
        "a.mkv,Run,3.5,",
        "a.mkv,Run,0.5,0.6",
        "a.mkv,Sit,9,10",
    )
    manifest = prepare(table, tmp_path / "d", DRAFT, processes=1).manifest
    assert [(v.id, v.file, manifest.classes[v.label], v.frames, v.start, v.end) for v in manifest.videos] == [
        ("a.mkv@0-1", "a.mkv", "Run", 24, 0.0, 1.0), ("a.mkv@2.4-3.2", "a.mkv", "Jump", 19, 2.4, 3.2),
        ("a.mkv@3.5-inf", "a.mkv", "Run", 11, 3.5, None),
    ]  # fmt: skip
    assert len({video.group for video in manifest.videos}) == 1  # siblings, though their classes differ
    assert dict(manifest.skipped) == {
        "a.mkv@0.5-0.6": "too short: 2 frames, at least 9 are needed",
        "a.mkv@9-10": "too short: 0 frames, at least 9 are needed",
    }  # fmt: skip
    store = FrameStore(tmp_path / "d")
    for video, first in zip(manifest.videos, (0, 60, 88)):
        grounds = store.frames(video.id, "rgb", 0, video.frames)[:, 0, 31].mean(axis=1)
        assert np.abs(grounds - (first + np.arange(video.frames))).max() <= 3, video.id
        assert store.frames(video.id, "flow", 0, video.frames).shape[0] == video.frames
        levels = store.spectrogram(video.id).mean(axis=1)
        assert abs(store.spectrogram(video.id).shape[1] - video.frames / FPS * RATE / HOP) <= 2
        assert (levels[:40].max() > levels[60:].max()) == (first == 0), video.id  # low, then high
    again = prepare(table, tmp_path / "d", DRAFT, processes=1)
    assert (again.stored, again.kept) == (0, 3) and again.manifest == manifest == Manifest.load(
        tmp_path / "d"
    )


def test_which_frames_are_inside() -> None:
    timed = [(i, i / 10) for i in range(10)]
    assert [i for i, _ in Segment(0.3, 0.6).inside(timed)] == [3, 4, 5]
    assert [i for i, _ in Segment(0.85).inside(timed)] == [9] and not list(Segment(1.0).inside(timed))
    assert [i for i, _ in Segment().inside(timed)] == list(range(10))


def test_nothing_is_decoded_after_a_segment() -> None:
    def decoded() -> Iterator[tuple[int, float]]:
        yield from ((i, i / 10) for i in range(7))
        pytest.fail("read on after the first frame that is not inside")

    assert [i for i, _ in Segment(0.3, 0.6).inside(decoded())] == [3, 4, 5]


def test_groups_and_splits_of_segments(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4", "sub/a.mp4", "c.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    table = listed(
        tmp_path, "a.mp4,Run,0,1", "a.mp4,Jump,1,2", "sub/a.mp4,Run,0,1", "b.mp4,Run,,", "a.mp4,Run,,", "c.mp4,Jump,5,6",
        "a.mp4,Sit,0,1.0", "c.mp4,Jump,1e0,2.25",
    )  # fmt: skip
    listing = list_sources(table)
    groups = {source.id: source.group for source in listing.sources}
    assert groups["a.mp4@0-1"] == groups["a.mp4@1-2"] == groups["a.mp4"] != groups["sub/a.mp4@0-1"]
    assert groups["c.mp4@5-6"] == groups["c.mp4@1-2.25"] and len(set(groups.values())) == 4
    splits = {source.id: source.split for source in listing.sources}
    assert splits["a.mp4@0-1"] == splits["a.mp4@1-2"] == splits["a.mp4"]
    assert dict(listing.passed_over) == {
        "a.mp4@0-1": "listed twice with different labels: Run and Sit, line 8"
    }
    both = listed(tmp_path, "a.mp4,Run,train,0,1", "a.mp4,Run,val,1,2", head="Path,Label,Split,Start,End")
    assert "1 files have segments for training and for testing" in list_sources(both).notes


@pytest.mark.parametrize("times", ["2,1", "1,1", "-1,2", "x,2", "nan,2", "inf,", "0,nan"])
def test_a_segment_that_is_none_is_an_error(tmp_path: Path, times: str) -> None:
    with pytest.raises(TrainError, match=r"line 2: start and end must be seconds with 0 <= start < end, got"):
        list_sources(listed(tmp_path, f"a.mp4,Run,{times}"))
    assert segment_of("", "") == Segment() and segment_of("1.5", "") == Segment(1.5)


def test_activity_nets_json(tmp_path: Path) -> None:
    for name in ("videos/v_abc.mp4", "videos/def.mkv", "videos/v_ghi.webm", "videos/v_xyz.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    two = [{"label": "Surfing", "segment": [1.5, 3]}, {"label": "Diving", "segment": [4, 6.25]}]
    database = {
        "abc": {"subset": "training", "annotations": two},
        "def": {"subset": "validation", "annotations": [{"label": "Surfing", "segment": [0, 2]}]},
        "ghi": {"subset": "testing", "annotations": []},
        "gone": {"subset": "training", "annotations": two},
        "xyz": {"subset": "training", "annotations": [{"label": "Diving", "segment": [5, 5]}]},
    }
    (tmp_path / "net.json").write_text(json.dumps({"version": "1.3", "database": database}))
    listing = list_sources(tmp_path / "net.json")
    assert [(s.id, s.label, s.split) for s in listing.sources] == [
        ("videos/def.mkv@0-2", "Surfing", "test"), ("videos/v_abc.mp4@1.5-3", "Surfing", "train"),
        ("videos/v_abc.mp4@4-6.25", "Diving", "train"),
    ]  # fmt: skip
    assert listing.sources[1].group == listing.sources[2].group != listing.sources[0].group
    assert dict(listing.passed_over) == {
        "ghi": "no segments", "gone": "missing file", "xyz": "segment or label is none: [5, 5] Diving",
    }  # fmt: skip
    assert {source.label for source in list_sources(tmp_path / "net.json", labels="none").sources} == {""}
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(TrainError, match="JSON file without ActivityNet's"):
        list_sources(tmp_path / "other.json")
    (tmp_path / "cut.json").write_text("{")
    with pytest.raises(TrainError, match=r"or ActivityNet's JSON"):
        list_sources(tmp_path / "cut.json")


@pytest.mark.parametrize(
    "facts",
    [3, [], {"annotations": 7}, {"annotations": [7]}, {"annotations": [{"segment": "x"}]}, {"subset": None}, {"annotations": [{"segment": [[1], 2]}]}],
)  # fmt: skip
def test_activity_nets_json_of_other_types_is_an_error(facts: object, tmp_path: Path) -> None:
    (tmp_path / "net.json").write_text(json.dumps({"database": {"abc": facts}}))
    (tmp_path / "abc.mp4").write_text("x")
    with pytest.raises(TrainError, match=r"net\.json is no JSON file of ActivityNet's: Expected") as caught:
        list_sources(tmp_path / "net.json")
    assert "\n" not in str(caught.value)


def test_an_update_knows_the_siblings_of_old_segments(tmp_path: Path) -> None:
    long_video(tmp_path / "a.mkv")
    table = listed(tmp_path, "a.mkv,Run,0,1")
    old = prepare(table, tmp_path / "old", DRAFT, processes=1).manifest
    fresh = prepare(listed(tmp_path, "a.mkv,Jump,2,3"), tmp_path / "new", DRAFT, processes=1).manifest
    joined = union(old, fresh)
    assert joined.classes == ["Run", "Jump"] and joined.videos[0].group == joined.videos[1].group
