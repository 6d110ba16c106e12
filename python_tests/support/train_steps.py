"""Single steps of the trainer that several test files look into."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from train_sets import tiny

from cpr_kernels.train.batches.loader import augmented
from cpr_kernels.train.pretrain.co_training import MultiViewModel
from cpr_kernels.train.pretrain.config import Clips, Mining, Optim, TrainConfig
from cpr_kernels.train.pretrain.loop import _batches, _inputs, build, run_step
from cpr_kernels.train.pretrain.mining.meter import baseline_schedules
from cpr_kernels.train.pretrain.phases import locate
from cpr_kernels.train.pretrain.run_folder import encoder_files
from cpr_kernels.train.runtime.checkpoint import load
from cpr_kernels.train.runtime.run_log import RunLog, read_lines

BATCH, QUEUE, TOPK, M, T, LR = 12, 24, 2, 0.9, 0.07, 0.05


@dataclass
class Step:
    """A training step's results, and which video each entry held before it."""

    held: torch.Tensor
    losses: dict[str, torch.Tensor]
    mined: dict[str, torch.Tensor]

    def picked(self, b):
        return {int(self.held[i]) for i in self.mined["mined"][b] if i >= 0}


def settings(data, out, views, method, **changes):
    return tiny(
        data, out, views=views, backbone="toy", infonce_epochs=0, queue=QUEUE, mining=Mining(method=method, topk=TOPK),
        clips=Clips(frames=8, crop=32, batch=BATCH, workers=0, apart=True),
        optim=Optim(momentum=M, algorithm="sgd", sgd_momentum=0.0, lr=LR, weight_decay=0.0, decay_at=1.0),
        **changes,
    )  # fmt: skip


def trained(config, steps, monkeypatch, kind=MultiViewModel):
    """The trainer after some steps, and what each training step gave."""
    results, step_of = [], kind.train_step

    def recorded(self, *args):
        held = self.held_videos.clone()
        result = step_of(self, *args)
        results.append(Step(held, result.losses, result.mined))
        return result

    monkeypatch.setattr(kind, "train_step", recorded)
    config.out.mkdir(parents=True)
    trainer = build(config)
    with RunLog(config.out) as log:
        for step, batch in enumerate(_batches(trainer, 0, steps)):
            run_step(trainer, locate(trainer.plan, trainer.sampler.steps_per_pass, step), step, batch, log)
    return trainer, results


def batches(config, steps):
    """The clips of each step, {view: [2, B, ...]}, and their videos and sources; both clips also of frozen views."""
    trainer = build(config)
    trainer.sampler.second_only = lambda number: frozenset()
    groups = torch.tensor([video.group for video in trainer.dataset.manifest.videos])
    for step, batch in enumerate(_batches(trainer, 0, steps)):
        seed = int(np.random.SeedSequence((config.seed, 2, step)).generate_state(1)[0])
        generator = torch.Generator().manual_seed(seed)
        clips = augmented(batch, trainer.dataset.views, config.augment, generator, torch.device("cpu"))
        yield clips, batch["video"], groups[batch["video"]]


class Toy(nn.Sequential):
    """A small smooth encoder: through a deep one, rounding grows from step to step until nothing can be compared."""

    architecture = "toy"

    def __init__(self, width, embedding):
        super().__init__(
            nn.AdaptiveAvgPool3d((2, 4, 4)), nn.Flatten(), nn.BatchNorm1d(96), nn.Linear(96, 32), nn.Tanh(),
            nn.Linear(32, embedding),
        )  # fmt: skip
        self.width, self.embedding, self.feature_size = width, embedding, 32

    def forward(self, clip):
        return nn.functional.normalize(super().forward(clip), dim=1)

    def features(self, clip):
        for layer in list(self)[:5]:
            clip = layer(clip)
        return clip


def one_step(config: TrainConfig) -> tuple[MultiViewModel, Any]:
    """Gradients and result of one step with a full queue, batch norm held still."""
    trainer = build(replace(config, infonce_epochs=0))
    model, phase = trainer.model, trainer.plan[0]
    batches = _batches(trainer, 0, 3)
    for step in range(2):
        inputs = _inputs(trainer, next(batches), step)[0]
        if step == 0:
            model.calibrate(inputs)
            model.start_phase(phase)
        model.fill_step(inputs, phase)
    model.eval()
    measured = baseline_schedules(config.views, 2)
    return model, model.train_step(_inputs(trainer, next(batches), 2)[0], phase, measured, None)


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Everything a checkpoint holds that training changes, flat."""
    state = load(run / "checkpoint.pt")
    flat = {f"model.{name}": value for name, value in state["model"].items()}
    for number, moments in state["optimizer"]["state"].items():
        flat.update({f"optimizer.{number}.{name}": value for name, value in moments.items()})
    return {**flat, "step": torch.tensor(state["step"]), "rng": state["rng"]}


def assert_same_run(left: Path, right: Path) -> None:
    a, b = weights(left), weights(right)
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    for name in ("log.jsonl", "mined.jsonl"):
        lines = [read_lines(run / name) for run in (left, right)]
        assert [{**line, "seconds": 0} for line in lines[0]] == [{**line, "seconds": 0} for line in lines[1]]
    assert [phase for phase, _ in encoder_files(left)] == [phase for phase, _ in encoder_files(right)]
