"""Runs that were moved or copied, with their data set or without, work as before."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import train_sets  # noqa: F401  skips without the trainer's packages

from cpr_kernels.train import TrainError
from cpr_kernels.train.data.manifest import Manifest
from cpr_kernels.train.evaluate.finetune import Finetune, _refuse_another, settings_of
from cpr_kernels.train.evaluate.retrieval import evaluate_run
from cpr_kernels.train.pages.explorer.runs import explore
from cpr_kernels.train.pages.report import write_report
from cpr_kernels.train.pretrain.config import same_settings
from cpr_kernels.train.pretrain.loop import pretrain
from cpr_kernels.train.pretrain.run_folder import WarmStart, config_of

pytest_plugins = ["train_fixtures"]


@pytest.fixture(scope="module")
def moved(cascade_run: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the run, and of its data set at the same place seen from there."""
    run = tmp_path_factory.mktemp("moved") / "a" / "b" / "run"
    shutil.copytree(cascade_run, run)
    shutil.copytree(data, os.path.normpath(run / os.path.relpath(data, cascade_run)))
    return run


def test_a_run_finds_its_data_beside_it(moved: Path, cascade_run: Path, data: Path, tmp_path: Path) -> None:
    config = config_of(moved)
    assert config.out == moved and config.data.is_relative_to(moved.parents[2])
    assert config.data != data and Manifest.load(config.data) == Manifest.load(data)
    alone = Path(shutil.copytree(cascade_run, tmp_path / "run"))
    assert config_of(alone).data == data  # copied without it
    assert same_settings(replace(config_of(alone), out=cascade_run), config_of(cascade_run))


def test_a_run_of_before_still_reads(cascade_run: Path, data: Path, tmp_path: Path) -> None:
    body = json.loads((cascade_run / "config.json").read_text())
    assert body["folder"] == body["out"] == str(cascade_run) and body["data"] == str(data)
    (tmp_path / "config.json").write_text(
        json.dumps({key: value for key, value in body.items() if key not in ("folder", "videos")})
    )
    assert replace(config_of(tmp_path), out=cascade_run) == config_of(cascade_run)
    assert config_of(tmp_path, tmp_path / "elsewhere").data == tmp_path / "elsewhere"


def test_data_that_was_moved_is_given_by_name(cascade_run: Path, data: Path, tmp_path: Path) -> None:
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    shutil.copytree(cascade_run, run)
    shutil.copytree(data, elsewhere)
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "data": str(tmp_path / "gone")}))
    with pytest.raises(TrainError, match=r"gone holds no prepared data set.*--data"):
        explore([run], tmp_path / "page.html")
    assert explore([run], tmp_path / "page.html", data=elsewhere).is_file()
    evaluate_run(run, clips=1, data=elsewhere, last=True)
    assert (run / "eval.json").is_file()  # its own data set: no transfer
    assert write_report([run], tmp_path / "report.html", data=elsewhere).is_file()
    assert pretrain(config_of(run, elsewhere), resume=True) == run
    (run / "config.json").write_text(json.dumps({**config, "data": str(data)}))
    manifest = Manifest.load(elsewhere)
    replace(manifest, videos=manifest.videos[1:]).save(elsewhere)
    with pytest.raises(TrainError, match="holds other videos than"):
        pretrain(replace(config_of(run), data=elsewhere), resume=True)
    with pytest.raises(TrainError, match="holds other videos than"):
        explore([run], tmp_path / "page.html", data=elsewhere)


def refused_another(settings: Finetune) -> dict:
    return _refuse_another(settings, Manifest.load(settings.data))


def test_a_fine_tuning_resumes_on_data_that_was_moved(data: Path, cascade_run: Path, tmp_path: Path) -> None:
    settings = Finetune(data, tmp_path / "tuned", run=cascade_run).resolved()
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned" / "finetune.json").write_text(json.dumps(refused_another(settings)))
    elsewhere = Path(shutil.copytree(data, tmp_path / "elsewhere"))
    assert refused_another(replace(settings, data=elsewhere))["data"] == str(elsewhere)
    manifest = Manifest.load(elsewhere)
    replace(manifest, videos=manifest.videos[1:]).save(elsewhere)
    with pytest.raises(TrainError, match=r"made with other settings \(data .*elsewhere\)"):
        refused_another(replace(settings, data=elsewhere))


def test_a_moved_run_resumes(moved: Path) -> None:
    before = (moved / "checkpoint.pt").read_bytes()
    pretrain(config_of(moved), resume=True)  # finished: nothing is left to do
    assert (moved / "checkpoint.pt").read_bytes() == before
    body = json.loads((moved / "config.json").read_text())
    assert body["folder"] == body["out"] == str(moved) and Path(body["data"]).is_relative_to(moved.parents[2])


def test_what_updates_and_fine_tunings_name_moves_too(tmp_path: Path) -> None:
    old = tmp_path / "old"
    for name in ("run", "data", "update", "tuned"):
        (old / name).mkdir(parents=True)
    WarmStart(str(old / "run"), 3, 0.5).save(old / "update" / "goes_on.json")
    settings = {
        "data": str(old / "data"),
        "run": str(old / "run"),
        "encoder": None,
        "folder": str(old / "tuned"),
    }
    (old / "tuned" / "finetune.json").write_text(json.dumps(settings))
    new = tmp_path / "new"
    old.rename(new)
    assert WarmStart.load(new / "update" / "goes_on.json") == WarmStart(str(new / "run"), 3, 0.5)
    assert settings_of(new / "tuned") == {"data": str(new / "data"), "run": str(new / "run"), "encoder": None}
