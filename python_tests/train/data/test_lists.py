"""Lists as other programs write them: separators, numbers as labels, contradictions, and splits in their names."""

from __future__ import annotations

from pathlib import Path

import pytest
from train_sets import DRAFT  # noqa: F401  (skips where the trainer's packages are absent)

from cpr_kernels.train import TrainError
from cpr_kernels.train.data.sources import Listing, list_sources


def touched(folder: Path, *names: str) -> Path:
    """A folder with these files, each with something of its own in it."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def listed(folder: Path, text: str | bytes, name: str = "list.csv") -> Listing:
    """What a list beside its files names."""
    (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return list_sources(folder / name)


def test_lists_written_on_windows_name_the_same_files(tmp_path: Path) -> None:
    folder = touched(tmp_path, "Run/v_Run_g08_c01.avi", "Run/v_Run_g01_c01.avi", "Run/odd\\name.mp4")
    found = listed(folder, "Run\\v_Run_g08_c01.avi 3\r\nRun\\v_Run_g01_c01.avi 3\r\n", "trainlist01.txt")
    assert [(s.id, s.group, s.split, s.stamp is not None) for s in found.sources] == [
        ("Run/v_Run_g01_c01.avi", "3/g01", "train", True), ("Run/v_Run_g08_c01.avi", "3/g08", "train", True),
    ]  # fmt: skip
    found = listed(folder, "path,label\nRun/odd\\name.mp4,run\n")
    assert [s.id for s in found.sources] == ["Run/odd\\name.mp4"] and found.sources[0].stamp
    lists = touched(tmp_path / "lists")
    lists.mkdir()
    (lists / "trainlist01.txt").write_text("Run\\v_Run_g01_c01.avi\t1\n\n")
    (lists / "testlist01.txt").write_text("Run\\v_Run_g08_c01.avi\n")
    (folder / "Run" / "odd\\name.mp4").unlink()
    assert {s.stem[-7:]: s.split for s in list_sources(folder / "Run", lists, labels="none").sources} == {
        "g01_c01": "train", "g08_c01": "test",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "split"), [("val.csv", "val"), ("testlist01.txt", "test"), ("vallist.txt", "val")]
)
def test_the_name_of_a_list_is_its_split_where_no_column_is(tmp_path: Path, name: str, split: str) -> None:
    folder = touched(tmp_path, "a.mp4", "b.mp4")
    bare = "" if name.endswith("txt") else "path\n"
    (folder / "train.csv").write_text("path,label\na.mp4,run\n")
    (folder / name).write_text(f"{bare}b.mp4\n")
    found = list_sources([folder / "train.csv", folder / name])
    assert {s.id: s.split for s in found.sources} == {"a.mp4": "train", "b.mp4": "test"}
    assert "no labels: the data set has no classes" not in found.notes  # of one list, not of the whole
    (folder / name).write_text("path,split\nb.mp4,train\n")
    assert [s.split for s in list_sources(folder / name).sources] == ["train"]


def test_labels_that_are_numbers(tmp_path: Path) -> None:
    folder = touched(tmp_path, "a.mp4", "b.mp4", "c.mp4", "d.mp4")
    found = listed(folder, "path,label\na.mp4,2.0\nb.mp4,-1\nc.mp4,nan\nd.mp4,0\n")
    assert {s.id: s.label for s in found.sources} == {"a.mp4": "2", "d.mp4": "0"}
    assert [reason for _, reason in found.passed_over] == ["path or label is empty"] * 2
    for odd in ("2.5", "inf"):
        with pytest.raises(TrainError, match=rf"has labels such as {odd}: numbers that are no classes"):
            listed(folder, f"path,label\na.mp4,1\nb.mp4,{odd}\n")
    found = listed(folder, "path,label\na.mp4,1.5\nb.mp4,-1\nc.mp4,run\n")  # names that look like numbers
    assert {s.label for s in found.sources} == {"1.5", "-1", "run"}


def test_what_a_list_contradicts_is_said(tmp_path: Path) -> None:
    folder = touched(tmp_path, "a.mp4", "b.mp4")
    found = listed(folder, "path,label\na.mp4,run\na.mp4,run\na.mp4,jump\n./b.mp4,sit\nb.mp4,lie\n")
    assert found.passed_over == [
        ("a.mp4", "listed twice: line 3"),
        ("a.mp4", "listed twice with different labels: run and jump, line 4"),
        ("b.mp4", "same file again with another label than sit: ./b.mp4 (train)"),
    ]
    with pytest.raises(TrainError, match=r"list\.csv has two columns label; rename one"):
        listed(folder, "path,label,Label\na.mp4,run,jump\n")


def test_text_with_zero_bytes_is_no_list(tmp_path: Path) -> None:
    folder = touched(tmp_path, "a.mp4")
    for body in ("path,label\na.mp4,run\n".encode("utf-16-le"), b"path,label\na.mp4,ru\0n\n"):
        with pytest.raises(TrainError, match="is a file, and no CSV in UTF-8"):
            listed(folder, body)


@pytest.mark.parametrize("delimiter", [";", "\t", ","])
def test_lists_of_spreadsheets_are_read(tmp_path: Path, delimiter: str) -> None:
    folder = touched(tmp_path, "a.mp4", "b, c.mp4")
    rows = ["path;label;start;end", "a.mp4;Run;0;1.5", '"b, c.mp4";Jump;;']
    found = listed(folder, "\n".join(rows).replace(";", delimiter)).sources
    assert [(one.id, one.label) for one in found] == [("a.mp4@0-1.5", "Run"), ("b, c.mp4", "Jump")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "path;start;end\na.mp4;0,5;1,5",
            r"start and end must be seconds .*got '0,5' and '1,5'; write decimals",
        ),
        ("path,start,end\na.mp4,0,5,1,5", r"line 2 has more fields than its header.*decimals with a point"),
        (
            "path,label\nb, c.mp4,Run",
            r"line 2 has more fields than its header; put a text with ',' in quotes",
        ),
    ],
)
def test_commas_inside_of_fields_are_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(TrainError, match=said):
        listed(touched(tmp_path, "a.mp4", "b, c.mp4"), text)


def test_a_list_of_paths_takes_whole_lines(tmp_path: Path) -> None:
    found = listed(touched(tmp_path, "a.mp4", "b, c.mp4"), "a.mp4\nb, c.mp4\n").sources
    assert [one.id for one in found] == ["a.mp4", "b, c.mp4"]
