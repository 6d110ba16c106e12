"""Official split lists, in the formats of UCF101's and HMDB51's archives."""

from __future__ import annotations

from pathlib import Path

import pytest
from train_sets import DRAFT  # noqa: F401  (skips where the trainer's packages are absent)

from cpr_kernels.train import TrainError
from cpr_kernels.train.data.kinds.splits import official_splits
from cpr_kernels.train.data.sources import group_of, list_sources


def videos(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def ucf_lists(folder: Path, train: str, test: str, classes: str = "1 Archery\n2 Diving\n") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "trainlist02.txt").write_text(train)
    (folder / "testlist02.txt").write_text(test)
    (folder / "classInd.txt").write_text(classes)
    return folder


def test_ucf101_lists_decide_over_names_and_endings(tmp_path: Path) -> None:
    names = [f"Archery/v_Archery_g{group:02}_c01.mp4" for group in (1, 9, 20)]
    folder = videos(tmp_path / "v", *names)
    lists = ucf_lists(
        tmp_path / "l",
        "Archery/v_Archery_g01_c01.avi 1\r\nDiving/v_Diving_g08_c01.avi 2\n\n",
        "Archery/v_Archery_g09_c01.avi\n",
    )
    sources, passed_over, _ = list_sources(folder, lists, fold=2)
    assert [(source.path.stem[-7:], source.split) for source in sources] == [
        ("g01_c01", "train"), ("g09_c01", "test"),
    ]  # fmt: skip
    assert dict(passed_over) == {
        names[2]: "in no list of split 2",
        "split 2": "1 listed videos are missing, such as v_Diving_g08_c01",
    }


def test_hmdb51_lists_and_films(tmp_path: Path) -> None:
    stems = [f"Film{film}_catch_f_cm_np1_fr_med_{clip}" for film, clip in ((1, 0), (1, 1), (2, 0), (3, 0))]
    folder = videos(tmp_path / "v", *(f"catch/{stem}.avi" for stem in stems))
    lists = tmp_path / "l"
    lists.mkdir()
    marks = (1, 1, 2, 0)
    (lists / "catch_test_split1.txt").write_text(
        "".join(f"{stem}.avi {mark} \n" for stem, mark in zip(stems, marks))
    )
    sources, passed_over, _ = list_sources(folder, lists)
    assert [source.split for source in sources] == ["train", "train", "test"]
    assert sources[0].group == sources[1].group != sources[2].group
    assert passed_over == [(f"catch/{stems[3]}.avi", "in no list of split 1")]
    assert group_of("catch", "no_such_name") == "catch/no_such_name"


def test_lists_that_cannot_be_used_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="is no folder"):
        official_splits(tmp_path / "absent")
    (tmp_path / "l").mkdir()
    with pytest.raises(TrainError, match=r"holds no lists of split 3; expected trainlist03\.txt"):
        official_splits(tmp_path / "l", 3)
    lists = ucf_lists(tmp_path / "l", "Archery/v_a.avi 1\n", "Archery/v_a.avi\n")
    with pytest.raises(TrainError, match="lists v_a for training and for testing in split 2"):
        official_splits(lists, 2)
    ucf_lists(lists, "Archery/v_a.avi 1\n", "Swing/v_b.avi\n")
    with pytest.raises(TrainError, match=r"testlist02\.txt line 1: expected a class of classInd"):
        official_splits(lists, 2)
    ucf_lists(lists, "v_a.avi 1\n", "")
    with pytest.raises(TrainError, match=r"trainlist02\.txt line 1: expected Class/video"):
        official_splits(lists, 2)
    ucf_lists(lists, "Archery/v_a.avi 1\n", "")
    with pytest.raises(TrainError, match=r"none of the 1 videos is listed in .* the folder holds 'x'"):
        list_sources(videos(tmp_path / "v", "Archery/x.avi"), lists, 2)
    (lists / "run_test_split1.txt").write_text("a.avi 3\n")
    with pytest.raises(TrainError, match=r"run_test_split1\.txt line 1: expected a name and 0, 1 or 2"):
        official_splits(lists, 1)
