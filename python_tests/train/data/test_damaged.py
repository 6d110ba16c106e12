"""Files that a crash, a full disk or a bad copy left behind: each is named in a sentence, before anything is begun."""

from __future__ import annotations

import json
import resource
import shutil
from pathlib import Path
from typing import Any

import pytest
from limits import limited
from train_sets import DRAFT, lively, tiny

from cpr_kernels.train import TrainError
from cpr_kernels.train.batches.dataset import ClipDataset
from cpr_kernels.train.batches.loader import clip_loader
from cpr_kernels.train.batches.sampler import ClipSampler
from cpr_kernels.train.data.prepare import prepare
from cpr_kernels.train.data.store import FrameStore
from cpr_kernels.train.encoders.weights import load_encoder, save_encoder
from cpr_kernels.train.evaluate import retrieval as evaluate
from cpr_kernels.train.evaluate.retrieval import evaluate_run, measurable_views
from cpr_kernels.train.pages.report import write_report
from cpr_kernels.train.pretrain.loop import pretrain
from cpr_kernels.train.pretrain.run_folder import config_of

pytest_plugins = ["train_fixtures"]


@pytest.fixture
def copied(data: Path, tmp_path: Path) -> Path:
    """A data set to be damaged."""
    return Path(shutil.copytree(data, tmp_path / "data"))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ('{"version": 2', r"is damaged \(Expecting"),
        ('{"version": 2}', r"is damaged \('settings'\)"),
        ("[]", "a list where an object belongs"),
        ('{"version": 7}', "has version 7, expected 1 or 2; prepare it again"),
    ],
)
def test_a_manifest_that_is_none(body: str, words: str, copied: Path, tmp_path: Path) -> None:
    (copied / "manifest.json").write_text(body)
    with pytest.raises(TrainError, match=r"data: .*manifest\.json .*" + words):
        pretrain(tiny(copied, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("left", "words"),
    [
        (
            20_000,
            r"is cut short \(20,000 of [\d,]+ bytes\); copy it again",
        ),  # reading it would end the process
        (0.9, r"is cut short \([\d,]+ of [\d,]+ bytes\)"),
        (100, "cannot be opened"),
        (None, "cannot be opened"),
    ],
)
def test_a_store_that_is_cut_short_or_none(
    left: float | None, words: str, copied: Path, clip_folder: Path, tmp_path: Path
) -> None:
    path = copied / "data.mdb"
    whole = path.read_bytes()
    size = len(whole) if left is None else round(left * len(whole)) if left < 1 else int(left)
    path.write_bytes(b"\xa5" * size if left is None else whole[:size])
    with pytest.raises(TrainError, match=words):
        pretrain(tiny(copied, tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    with pytest.raises(TrainError, match=words):
        prepare(clip_folder, copied, DRAFT)
    assert path.stat().st_size == size  # left as it was, for whoever wants to look


def test_a_store_that_is_missing(copied: Path, tmp_path: Path) -> None:
    (copied / "data.mdb").unlink()
    with pytest.raises(TrainError, match=r"holds no data\.mdb; make it with `cpr prepare`"):
        pretrain(tiny(copied, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_run_s_own_files(cascade_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(cascade_run, tmp_path / "run"))
    evaluate_run(run, clips=1, last=True)
    log, evaluation, config = ((run / name).read_text() for name in ("log.jsonl", "eval.json", "config.json"))
    (run / "log.jsonl").write_text(log + "garbage\n")
    with pytest.raises(TrainError, match=rf"log\.jsonl line {log.count(chr(10)) + 1} is damaged"):
        write_report([run], tmp_path / "page.html")
    (run / "log.jsonl").write_text(log)
    (run / "eval.json").write_text(evaluation[:50])
    with pytest.raises(TrainError, match=r"eval\.json is damaged .*run `cpr evaluate .*` again"):
        write_report([run], tmp_path / "page.html")
    for body in (config[:50], "[]", config.replace('"queue"', '"cue"')):
        (run / "config.json").write_text(body)
        with pytest.raises(TrainError, match=r"run: .*config\.json is damaged, or of another version"):
            config_of(run)
    with pytest.raises(
        TrainError, match=r"is the checkpoint of a whole run, not one encoder; give a file of .*encoders"
    ):
        load_encoder(run / "checkpoint.pt")


def test_a_split_without_videos(data: Path, copied: Path) -> None:
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["videos"] = [video for video in manifest["videos"] if video["split"] == "test"]
    (copied / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(TrainError, match="has no train video; prepare it with both splits"):
        ClipDataset(copied, 8, 32)
    assert measurable_views(copied, ("rgb", "flow")) == (
        "rgb",
        "flow",
    )  # nothing is said of views where no video is


def test_a_view_that_the_tested_data_lack_is_left_out_and_said(
    data: Path, sound_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """A run with sound, tested on videos without: the other views are measured."""
    run = tmp_path / "run"
    config = tiny(sound_data, run, views=("rgb", "audio"))
    monkeypatch.setattr(evaluate, "config_of", lambda folder: config)
    monkeypatch.setattr(evaluate, "is_own_data", lambda run, data: False)
    for view in config.views:
        save_encoder(run / "encoders" / f"00-infonce.{view}.safetensors", lively(), view, phase="infonce")
    [result] = evaluate_run(run, clips=1, data=data)
    assert list(result["recall"]) == list(result["probe"]) == ["rgb"]
    said = " ".join(capsys.readouterr().err.split())
    assert "no train and no test video of" in said and "has audio: not measured there" in said
    with pytest.raises(TrainError, match="has no audio to test with"):
        measurable_views(data, ("audio",))


def test_a_full_disk_is_a_sentence_and_what_was_stored_stays(tmp_path: Path) -> None:
    with (
        limited(resource.RLIMIT_FSIZE, 4096),
        pytest.raises(TrainError, match=r"cannot be written to .*free some"),
    ):
        FrameStore(tmp_path, writable=True).put({"a": b"1"})
    store = FrameStore(tmp_path, writable=True)
    store.put({"a": json.dumps({"of": "a"}).encode()})
    with limited(resource.RLIMIT_FSIZE, 1 << 17), pytest.raises(TrainError, match="free some space"):
        store.put({"b": bytes(1 << 20)})
    assert store.get_json("a") == {"of": "a"} and store.get_json("b") is None
    store.put({"b": json.dumps({"of": "b"}).encode()})
    assert store.get_json("b") == {"of": "b"}
    store.close()


def test_more_workers_than_open_files_are_refused_before_they_start(data: Path) -> None:
    with (
        limited(resource.RLIMIT_NOFILE, 64),
        pytest.raises(
            TrainError, match=r"workers: 20 need about 104 open files, and the limit is 64.*ulimit -n"
        ),
    ):
        clip_loader(ClipDataset(data, 8, 32), ClipSampler(4, 2, seed=0), 20)
