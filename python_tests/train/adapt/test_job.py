"""`cpr adapt`: resumed runs, what is held out, early stop, the artifact and the commands."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapt_data import SMALL, Trained

from cpr_command import main
from cpr_kernels.deploy import Adapter, ArtifactError, Model, artifact
from cpr_kernels.train import TrainError
from cpr_kernels.train.adapt import HeadTrainer, Table
from cpr_kernels.train.adapt.job import adapt
from cpr_kernels.train.adapt.table import split_by_source
from cpr_kernels.train.runtime.checkpoint import load


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_killed_job_resumes_bit_for_bit(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the epoch that tunes the plan, the job ends as one that was never killed."""
    run_epoch = HeadTrainer.run_epoch

    def killed(self: HeadTrainer) -> Any:
        if self.epoch == 2:
            raise KeyboardInterrupt
        return run_epoch(self)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(HeadTrainer, "run_epoch", killed)
        adapt(trained.table, SMALL, tmp_path / "again")
    assert len(lines_of(tmp_path / "again")) == 2
    report = adapt(trained.table, SMALL, tmp_path / "again", resume=True)
    assert lines_of(tmp_path / "again") == lines_of(trained.folder)
    for name in ("weights.safetensors", "program.pt2"):
        assert (
            name == "program.pt2"
            or (tmp_path / "again" / name).read_bytes() == (trained.folder / name).read_bytes()
        )
    assert replace(report, files=[]) == replace(trained.report, files=[])


def test_held_out_sources_take_no_part(trained: Trained, tmp_path: Path) -> None:
    """Other numbers in the held-out rows leave every weight as it was."""
    table = trained.table
    _, held = split_by_source(table, 0.2, SMALL.seed)
    theirs = torch.isin(table.sources, held.sources)
    views = {view: torch.where(theirs[:, None], rows.flip(1), rows) for view, rows in table.views.items()}
    adapt(Table(views, table.sources, table.labels), SMALL, tmp_path / "other")
    states = [load(folder / "checkpoint.pt")["trainer"] for folder in (trained.folder, tmp_path / "other")]
    for part in ("heads", "momentum", "queue"):
        for name, value in states[0][part].items():
            assert torch.equal(value, states[1][part][name]), name
    assert not set(states[0]["queue"]["ids"].tolist()) & set(held.sources.tolist())


def test_the_epoch_that_agrees_most_is_kept(trained: Trained, tmp_path: Path) -> None:
    agreed = [line["agreement"] for line in lines_of(trained.folder)]
    assert trained.report.agreement is not None
    before, after = trained.report.agreement
    assert after == max(before, *agreed) and trained.report.epoch == [before, *agreed].index(after)
    ruined = adapt(
        trained.table, replace(SMALL, lr=3.0, warm_up=0, epochs=1, method="infonce"), tmp_path / "ruined"
    )
    assert ruined.epoch == 0 and ruined.agreement == (before, before)
    assert ruined.recall is not None and ruined.recall[0] == ruined.recall[1]


def test_a_folder_is_of_one_job(trained: Trained) -> None:
    with pytest.raises(TrainError, match=r"holds a job already; add --resume to continue it"):
        adapt(trained.table, SMALL, trained.folder)
    with pytest.raises(TrainError, match=r"was begun with another lr; repeat its arguments"):
        adapt(trained.table, replace(SMALL, lr=1.0), trained.folder, resume=True)
    assert trained.table.labels is not None
    relabelled = Table(trained.table.views, trained.table.sources, trained.table.labels.flip(0))
    with pytest.raises(TrainError, match=r"was begun with another table"):
        adapt(relabelled, SMALL, trained.folder, resume=True)
    other = Table(trained.table.views, trained.table.sources + 1)
    with pytest.raises(TrainError, match=r"was begun with another table"):
        adapt(other, SMALL, trained.folder, resume=True)
    with pytest.raises(TrainError, match=r"holds no job of `cpr adapt`"):
        adapt(trained.table, SMALL, trained.folder / "none", resume=True)


def test_rows_that_are_not_finite_are_refused(trained: Trained, tmp_path: Path) -> None:
    rows = trained.table.views["rgb"].clone()
    rows[[3, 5]] = torch.nan
    table = Table({**trained.table.views, "rgb": rows}, trained.table.sources)
    with pytest.raises(TrainError, match=r"views: 2 rows of 'rgb' hold NaN or infinity, the first is row 3"):
        adapt(table, SMALL, tmp_path / "nan")


def test_one_view_keeps_the_last_epoch(trained: Trained, tmp_path: Path) -> None:
    table = Table({"rgb": trained.table.views["rgb"]}, trained.table.sources)
    report = adapt(table, replace(SMALL, method="infonce", warm_up=1, epochs=1), tmp_path / "one")
    assert (report.agreement, report.recall, report.epoch) == (None, None, 2)


def test_the_artifact_and_its_program_map_alike(trained: Trained) -> None:
    adapter, views = Adapter(trained.folder / "model.cpr"), trained.table.views
    found = adapter({**views, "more": torch.zeros(240, 3)})
    assert list(found) == ["rgb", "flow"] and adapter.sizes == {"rgb": 16, "flow": 16}
    program = torch.export.load(trained.folder / "program.pt2").module()
    for mine, theirs in zip(found.values(), program(*views.values())):
        torch.testing.assert_close(mine, theirs)
    with pytest.raises(ValueError, match=r"of rgb, flow, got rgb"):
        adapter({"rgb": views["rgb"]})
    with pytest.raises(ValueError, match=r"views: 'flow' must be \[N, 16\]"):
        adapter({**views, "flow": torch.zeros(2, 3)})


def test_an_adapter_is_no_model_of_videos(trained: Trained) -> None:
    with pytest.raises(ArtifactError, match=r"made by `cpr adapt`: it takes tables of embeddings"):
        Model(trained.folder / "model.cpr")


def test_weights_that_are_no_heads_are_refused(trained: Trained, tmp_path: Path) -> None:
    from safetensors.torch import load as tensors_of
    from safetensors.torch import save

    _, members = artifact.read(trained.folder / "model.cpr")
    both = tensors_of(members[artifact.WEIGHTS])
    weights = {name: value for name, value in both.items() if name.startswith("of_view.0.")}
    view = {"name": "rgb", "record": "embedding", "architecture": "residual", "embedding": 16}
    manifest = {"kind": "adapter", "views": [view], "embedding": 16, "classes": []}
    odd = {
        r"lacks the head of 'rgb'": {"of_view.0.mean": weights["of_view.0.mean"]},
        r"is torch.float64, expected torch.float32": {
            name: value.double() for name, value in weights.items()
        },
        r"tensors of other shapes": {**weights, "of_view.0.mean": torch.zeros(2, 2)},
        r"size mismatch": {**weights, "of_view.0.mean": torch.zeros(5)},
        r"Unexpected key": both,  # of two views
    }
    for message, stored in odd.items():
        artifact.write(tmp_path / "odd.cpr", manifest, {artifact.WEIGHTS: save(stored)})
        with pytest.raises(ArtifactError, match=message):
            Adapter(tmp_path / "odd.cpr")


def test_commands(trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`cpr adapt` resumes what the job began, and `cpr predict` maps the table."""
    table = trained.table
    views = {view: rows.numpy() for view, rows in table.views.items()}
    np.savez(tmp_path / "t.npz", **views, video=table.sources.numpy(), label=np.asarray(table.labels))
    shutil.copytree(trained.folder, tmp_path / "model")
    options = "--hidden 16 --warm-up 1 --epochs 2 --batch 32 --queue 64 --resume --json"
    assert main(["adapt", str(tmp_path / "t.npz"), "--out", str(tmp_path / "model"), *options.split()]) == 0
    said = json.load(io.StringIO(capsys.readouterr().out))
    assert said["agreement"] == list(trained.report.agreement or ()) and said["rows"] == [192, 48]
    out = tmp_path / "adapted.npz"
    assert (
        main(["predict", str(tmp_path / "model" / "model.cpr"), str(tmp_path / "t.npz"), "--out", str(out)])
        == 0
    )
    with np.load(out) as adapted:
        assert set(adapted.files) == {"rgb", "flow", "video", "label"}
        expected = Adapter(trained.folder / "model.cpr")(table.views)
        np.testing.assert_array_equal(adapted["flow"], expected["flow"].numpy())
        np.testing.assert_array_equal(adapted["video"], table.sources)
    assert main(["predict", str(tmp_path / "model" / "model.cpr"), "a.npz", "b.npz"]) == 2
    assert "give it one table of embeddings" in capsys.readouterr().err


def test_clips_of_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw = np.random.default_rng(0)
    clips = {view: draw.standard_normal((40, 3, 6), dtype=np.float32) for view in ("a", "b")}
    np.savez(tmp_path / "t.npz", **clips)
    options = "--hidden 4 --warm-up 1 --epochs 0 --batch 16 --queue 8 --hold-out 0.5 --clips"
    assert main(["adapt", str(tmp_path / "t.npz"), "--out", str(tmp_path / "m"), *options.split()]) == 0
    assert "views a [3, 6], b [3, 6]" in capsys.readouterr().out
