"""Two views are CoCLR and one view is InfoNCE, exactly: the trainer's steps against plain loops of the papers.

The plain loops share nothing with the trainer but the encoders' first weights and the augmented batches: a queue as
a list, positives by sorting, ``-log`` of the summed softmax, momentum parameter by parameter.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn
from train_sets import tiny

from cpr_kernels.train.augment import augmented
from cpr_kernels.train.config import Clips, Mining, Optim
from cpr_kernels.train.encoders import ENCODERS
from cpr_kernels.train.logs import RunLog
from cpr_kernels.train.loop import _batches, build, run_step
from cpr_kernels.train.model import MultiViewModel, new_encoders
from cpr_kernels.train.norms import calibrate_
from cpr_kernels.train.plan import locate

pytest_plugins = ["train_fixtures"]
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
        held = self.queue.labels.clone()
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
    """The clips of each step, {view: [2, B, ...]}, and their videos and sources."""
    trainer = build(config)
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


@pytest.fixture(autouse=True)
def toy_encoder(monkeypatch):
    monkeypatch.setitem(ENCODERS, "toy", Toy)


class Plain:
    """MoCo's InfoNCE of one view, with positives mined by a frozen other view where there is one (CoCLR)."""

    def __init__(self, config, trained_view, judge):
        encoders = new_encoders(config)
        self.view, self.judge = trained_view, judge
        self.online = encoders[trained_view].train()
        self.momentum = copy.deepcopy(self.online)
        self.frozen = encoders[judge].eval() if judge else None
        self.queue = []  # (key, judge's key, source, video), oldest first

    def begin(self, clips):
        calibrate_(self.online, clips[self.view][0])
        if self.judge:
            calibrate_(self.frozen, clips[self.judge][0])

    def keys(self, clips):
        with torch.no_grad():
            keys = self.momentum(clips[self.view][1])
            judged = self.frozen(clips[self.judge][1]) if self.judge else keys
        return keys, judged

    def enqueue(self, keys, judged, videos, sources):
        self.queue += list(zip(keys, judged, sources.tolist(), videos.tolist()))
        self.queue = self.queue[-QUEUE:]

    def fill(self, clips, videos, sources):
        self.enqueue(*self.keys(clips), videos, sources)

    def step(self, clips, videos, sources):
        with torch.no_grad():
            for slow, fast in zip(self.momentum.parameters(), self.online.parameters()):
                slow.mul_(M).add_(fast, alpha=1 - M)
        keys, judged = self.keys(clips)
        queries = self.online(clips[self.view][0])
        losses, picks = [], []
        for b in range(len(videos)):
            others = [e for e in self.queue if e[2] != int(sources[b])]
            ranked = sorted(others, key=lambda e: -float(e[1] @ judged[b]))
            mined = ranked[:TOPK] if self.judge else []
            picks.append({e[3] for e in mined})
            logits = torch.stack([queries[b] @ keys[b], *(queries[b] @ e[0] for e in self.queue)]) / T
            mined_ids = {id(e) for e in mined}
            right = [True] + [id(e) in mined_ids or self.attracts(e, sources[b]) for e in self.queue]
            losses.append(-torch.softmax(logits, dim=0)[torch.tensor(right)].sum().log())
        loss = torch.stack(losses).mean()
        self.online.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in self.online.parameters():
                parameter -= LR * parameter.grad
        self.enqueue(keys, judged, videos, sources)
        return loss.item(), picks

    def attracts(self, entry, source):
        return self.judge is not None and entry[2] == int(source)  # CoCLR: siblings are positives


def compare(config, plain, phase_steps, monkeypatch):
    trainer, results = trained(config, phase_steps, monkeypatch)
    fill = trainer.plan[0].fill_steps
    for step, (clips, videos, sources) in enumerate(batches(config, phase_steps)):
        if step == 0:
            plain.begin(clips)
        if step < fill:
            plain.fill(clips, videos, sources)
            continue
        loss, picks = plain.step(clips, videos, sources)
        result = results[step - fill]
        assert result.losses[plain.view].item() == pytest.approx(loss, abs=2e-5)
        if plain.judge:
            assert [result.picked(b) for b in range(BATCH)] == picks
        else:
            assert "mined" not in result.mined
    for got, expected in (
        (trainer.model.online[plain.view], plain.online),
        (trainer.model.momentum[plain.view], plain.momentum),
    ):
        for (name, value), other in zip(got.state_dict().items(), expected.state_dict().values()):
            assert torch.allclose(value.float(), other.float(), atol=2e-5), name
    moved = [
        (value - first).abs().max().item()
        for value, first in zip(trainer.model.online[plain.view].parameters(), fresh(config, plain.view))
    ]
    assert max(moved) > 1e-3  # something was learnt
    return trainer


def fresh(config, view):
    return new_encoders(config)[view].parameters()


def test_two_views_are_coclr(data, tmp_path, monkeypatch):
    config = settings(data, tmp_path / "two", ("rgb", "flow"), "coclr")
    compare(config, Plain(config, "rgb", "flow"), 6, monkeypatch)


@pytest.mark.parametrize("method", ["coclr", "cpr", "infonce"])
def test_one_view_is_infonce(method, data, tmp_path, monkeypatch):
    config = settings(data, tmp_path / method, ("rgb",), method)
    compare(config, Plain(config, "rgb", None), 5, monkeypatch)
