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


@pytest.mark.parametrize(
    "head",
    [
        "path,label,split,start,end",
        "filename,Category,subset,t_start,t_end",
        "video_path,class,Set,begin,stop",
    ],
)
def test_columns_are_known_by_what_other_programs_call_them(tmp_path: Path, head: str) -> None:
    found = listed(touched(tmp_path, "a.mp4"), f"{head}\na.mp4,run,val,0,1\na.mp4,sit,val,1,2.5\n")
    assert [(s.id, s.label, s.split) for s in found.sources] == [
        ("a.mp4@0-1", "run", "test"), ("a.mp4@1-2.5", "sit", "test"),
    ]  # fmt: skip
    assert not any("not used" in note for note in found.notes)


def test_columns_that_are_not_used_are_said(tmp_path: Path) -> None:
    found = listed(touched(tmp_path, "a.mp4"), "path,label,class,fold,,start_frame\na.mp4,run,x,1,,7\n")
    assert [(s.id, s.label) for s in found.sources] == [("a.mp4", "run")]
    assert found.notes[0].startswith(
        "columns of list.csv that are not used: class, fold, start_frame; those read"
    )


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_paths_and_labels_need_no_header(tmp_path: Path, delimiter: str) -> None:
    folder = touched(tmp_path, "a.mp4", "sub/b.mp4")
    found = listed(folder, f"a.mp4{delimiter}3\nsub/b.mp4{delimiter}0\n")
    assert [(s.id, s.label, s.stamp is not None) for s in found.sources] == [
        ("a.mp4", "3", True), ("sub/b.mp4", "0", True),
    ]  # fmt: skip


def test_line_ends_of_every_kind_and_a_comma_in_the_first_path(tmp_path: Path) -> None:
    folder = touched(tmp_path, "a.mp4", "b, c.mp4")
    for end in ("\n", "\r\n", "\r"):
        found = listed(folder, end.join(["path,label", "a.mp4,run", '"b, c.mp4",sit', ""]))
        assert [(s.id, s.label) for s in found.sources] == [("a.mp4", "run"), ("b, c.mp4", "sit")]
    assert [s.id for s in listed(folder, "b, c.mp4\na.mp4\n").sources] == ["a.mp4", "b, c.mp4"]


def test_addresses_of_files_are_counted(tmp_path: Path) -> None:
    found = listed(touched(tmp_path, "a.mp4"), "a.mp4\nfile:///x/b.mp4\nhttps://x/c.mp4\n")
    assert [s.id for s in found.sources] == ["a.mp4"]
    assert [reason for _, reason in found.passed_over] == ["an address, no file"] * 2


def test_lists_elsewhere_name_the_option(tmp_path: Path) -> None:
    touched(tmp_path, "videos/v_abc.mp4", "lists/x")
    net = (
        '{"database": {"abc": {"subset": "training", "annotations": [{"label": "Run", "segment": [0, 1]}]}}}'
    )
    (tmp_path / "lists" / "net.json").write_text(net)
    with pytest.raises(TrainError, match=r"passed over: missing file 1.*--root FOLDER"):
        list_sources(tmp_path / "lists" / "net.json")
    found = list_sources(tmp_path / "lists" / "net.json", root=tmp_path / "videos")
    assert [(s.id, s.stamp is not None) for s in found.sources] == [("v_abc.mp4@0-1", True)]


def test_two_files_of_one_name_are_said(tmp_path: Path) -> None:
    touched(tmp_path, "a/abc.mp4", "b/abc.webm")
    found = listed(tmp_path, "label,youtube_id,time_start,time_end,split\nRun,abc,0,10,train\n")
    assert [s.id for s in found.sources] == ["a/abc.mp4@0-10"]
    assert found.passed_over == [("b/abc.webm", "another file of its name is taken: a/abc.mp4")]
