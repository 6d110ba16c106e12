"""A run's figures in the tracker that a user names, read back by the tracker's own code; offline."""

from __future__ import annotations

import importlib.util
import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("cv2", reason="the trainer's packages: pip install 'cpr_kernels[train]'")

from cpr_kernels.__main__ import main
from cpr_kernels.train.runtime.run_log import RunLog

SETTINGS = {"seed": 3, "optim": {"lr": 0.1}}


def two_runs(run: Path, logger: str) -> None:
    """Three steps, then a run that resumes at the third."""
    run.mkdir(exist_ok=True)
    for first, steps in ((0, 3), (2, 2)):
        with RunLog(run, first, logger=logger, settings=SETTINGS) as log:
            for step in range(first, first + steps):
                log.step({"step": step}, {"loss_rgb": step / 2, "bad": float("nan")})
            log.epoch(
                {"step": 3},
                {"mined": {"pmr": 0.5, "r1": 0.25, "cmr_median": 0.1, "cmr": {"Träge (a)": 1.0}}},
                {"mined": 0.75},
            )


def test_tensorboard_reads_what_is_sent(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    two_runs(tmp_path / "run", "tensorboard")
    board = events.EventAccumulator(str(tmp_path / "run/tensorboard")).Reload()
    assert [(one.step, one.value) for one in board.Scalars("loss_rgb")] == [
        (0, 0),
        (1, 0.5),
        (2, 1),
        (3, 1.5),
    ]
    assert board.Scalars("epoch_agreement/mined")[-1].value == 0.75


def test_mlflow_reads_what_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="pip install 'cpr_kernels[loggers]'")
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    two_runs(tmp_path / "run", "mlflow")
    client = MlflowClient()
    found = client.search_runs([client.get_experiment_by_name("Default").experiment_id])
    assert len(found) == 1  # the run that resumed is the same one
    run = found[0]
    assert run.info.status == "FINISHED" and run.data.params == {"seed": "3", "optim.lr": "0.1"}
    points = {(one.step, one.value) for one in client.get_metric_history(run.info.run_id, "loss_rgb")}
    assert points == {(0, 0), (1, 0.5), (2, 1), (3, 1.5)}
    assert run.data.metrics["epoch_pmr/mined"] == 0.5 and run.data.metrics["cmr_mined/Träge _a_"] == 1.0


def leveldb_records(log: bytes) -> Iterator[bytes]:
    """The records of wandb's file: LevelDB's log format after a header of 7 bytes."""
    place, parts = 7, b""
    while place + 7 <= len(log):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        size, kind = struct.unpack_from("<HB", log, place + 4)
        parts += log[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def test_wandb_reads_what_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="pip install 'cpr_kernels[loggers]'")
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    two_runs(tmp_path / "run", "wandb")
    points, identities = [], set()
    for path in sorted((tmp_path / "run/wandb").glob("offline-run-*/*.wandb"), key=os.path.getmtime):
        for data in leveldb_records(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.run.run_id:
                identities.add(record.run.run_id)
            row = {
                item.key or "/".join(item.nested_key): json.loads(item.value_json)
                for item in record.history.item
            }
            if "loss_rgb" in row:
                points.append((row["step"], row["loss_rgb"]))
    assert points == [(0, 0), (1, 0.5), (2, 1), (2, 1), (3, 1.5)] and len(identities) == 1


@pytest.mark.parametrize("logger", ["wandb", "mlflow"])
def test_a_missing_tracker_is_said_before_a_folder_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, logger: str
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == logger else found(name, *rest)
    )
    assert (
        main(["pretrain", "--data", str(tmp_path), "--out", str(tmp_path / "run"), "--logger", logger]) == 2
    )
    assert f"logger: {logger} is not installed: pip install" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
