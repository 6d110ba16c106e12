"""Logs a training: JSON lines for every step and epoch, what was mined, and a tracker such as TensorBoard."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from .. import TrainError
from .files import write_atomically
from .trackers import Logger, open_tracker


class RunLog:
    """Writes `log.jsonl` (a line per step and epoch), `mined.jsonl` (each epoch's last batch), and sends to a tracker.

    Opened at step `resume_at`, it first drops what a killed run had written at or after that step. With `writes`
    False, for all ranks but the first, nothing is written. `settings` are recorded where the tracker has a place.
    """

    def __init__(
        self,
        run: Path,
        resume_at: int = 0,
        writes: bool = True,
        logger: Logger = "auto",
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        names = ("log.jsonl", "mined.jsonl")
        for name in names if writes else ():
            truncate(run / name, resume_at)
        files = [run / name if writes else Path(os.devnull) for name in names]
        self._log, self._mined = files[0].open("a"), files[1].open("a")
        self._tracker = open_tracker(logger if writes else "none", run, resume_at, settings or {})

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()
        self._log.close()
        self._mined.close()
        if self._tracker is not None:
            self._tracker.close()

    def step(self, facts: dict[str, Any], figures: dict[str, float]) -> None:
        """Writes one training step: losses, PMR of every way of mining, seconds."""
        finite = {name: value for name, value in figures.items() if math.isfinite(value)}
        self._log.write(json.dumps({"kind": "step", **facts, **finite}) + "\n")
        self._scalars(facts["step"], finite)

    def epoch(
        self, facts: dict[str, Any], summary: dict[str, dict[str, Any]], agreement: Mapping[str, float]
    ) -> None:
        """Writes the epoch's PMR, median CMR and CMR per class for every way of mining, and the views' agreement."""
        self._log.write(
            json.dumps({"kind": "epoch", **facts, "mining": summary, "agreement": dict(agreement)}) + "\n"
        )
        self._scalars(facts["step"], {f"epoch_agreement/{name}": value for name, value in agreement.items()})
        for name, figures in summary.items():
            flat = {f"epoch_{key}/{name}": figures[key] for key in ("pmr", "r1", "cmr_median")}
            flat.update({f"cmr_{name}/{label}": value for label, value in figures["cmr"].items()})
            self._scalars(facts["step"], flat)

    def mined(self, facts: dict[str, Any], videos: Tensor, picks: dict[str, Tensor]) -> None:
        """Writes the videos [B] of a batch, and the videos [B, k] that each way of mining picked for them."""
        lists = {name: chosen.tolist() for name, chosen in picks.items()}
        self._mined.write(json.dumps({**facts, "videos": videos.tolist(), "picks": lists}) + "\n")

    def flush(self) -> None:
        """Flushes everything to the disk, so that a checkpoint is never ahead of the log."""
        for file in (self._log, self._mined):
            try:
                file.flush()
                if file.name != os.devnull:
                    os.fsync(file.fileno())
            except OSError as error:
                raise OSError(error.errno, error.strerror, file.name) from error
        if self._tracker is not None:
            self._tracker.flush()

    def _scalars(self, step: int, figures: dict[str, Any]) -> None:
        if self._tracker is not None:
            self._tracker.scalars(figures, step)


def truncate(path: Path, step: int) -> None:
    """Drops the lines of a JSON-lines log written at `step` or later, and a last line cut short by a kill."""
    if not path.is_file():
        return
    kept = [line for line in _lines(path) if line[1]["step"] < step]
    write_atomically(path, "".join(text for text, _ in kept).encode())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Returns the lines of a JSON-lines log; a last line cut short is left out."""
    if not path.is_file():
        raise TrainError(f"run: {path} is missing; is {path.parent} the folder of a run?")
    return [body for _, body in _lines(path)]


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the whole lines of a log, and what each holds: an object with a step.

    Raises:
        TrainError: a damaged line.
    """
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
        if line.endswith(b"\n"):
            try:
                body = json.loads(line)  # a figure of a log may be no number
                if not isinstance(body, dict) or not isinstance(body.get("step"), int):
                    raise ValueError("it holds no step")
                yield line.decode(), body
            except (ValueError, RecursionError) as error:
                raise TrainError(
                    f"run: {path} line {number} is damaged ({error}); take that line out"
                ) from None
