"""What the trainer's tests share: settings, the real clips, the smallest run; skips without its packages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

for package in ("av", "cv2", "lmdb", "torchmetrics", "matplotlib", "jinja2"):
    pytest.importorskip(package, reason="the trainer's packages: pip install 'cpr_kernels[train]'")

from cpr_kernels.networks.s3d import Encoder  # noqa: E402
from cpr_kernels.train.data.decoding import FrameSettings  # noqa: E402
from cpr_kernels.train.encoders.forward import calibrate_  # noqa: E402
from cpr_kernels.train.pretrain.config import Clips, Mining, Optim, TrainConfig  # noqa: E402
from cpr_kernels.train.pretrain.loop import Trainer, _batches, run_step  # noqa: E402
from cpr_kernels.train.pretrain.phases import locate  # noqa: E402
from cpr_kernels.train.runtime.run_log import RunLog  # noqa: E402
from cpr_kernels.train.views.augment import Augment  # noqa: E402

DRAFT = FrameSettings(size=32, frames=40, min_frames=9, flow="draft", flow_bound=8.0)


def lively() -> Encoder:
    """The narrowest encoder, in training mode, whose features separate clips in evaluation mode too."""
    encoder = Encoder(width=0.05, embedding=16)
    calibrate_(encoder, torch.randn(16, 3, 8, 32, 32, generator=torch.Generator().manual_seed(0)))
    return encoder


def tiny(data: Path, out: Path, **changes: Any) -> TrainConfig:
    """A run of a few seconds: a narrow network of four convolutions, 8 frames of 32 pixels."""
    settings: dict[str, Any] = {
        "infonce_epochs": 2,
        "cycles": 1,
        "cycle_epochs": 1,
        "queue": 24,
        "backbone": "conv4",
        "width": 0.05,
        "embedding": 16,
        "clips": Clips(frames=8, crop=32, batch=12, workers=0),
        "mining": Mining(stages=3, topk=2),
        "optim": Optim(momentum=0.9),
        "augment": Augment(min_area=0.5),
    }
    return TrainConfig(data, out, **{**settings, **changes})


def steps(trainer: Trainer, first: int, last: int, out: Path) -> None:
    """Training steps `first` to `last`, logged to `out`: the loop of `pretrain`, and nothing around it."""
    out.mkdir(parents=True, exist_ok=True)
    with RunLog(out, resume_at=first) as log:
        for step, batch in enumerate(_batches(trainer, first, last), start=first):
            run_step(trainer, locate(trainer.plan, trainer.sampler.steps_per_pass, step), step, batch, log)
