"""Two views are CoCLR and one view is InfoNCE, exactly: the trainer's steps against plain loops of the papers.

The plain loops share nothing with the trainer but the encoders' first weights and the augmented batches: a queue as
a list, positives by sorting, ``-log`` of the summed softmax, momentum parameter by parameter.
"""

from __future__ import annotations

import copy

import pytest
import torch
from train_steps import BATCH, LR, QUEUE, TOPK, M, T, Toy, batches, settings, trained

from cpr_kernels.networks import ENCODERS
from cpr_kernels.train.encoders.forward import calibrate_
from cpr_kernels.train.pretrain.co_training import new_encoders

pytest_plugins = ["train_fixtures"]


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
