"""Videos without classes: everything runs that needs none, and what needs them says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bench_tools import ROOT  # noqa: F401  puts the repository's root on the path
from train_sets import DRAFT, tiny

from bench.harness.chromium import Page
from cpr_kernels.__main__ import main
from cpr_kernels.train import TrainError
from cpr_kernels.train.data.manifest import NO_CLASS, Manifest
from cpr_kernels.train.data.prepare import prepare, print_summary
from cpr_kernels.train.data.sources import list_sources
from cpr_kernels.train.evaluate.finetune import Finetune, finetune
from cpr_kernels.train.evaluate.retrieval import evaluate_run
from cpr_kernels.train.pretrain.config import Mining
from cpr_kernels.train.pretrain.loop import build, pretrain
from cpr_kernels.train.runtime.run_log import read_lines

pytest_plugins = ["train_fixtures", "page_fixtures"]


@pytest.fixture(scope="module")
def flat(clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """28 videos in one folder."""
    folder = tmp_path_factory.mktemp("flat")
    for number, path in enumerate(sorted(clip_folder.rglob("*.mp4"))[:28]):
        (folder / f"holiday {number:02}.mp4").symlink_to(path)
    return folder


@pytest.fixture(scope="module")
def run(flat: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("data")
    prepared = prepare(flat, data, DRAFT)
    print_summary(prepared, data)
    return pretrain(tiny(data, data / "run", infonce_epochs=4))


def touched(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def test_a_flat_folder_trains_without_classes(run: Path) -> None:
    manifest = Manifest.load(run.parent)
    assert manifest.classes == [] and len(manifest.videos) == 28
    assert {(v.label, v.split) for v in manifest.videos} == {(NO_CLASS, "train")}
    assert len({v.group for v in manifest.videos}) == 28
    lines = read_lines(run / "log.jsonl")
    steps = [line for line in lines if line["kind"] == "step"]
    assert steps and not [key for line in steps for key in line if key.startswith("pmr")]
    epochs = [line for line in lines if line["kind"] == "epoch"]
    assert all(line["mining"] == {} for line in epochs)
    assert [bool(line["agreement"]) for line in epochs] == [False] * 4 + [True] * 2
    assert any(line["picks"].get("mined") for line in read_lines(run / "mined.jsonl"))


def test_its_pages_show_what_was_mined_and_judge_nothing(run: Path, tab: Page, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    assert main(["report", str(run), "--out", str(page)]) == 0
    text = page.read_text()
    assert "The videos have no classes: mining and retrieval are shown, not measured." in text
    assert "mined</div>" in text and "✗" not in text.split("</style>")[1] and not (run / "eval.json").exists()
    assert "Agreement of the views, no labels" in text  # and loss and learning rate
    assert text.count("data:image/svg+xml;base64,") == 3
    inside = tmp_path / "report_inside.html"
    script = (
        "await drawn(); return {title: document.querySelector('.found h2').textContent, heads: [...document.querySelectorAll('th')]"
        ".map((one) => one.textContent), marked: document.querySelectorAll('.right, .wrong').length, name: "
        "document.querySelector('.picks .name').textContent, history: document.getElementById('history').textContent}"
    )
    tab.open(inside)
    shown = tab.run(script)
    assert not tab.errors
    assert shown["title"].startswith("mined: ") and "right" not in shown["title"]
    assert shown["heads"] == ["stage", "judge", "stay", "out"] and shown["marked"] == 0
    assert shown["name"].startswith("holiday ") and "its videos have no classes" in shown["history"]


def test_its_encoders_fill_an_index(
    run: Path, flat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, known = str(tmp_path / "model.cpr"), str(tmp_path / "known")
    assert main(["export", str(run), "--out", model, "--views", "rgb", "--clips", "2", "--center", "4"]) == 0
    three = [str(flat / f"holiday 0{i}.mp4") for i in range(3)]
    assert main(["index", model, *three, "--out", known]) == 0
    assert "3 videos added" in capsys.readouterr().out
    assert main(["search", model, known, three[0], "--format", "jsonl"]) == 0
    near = json.loads(capsys.readouterr().out)["near"]
    assert len(near) == 2 and all(-1 <= one["score"] <= 1.001 for one in near)


def test_what_needs_classes_says_so(run: Path, tmp_path: Path) -> None:
    with pytest.raises(
        TrainError, match="has no classes, and measuring retrieval and the probe needs them; prepare"
    ):
        evaluate_run(run)
    with pytest.raises(TrainError, match="has no classes, and a classifier needs them"):
        finetune(Finetune(data=run.parent, out=tmp_path / "c", run=run))
    with pytest.raises(TrainError, match=r"has no classes, and mining\.method ubernce needs them"):
        build(tiny(run.parent, tmp_path / "r", mining=Mining(method="ubernce")))


def test_which_data_sets_have_no_classes(tmp_path: Path) -> None:
    archive = touched(
        tmp_path / "archive", "2023/05/a.mp4", "2023/06/a.mp4", "2024/b.mp4", "2024/v_Run_g02_c01.avi"
    )
    listing = list_sources(archive, labels="none")
    assert {source.label for source in listing.sources} == {""}
    assert len({source.group for source in listing.sources}) == 4  # two files called a.mp4 are no siblings
    assert [source.split for source in listing.sources] == [
        "train",
        "train",
        "train",
        "test",
    ]  # split 1 of UCF101
    split = list_sources(touched(tmp_path / "split", "train/a.mp4", "train/b.mp4", "val/c.mp4"))
    assert [(s.split, s.label) for s in split.sources] == [("train", ""), ("train", ""), ("test", "")]
    deep = list_sources(touched(tmp_path / "deep", "train/Run/a.mp4", "val/Jump/c.mp4"), labels="none")
    assert [(s.split, s.label) for s in deep.sources] == [("train", ""), ("test", "")]
    few = touched(tmp_path / "few", "Run/a.mp4", "Jump/b.mp4", "c.mp4")
    assert [source.id for source in list_sources(few).sources] == ["Jump/b.mp4", "Run/a.mp4"]
    most = touched(tmp_path / "most", "a.mp4", "b.mp4", "old/c.mp4")
    with pytest.raises(
        TrainError, match="2 videos are in no class folder, and 1 are in one; add --labels none"
    ):
        list_sources(most)
    assert len(list_sources(most, labels="none").sources) == 3
    assert [source.label for source in list_sources(most, labels="folder").sources] == ["old"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("head", ["path\n", "", "path,split\n", "path,label\n"])
def test_a_list_of_paths_only(tmp_path: Path, encoding: str, head: str) -> None:
    touched(tmp_path, "a.mp4", "sub/é.mkv")
    more = "," * head.count(",")
    (tmp_path / "list.csv").write_text(f"{head}a.mp4{more}\nsub/é.mkv{more}\n", encoding=encoding)
    listing = list_sources(tmp_path / "list.csv")
    assert [(s.id, s.path, s.label, s.split) for s in listing.sources] == [
        ("a.mp4", tmp_path / "a.mp4", "", "train"), ("sub/é.mkv", tmp_path / "sub" / "é.mkv", "", "train"),
    ]  # fmt: skip
    assert listing.passed_over == [] and listing.notes == ["no labels: the data set has no classes"]


def test_a_row_without_a_label_among_others_is_passed_over(tmp_path: Path) -> None:
    touched(tmp_path, "a.mp4", "b.mp4")
    (tmp_path / "list.csv").write_text("path,label\na.mp4,Run\nb.mp4,\n./a.mp4,Run\n")
    listing = list_sources(tmp_path / "list.csv")
    assert [source.id for source in listing.sources] == ["./a.mp4"]
    assert dict(listing.passed_over) == {
        "list.csv line 3": "path or label is empty", "a.mp4": "same file again: ./a.mp4 (train)",
    }  # fmt: skip
    assert len(list_sources(tmp_path / "list.csv", labels="none").sources) == 2
