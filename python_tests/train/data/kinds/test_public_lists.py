"""The lists that public data sets come with: Kinetics, Something-Something and mmaction2's, and what is no list."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("cv2", reason="the trainer's packages: pip install 'cpr_kernels[train]'")

from cpr_kernels.train import TrainError
from cpr_kernels.train.data.sources import Listing, list_sources


def made(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def samples(listing: Listing) -> list[tuple[str, str, str]]:
    return [(one.id, one.label, one.split) for one in listing.sources]


def test_mmaction2_lists_of_videos_below_another_folder(tmp_path: Path) -> None:
    root = made(tmp_path / "videos", "a/x y.mp4", "a/b.mp4", "c.mp4")
    train, val = tmp_path / "k400_train_list_videos.txt", tmp_path / "k400_val_list_videos.txt"
    train.write_text("a/x y.mp4 12\na/b.mp4 3\n\n")
    val.write_text("c.mp4 12\na/b.mp4 3\n")
    listing = list_sources([train, val], root=root)
    assert samples(listing) == [
        ("a/b.mp4", "3", "train"),
        ("a/x y.mp4", "12", "train"),
        ("c.mp4", "12", "test"),
    ]
    assert dict(listing.passed_over) == {"a/b.mp4": "listed twice"}
    assert all(one.path.is_file() for one in listing.sources)
    with pytest.raises(TrainError, match=r"a/b\.mp4 is the name of .* and of"):
        list_sources([train, made(tmp_path / "other", "a/b.mp4", "c.mp4")])


def test_mmaction2_lists_of_frame_folders(tmp_path: Path) -> None:
    frames = [f"f/{name}/img_{i:05}.jpg" for name in ("v1", "v2") for i in (1, 2, 3)]
    root = made(
        tmp_path,
        *frames,
        "f/v1/flow_x_00001.jpg",
        "f/v1/flow_y_00001.jpg",
        "f/odd/img_1.jpg",
        "f/odd/img_3.jpg",
    )
    (tmp_path / "train.txt").write_text("v1 3 0\nv2 3 1\n")
    assert samples(list_sources(tmp_path / "train.txt", root=root / "f")) == [
        ("v1", "0", "train"),
        ("v2", "1", "train"),
    ]
    folders = list_sources(root / "f")
    assert [one.id for one in folders.sources] == ["v1", "v2"] and all(
        one.path.is_dir() for one in folders.sources
    )
    assert dict(folders.passed_over)["odd/"] == "numbers of frames have a gap: 1 missing from 1 to 3"


def test_kinetics_csv_and_json(tmp_path: Path) -> None:
    made(tmp_path, "train/jog/abc_000010_000020.mp4", "whole/def.mkv", "train/jog/-x_z_000000_000010.mp4")
    lines = [
        "label,youtube_id,time_start,time_end,split,is_cc",
        "jog,abc,10,20,train,0",
        "swim,def,5,15,validate,0",
    ]
    lines += ["jog,-x_z,0,10,train,0", "jog,gone,1,11,train,0", "jog,,1,11,train,0"]
    (tmp_path / "k.csv").write_text("\n".join(lines).replace("validate", "val"))
    expected = [
        ("train/jog/-x_z_000000_000010.mp4", "jog", "train"), ("train/jog/abc_000010_000020.mp4", "jog", "train"),
        ("whole/def.mkv@5-15", "swim", "test"),
    ]  # fmt: skip
    listing = list_sources(tmp_path / "k.csv")
    assert samples(listing) == expected
    assert dict(listing.passed_over) == {"gone": "missing file", "a line": "no id"}
    body = {
        "abc": {"subset": "train", "annotations": {"label": "jog", "segment": [10.0, 20.0]}},
        "-x_z": {"subset": "train", "annotations": {"label": "jog", "segment": [0.0, 10.0]}},
        "def": {"subset": "val", "annotations": {"label": "swim", "segment": [5, 15]}},
    }
    (tmp_path / "k.json").write_text(json.dumps(body))
    assert samples(list_sources(tmp_path / "k.json")) == expected
    (tmp_path / "kinetics_test.csv").write_text("youtube_id,time_start,time_end\nabc,10,20\n")
    assert samples(list_sources(tmp_path / "kinetics_test.csv", labels="none")) == [
        (expected[1][0], "", "test")
    ]


def test_something_somethings_json(tmp_path: Path) -> None:
    root = made(tmp_path / "webm", "1.webm", "2.webm", "3.webm")
    item = {"label": "holding potato next to vicks", "template": "Holding [something] next to [something]"}
    train, val = (
        tmp_path / "something-something-v2-train.json",
        tmp_path / "something-something-v2-validation.json",
    )
    train.write_text(json.dumps([{"id": "1", **item}, {"id": "9", **item}]))
    val.write_text(json.dumps([{"id": "2", **item}, {"id": "3"}]))
    listing = list_sources([train, val], root=root)
    label = "Holding something next to something"
    assert samples(listing) == [("1.webm", label, "train"), ("2.webm", label, "test")]
    assert dict(listing.passed_over) == {
        "9": "missing file",
        "3": "no template, so no class; --labels none takes it",
    }


def test_addresses_are_refused_in_words(tmp_path: Path) -> None:
    for address in ("s3://bucket/videos", "https://host/list.csv", "gs://bucket/a.mp4"):
        with pytest.raises(TrainError, match="is an address, and only files are read; copy it here first"):
            list_sources(Path(address))
    made(tmp_path, "a.mp4")
    (tmp_path / "l.csv").write_text("path,label\na.mp4,x\ns3://bucket/b.mp4,x\n")
    listing = list_sources(tmp_path / "l.csv")
    assert [one.id for one in listing.sources] == ["a.mp4"]
    assert listing.passed_over == [("s3://bucket/b.mp4", "an address, no file")]
