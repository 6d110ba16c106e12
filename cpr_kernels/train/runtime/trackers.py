"""Sends figures to a tracker that a user names: TensorBoard, Weights & Biases or MLflow."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from .. import TrainError
from .files import write_atomically

Logger = Literal["auto", "tensorboard", "wandb", "mlflow", "none"]
PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow-skinny"}
NO_NAME = re.compile(r"[^\w\-. :/]")  # what MLflow takes in no name


class Tracker(Protocol):
    """Takes the figures of steps; a run that resumes continues its own record."""

    def scalars(self, figures: Mapping[str, float], step: int) -> None:
        """Sends the figures of a step."""

    def flush(self) -> None:
        """Sends what is held back."""

    def close(self) -> None:
        """Ends the record."""


def check_logger(logger: Logger) -> None:
    """Raises `TrainError` where the package of a tracker that was named is missing."""
    if logger in PACKAGES and importlib.util.find_spec(logger) is None:
        raise TrainError(
            f"logger: {logger} is not installed: pip install {PACKAGES[logger]}; or --logger none"
        )


def open_tracker(logger: Logger, run: Path, resume_at: int, settings: Mapping[str, Any]) -> Tracker | None:
    """Returns the tracker of a run; `auto` is TensorBoard where it is installed, else none.

    `settings` are recorded as the run's configuration by those that have one.
    """
    check_logger(logger)
    if logger == "wandb":
        return _Wandb(run, settings)
    if logger == "mlflow":
        return _MLflow(run, settings)
    if logger == "none" or importlib.util.find_spec("tensorboard") is None:
        return None
    return _TensorBoard(run, resume_at)


def _identity(path: Path) -> str | None:
    """What a file says of the record that a run continues; None where there is none."""
    return json.loads(path.read_text())["id"] if path.is_file() else None


def _keep(path: Path, identity: str) -> None:
    write_atomically(path, json.dumps({"id": identity}).encode())


class _TensorBoard:
    """Writes `tensorboard/` in the run's folder."""

    def __init__(self, run: Path, resume_at: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(run / "tensorboard"), purge_step=resume_at)

    def scalars(self, figures: Mapping[str, float], step: int) -> None:
        for name, value in figures.items():
            self.writer.add_scalar(name, value, step)

    def flush(self) -> None:
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class _Wandb:
    """Sends to Weights & Biases as its own settings say (WANDB_PROJECT, WANDB_MODE=offline); files are in `wandb/`."""

    def __init__(self, run: Path, settings: Mapping[str, Any]) -> None:
        import wandb

        kept = run / "wandb_run.json"
        identity = _identity(kept) or uuid.uuid4().hex[:12]
        self.record = wandb.init(
            id=identity, resume="allow", dir=str(run), name=run.name, config=dict(settings),
            settings=wandb.Settings(silent=True, console="off"),
        )  # fmt: skip
        self.record.define_metric("*", step_metric="step")  # steps of a resumed run may come again
        _keep(kept, identity)

    def scalars(self, figures: Mapping[str, float], step: int) -> None:
        self.record.log({**figures, "step": step})

    def flush(self) -> None:
        """Does nothing: a process of wandb's own writes as figures come."""

    def close(self) -> None:
        self.record.finish()


class _MLflow:
    """Sends to the MLflow store that MLFLOW_TRACKING_URI names."""

    def __init__(self, run: Path, settings: Mapping[str, Any]) -> None:
        from mlflow.entities import Metric
        from mlflow.tracking import MlflowClient

        self.client, self.metric = MlflowClient(), Metric
        kept = run / "mlflow_run.json"
        known = _identity(kept)
        if known is None:
            known = self.client.create_run(self._experiment(), run_name=run.name).info.run_id
            for name, value in _flat(settings).items():
                self.client.log_param(known, name, value)
            _keep(kept, known)
        else:
            self.client.update_run(known, status="RUNNING")
        self.run_id = known

    def _experiment(self) -> str:
        """The experiment that MLFLOW_EXPERIMENT_NAME names, else MLflow's default."""
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "Default")
        found = self.client.get_experiment_by_name(name)
        return found.experiment_id if found else self.client.create_experiment(name)

    def scalars(self, figures: Mapping[str, float], step: int) -> None:
        now = int(1000 * time.time())
        self.client.log_batch(
            self.run_id,
            [self.metric(NO_NAME.sub("_", name), float(value), now, step) for name, value in figures.items()],
        )

    def flush(self) -> None:
        """Does nothing: every call has written."""

    def close(self) -> None:
        self.client.set_terminated(self.run_id)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as ``{"optim.lr": 0.1}``."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found
