"""Trains heads in a folder: before and after on held-out sources, stopped early by agreement, resumable."""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from ... import MiningPlan
from ...networks.heads import Heads
from ...progress import ProgressBar
from .. import Interrupted, TrainError
from ..runtime.checkpoint import load, save
from ..runtime.files import read_json, write_atomically
from ..runtime.lock import exclusive
from ..runtime.run_log import truncate
from ..runtime.signals import stop_flag
from .config import AdaptConfig
from .export import export
from .measure import agreement, hits, recall
from .table import Table, split_by_source
from .training import Epoch, HeadTrainer

CONFIG, CHECKPOINT, LOG, PLAN, REPORT = (
    "config.json",
    "checkpoint.pt",
    "log.jsonl",
    "plan.json",
    "report.json",
)
Recall = dict[str, dict[int, float]]


@dataclass
class Best:
    """Holds the heads of the epoch in which the held-out rows' views agree most; epoch 0 is before training."""

    agreement: float | None
    epoch: int
    heads: dict[str, torch.Tensor]


@dataclass(frozen=True)
class Report:
    """Says what training has brought on held-out sources; written as `report.json`."""

    rows: tuple[int, int]  # trained on, held out
    epoch: int  # whose heads were kept, 0 is before training
    agreement: tuple[float, float] | None  # of the views, before and after; None with one view
    recall: tuple[Recall, Recall] | None  # of training rows by held-out ones; None without labels
    plan: str | None  # of the method auto
    files: list[str] = field(default_factory=list)


def adapt(
    table: Table, config: AdaptConfig, out: Path, hold_out: float = 0.2, resume: bool = False
) -> Report:
    """Trains heads on a table, keeps those of the epoch that agrees most on held-out sources, and exports them.

    After every epoch the folder has a checkpoint and a line in `log.jsonl`: stopped or killed, `resume` continues,
    and ends with the same weights bit for bit. The held-out sources take no part in training; which epoch is kept
    is decided on them without labels. With one view, nothing can agree, and the last epoch is kept.

    Args:
        table: all rows.
        config: the settings.
        out: folder of checkpoint, log, report and artifact.
        hold_out: share of the sources that is held out.
        resume: continue what an earlier call began.

    Raises:
        TrainError: settings that cannot work, rows that are not finite, or a folder of another job.
        Interrupted: stopped by SIGINT or SIGTERM; resume continues.
    """
    config.check()
    _refuse_not_finite(table)
    train, held = split_by_source(table, hold_out, config.seed)
    with exclusive(out, "train"):
        _claim(table, config, out, hold_out, resume)
        plan = MiningPlan.load(out / PLAN) if (out / PLAN).is_file() else None
        trainer = HeadTrainer(train, config, plan)
        start = copy.deepcopy(trainer.heads)
        before = _agreement(start, held)
        best = Best(before, 0, start.state_dict())
        if (out / CHECKPOINT).is_file():
            state = load(out / CHECKPOINT)
            trainer.load_state_dict(state["trainer"])
            best = Best(**state["best"])
        truncate(out / LOG, trainer.epoch)
        _train(trainer, best, held, out)
        kept = copy.deepcopy(start)
        kept.load_state_dict(best.heads)
        agreed = None if before is None or best.agreement is None else (before, best.agreement)
        files = [str(path) for path in export(kept, out)]
        report = Report(
            (len(train), len(held)), best.epoch, agreed, _recall(start, kept, train, held),
            None if trainer.plan is None else trainer.plan.describe(), files,
        )  # fmt: skip
        write_atomically(out / REPORT, json.dumps(asdict(report), indent=1).encode())
    return report


def _train(trainer: HeadTrainer, best: Best, held: Table, out: Path) -> None:
    """Runs the epochs that are left; `best` is changed in place."""
    with stop_flag() as stop, ProgressBar("adapt", trainer.epochs, done=trainer.epoch, unit="epoch") as bar:
        while trainer.epoch < trainer.epochs:
            number, had_plan = trainer.epoch, trainer.plan is not None
            figures = trainer.run_epoch()
            if trainer.plan is not None and not had_plan:
                trainer.plan.save(out / PLAN)
            agreed = _agreement(trainer.heads, held)
            if agreed is None or best.agreement is None or agreed > best.agreement:
                best.agreement, best.epoch = agreed, trainer.epoch
                best.heads = copy.deepcopy(trainer.heads.state_dict())
            line = {
                "step": number,
                "phase": _phase(trainer, number),
                **figures._asdict(),
                "agreement": agreed,
            }
            with (out / LOG).open("a") as log:
                log.write(json.dumps(line) + "\n")
            save(out / CHECKPOINT, {"trainer": trainer.state_dict(), "best": vars(best)})
            bar.advance(status=_status(figures, agreed))
            if stop and trainer.epoch < trainer.epochs:
                raise Interrupted(f"stopped after epoch {trainer.epoch}; add --resume to continue")


def _agreement(heads: Heads, held: Table) -> float | None:
    """Returns the agreement of the held-out rows' views, None where there is one view."""
    if len(heads.views) < 2:
        return None
    return agreement(heads.embeddings(held.views), held.sources, seed=0)


def _phase(trainer: HeadTrainer, number: int) -> str:
    return "warm-up" if number < trainer.config.warm_up else trainer.config.method


def _status(figures: Epoch, agreed: float | None) -> str:
    parts = [f"loss {figures.loss:.3f}"]
    if agreed is not None:
        parts.append(f"agreement {agreed:.3f}")
    if figures.pmr is not None:
        parts.append(f"PMR {figures.pmr:.3f}")
    return ", ".join(parts)


def _recall(start: Heads, kept: Heads, train: Table, held: Table) -> tuple[Recall, Recall] | None:
    """Returns the retrieval of training rows by held-out ones before and after; None without labels."""
    if train.labels is None or held.labels is None:
        return None
    known = held[held.labels >= 0]
    assert known.labels is not None
    before, after = (
        recall(hits(heads.embeddings(known.views), heads.embeddings(train.views), known.labels, train.labels))
        for heads in (start, kept)
    )
    return before, after


def _claim(table: Table, config: AdaptConfig, out: Path, hold_out: float, resume: bool) -> None:
    """Notes in the folder what is trained there.

    Raises:
        TrainError: the folder holds another job, or this one and `resume` is not set, or there is none to resume.
    """
    settings = json.loads(json.dumps({**asdict(config), "hold_out": hold_out, "table": _digest(table)}))
    path = out / CONFIG
    if not path.is_file():
        if resume:
            raise TrainError(f"resume: {out} holds no job of `cpr adapt`; leave --resume out to begin one")
        write_atomically(path, json.dumps(settings, indent=1).encode())
        return
    before = read_json(path, "out", "give another --out")
    if not resume:
        raise TrainError(
            f"out: {out} holds a job already; add --resume to continue it, or give another --out"
        )
    if differ := [name for name, value in settings.items() if before.get(name) != value]:
        raise TrainError(
            f"out: {out} was begun with another {differ[0].replace('_', '-')}; repeat its arguments, or give another "
            "--out"
        )


def _digest(table: Table) -> str:
    """Returns a hash of all rows, sources and labels."""
    found = hashlib.sha256()
    labels = [] if table.labels is None else [("labels", table.labels)]
    for name, rows in [*table.views.items(), ("", table.sources), *labels]:
        found.update(f"{name} {rows.dtype} {list(rows.shape)}".encode())
        found.update(rows.contiguous().numpy().tobytes())
    return found.hexdigest()


def _refuse_not_finite(table: Table) -> None:
    for name, rows in table.views.items():
        odd = ~rows.reshape(len(rows), -1).isfinite().all(dim=1)
        if bool(odd.any()):
            raise TrainError(
                f"views: {int(odd.sum())} rows of {name!r} hold NaN or infinity, the first is row "
                f"{int(odd.nonzero()[0])}; leave these rows out"
            )
