"""Which video is of which class and split: the layouts of folders that data sets come in, and lists of videos."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from train_sets import DRAFT  # noqa: F401  (skips where the trainer's packages are absent)

from cpr_kernels.train import TrainError
from cpr_kernels.train.data.layouts import split_named
from cpr_kernels.train.data.sources import Listing, list_sources


def touched(folder: Path, *names: str) -> Path:
    """A folder with these files, each with something of its own in it."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def placed(listing: Listing) -> dict[str, tuple[str, str]]:
    """{id: (split, class)}."""
    return {source.id: (source.split, source.label) for source in listing.sources}


def split_folders(train: str, held: str) -> list[str]:
    return [f"{train}/Run/a.mp4", f"{train}/Jump/b.mp4", f"{held}/Run/c.mp4", f"{held}/Sit/d.mp4"]


NAMES = [
    "val",
    "Valid",
    "VALIDATION",
    "dev",
    "Eval",
    "evaluation",
    "test",
    "Testing",
    "videos_val",
    "val_256",
]


@pytest.mark.parametrize("held", NAMES)
@pytest.mark.parametrize("around", ["", "k400/", "sets/Kinetics 400/"])
def test_a_held_out_split_is_never_trained_on_and_doubles_no_class(
    tmp_path: Path, held: str, around: str
) -> None:
    names = [around + name for name in split_folders("Train", held)]
    listing = list_sources(touched(tmp_path, *names))
    assert placed(listing) == {
        names[0]: ("train", "Run"), names[1]: ("train", "Jump"), names[2]: ("test", "Run"), names[3]: ("test", "Sit"),
    }  # fmt: skip
    assert listing.passed_over == []


@pytest.mark.parametrize(
    ("train", "held"),
    [
        ("Train Set", "Validation Set"), ("train.v1", "val.v1"), ("k400_train", "k400_val"),
        ("ucf101-train", "ucf101-TEST"), ("train2017", "val2017"), ("train-256px", "val-256px"),
        ("train_256x256", "val_256x256"), ("trainlist01", "testlist01"), ("rgb_train", "rgb_val"),
        ("train_videos_256", "val_videos_256"), ("01_training", "02_testing"), ("trainval", "test"),
        ("train+val", "test"), ("train", "holdout"), ("train", "k600_val"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("around", ["", "sets/"])
def test_names_of_splits_with_other_words_double_no_class(
    tmp_path: Path, train: str, held: str, around: str
) -> None:
    names = [around + name for name in split_folders(train, held)]
    listing = list_sources(touched(tmp_path, *names))
    assert placed(listing) == {
        names[0]: ("train", "Run"), names[1]: ("train", "Jump"), names[2]: ("test", "Run"), names[3]: ("test", "Sit"),
    }  # fmt: skip


def test_classes_with_the_words_of_splits_stay_classes(tmp_path: Path) -> None:
    names = ["training dog/a.mp4", "testing cars/b.mp4", "train station/c.mp4", "plane/d.mp4"]
    listing = list_sources(touched(tmp_path / "a", *names))
    assert {source.label for source in listing.sources} == {name[:-6] for name in names}
    assert not any("names of splits" in note for note in listing.notes)
    listing = list_sources(touched(tmp_path / "b", *split_folders("k400_train", "k400_val"), "extra/x.mp4"))
    assert {source.label for source in listing.sources} > {"k400_train/Run", "extra"}
    assert any("folders k400_train, k400_val have names of splits in them" in note for note in listing.notes)


def test_a_class_inside_of_another_is_said(tmp_path: Path) -> None:
    listing = list_sources(touched(tmp_path, "Run/a.mp4", "Run/part2/b.mp4", "Jump/c.mp4"))
    assert {source.label for source in listing.sources} == {"Run", "Run/part2", "Jump"}
    assert any("class Run/part2 is a folder inside of class Run, and another" in n for n in listing.notes)


def test_splits_may_be_below_the_classes(tmp_path: Path) -> None:
    names = ["Run/train/a.mp4", "Run/val/b.mp4", "Jump/training/c.mp4", "Jump/Val/d.mp4", "Sit/train/e.mp4"]
    assert placed(list_sources(touched(tmp_path, *names))) == {
        names[0]: ("train", "Run"), names[1]: ("test", "Run"), names[2]: ("train", "Jump"),
        names[3]: ("test", "Jump"), names[4]: ("train", "Sit"),
    }  # fmt: skip


def test_one_class_alone_below_or_above_its_splits(tmp_path: Path) -> None:
    below = list_sources(touched(tmp_path / "a", "Run/train/a.mp4", "Run/val/b.mp4"))
    above = list_sources(touched(tmp_path / "b", "train/Run/a.mp4", "val/Run/b.mp4"))
    for listing in (below, above):
        assert [(s.split, s.label) for s in listing.sources] == [("train", "Run"), ("test", "Run")]
        assert any("one class only, Run" in note for note in listing.notes)


def test_folders_unpacked_into_their_own_name_double_nothing(tmp_path: Path) -> None:
    names = [
        "train/train/Run/a.mp4",
        "val/val/Run/b.mp4",
        "train/train/Jump/Jump/c.mp4",
        "val/val/Jump/d.mp4",
    ]
    assert placed(list_sources(touched(tmp_path, *names))) == {
        names[0]: ("train", "Run"), names[1]: ("test", "Run"), names[2]: ("train", "Jump"),
        names[3]: ("test", "Jump"),
    }  # fmt: skip


def test_validation_beside_a_test_split_is_kept_apart(tmp_path: Path) -> None:
    names = ["train/Run/a.mp4", "val/Run/b.mp4", "test/Run/c.mp4"]
    listing = list_sources(touched(tmp_path, *names))
    assert [source.split for source in listing.sources] == ["test", "train", "val"]
    assert any(
        note == "1 validation videos are kept apart: neither trained on nor tested" for note in listing.notes
    )
    (tmp_path / "test" / "Run" / "c.mp4").rename(tmp_path / "test" / "c.mp4")  # a test set without labels
    listing = list_sources(tmp_path)
    assert placed(listing) == {names[0]: ("train", "Run"), names[1]: ("test", "Run")}
    assert listing.passed_over == [("test/Run/", "empty folder"), ("test/c.mp4", "not inside a class folder")]


def test_a_class_called_like_a_split_stays_a_class_and_that_is_said(tmp_path: Path) -> None:
    names = ["train/a.mp4", "plane/b.mp4", "bus/c.mp4"]
    listing = list_sources(touched(tmp_path / "flat", *names))
    assert {source.label for source in listing.sources} == {"train", "plane", "bus"}
    assert any("folder train is taken for a class, since it is beside bus, plane" in n for n in listing.notes)
    deep = [f"{split}/{name}" for split in ("train", "val") for name in names]
    listing = list_sources(touched(tmp_path / "deep", *deep))
    assert placed(listing) == {
        f"{folder}/{name}": (split, name.split("/")[0])
        for folder, split in (("train", "train"), ("val", "test")) for name in names
    }  # fmt: skip
    listing = list_sources(
        touched(tmp_path / "below", *(f"{n[:-6]}/{s}/x.mp4" for n in names for s in ("train", "val")))
    )
    assert {(s.label, s.split) for s in listing.sources} == {
        (label, split) for label in ("train", "plane", "bus") for split in ("train", "test")
    }


def test_what_is_beside_the_splits_is_passed_over(tmp_path: Path) -> None:
    names = [*split_folders("train", "val"), "replacement/Run/e.mp4", "f.mp4"]
    listing = list_sources(touched(tmp_path, *names))
    assert len(listing.sources) == 4
    assert dict(listing.passed_over) == {
        "replacement/Run/e.mp4": "beside the split folders", "f.mp4": "beside the split folders",
    }  # fmt: skip


def test_a_class_in_two_unicode_forms_is_one_and_case_alone_is_said(tmp_path: Path) -> None:
    names = ["train/Caf\u00e9/a.mp4", "val/Cafe\u0301/b.mp4", "train/run/c.mp4", "val/Run/d.mp4"]
    listing = list_sources(touched(tmp_path, *names))
    assert {source.label for source in listing.sources} == {"Caf\u00e9", "run", "Run"}
    assert any("classes Run and run differ in case only" in note for note in listing.notes)


def test_official_lists_decide_over_folders(tmp_path: Path) -> None:
    folder = touched(tmp_path / "v", "train/Run/v_Run_g01_c01.avi", "val/Run/v_Run_g02_c01.avi")
    lists = touched(tmp_path / "l", "trainlist01.txt", "testlist01.txt")
    (lists / "trainlist01.txt").write_text("Run/v_Run_g02_c01.avi 1\n")
    (lists / "testlist01.txt").write_text("Run/v_Run_g01_c01.avi\n")
    assert {s.path.stem[-7:]: s.split for s in list_sources(folder, lists).sources} == {
        "g01_c01": "test", "g02_c01": "train",
    }  # fmt: skip


def test_links_are_followed_once_and_loops_and_broken_ones_are_said(tmp_path: Path) -> None:
    store = touched(tmp_path / "store", "a.mp4", "b.mp4", "c.mp4", "d.mp4")
    folder = touched(tmp_path / "v", "train/Run/e.mp4", "val/Run/f.mp4")
    (folder / "train" / "Jump").symlink_to(store)
    (folder / "val" / "Jump").mkdir()
    (folder / "val" / "Jump" / "g.mp4").symlink_to(store / "b.mp4")  # in both: tested, not trained on
    (folder / "train" / "Run" / "again.mp4").symlink_to(folder / "train" / "Run" / "e.mp4")
    os.link(store / "c.mp4", folder / "train" / "Run" / "hard.mp4")
    (folder / "train" / "Run" / "gone.mp4").symlink_to(tmp_path / "absent.mp4")
    (folder / "val" / "Run" / "up").symlink_to(folder)
    (folder / "train" / "Run" / "self").symlink_to(folder / "train" / "Run" / "self")
    listing = list_sources(folder)
    assert placed(listing) == {
        "train/Jump/a.mp4": ("train", "Jump"), "train/Jump/c.mp4": ("train", "Jump"),
        "train/Jump/d.mp4": ("train", "Jump"), "train/Run/again.mp4": ("train", "Run"),
        "val/Jump/g.mp4": ("test", "Jump"), "val/Run/f.mp4": ("test", "Run"),
    }  # fmt: skip
    reasons = dict(listing.passed_over)
    assert reasons["train/Jump/b.mp4"] == "same file again: val/Jump/g.mp4 (test)"
    assert reasons["train/Run/e.mp4"] == "same file again: train/Run/again.mp4 (train)"
    assert (
        reasons["train/Run/hard.mp4"]
        == "same file again with another label than Jump: train/Jump/c.mp4 (train)"
    )
    assert reasons["train/Run/gone.mp4"].startswith("broken link: to ")
    assert reasons["val/Run/up/"] == "link that leads back to a folder above it"
    assert "train/Run/self" in reasons and len(reasons) == 6


def test_what_is_no_video_is_passed_over_by_kind(tmp_path: Path) -> None:
    names = ["a.MP4", "b.MTS", "c.m2ts", "d.VOB", "e.ts", "f.mpg", "g.gif", "h.webm", "i.mkv"]
    others = {
        "._a.mp4": "hidden", ".DS_Store": "hidden", "a.nfo": "text", "labels.csv": "text", "a.jpg": "picture",
        "list.m3u8": "playlist", "all.zip": "archive", "a.wav": "sound", "a.srt": "subtitles",
        "a.mp4.part": "unfinished download", "a.npy": "ending .npy is no video's", "README": "no ending",
    }  # fmt: skip
    folder = touched(tmp_path, *(f"Run/{name}" for name in (*names, *others)), ".git/x.mp4", "Jump/j.mov")
    listing = list_sources(folder)
    assert [source.path.name for source in listing.sources] == ["j.mov", *names]
    wanted = {f"Run/{name}": reason for name, reason in others.items()}
    assert dict(listing.passed_over) == {**wanted, ".git": "hidden"}


def test_a_name_that_is_no_utf8_and_a_pipe_are_said(tmp_path: Path) -> None:
    folder = touched(tmp_path, "Run/a.mp4")
    try:
        (folder / os.fsdecode(b"Run/\xff.mp4")).touch()
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    os.mkfifo(folder / "Run" / "pipe.mp4")
    listing = list_sources(folder)
    assert [source.id for source in listing.sources] == ["Run/a.mp4"]
    assert dict(listing.passed_over) == {
        "Run/\\xff.mp4": "name is not UTF-8: rename it", "Run/pipe.mp4": "no regular file",
    }  # fmt: skip


def test_nothing_to_take_says_what_is_there(tmp_path: Path) -> None:
    touched(tmp_path, "Run/a.jpg", "Run/b.jpg", "Run/c.txt")
    with pytest.raises(TrainError, match=r"no video found in .* \(passed over: picture 2, text 1\)"):
        list_sources(tmp_path)


@pytest.mark.parametrize(
    ("name", "split"),
    [("trainset", "train"), ("Test-Data", "test"), ("dev_set", "val"), ("clips_train", "train"), ("devices", None),
     ("trains", None), ("testify", None), ("", None)],
)  # fmt: skip
def test_names_of_splits(name: str, split: str | None) -> None:
    assert split_named(name) == split
