"""IIC, and CPR on it: every training step against a plain loop, resuming, and what cannot be."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import normalize
from train_sets import steps, tiny
from train_steps import Toy, batches, trained

from cpr_kernels import MemoryBank
from cpr_kernels.networks import ENCODERS, new_encoder
from cpr_kernels.train import TrainError
from cpr_kernels.train.encoders.forward import calibrate_
from cpr_kernels.train.pretrain.config import Clips, Iic, Mining, Optim
from cpr_kernels.train.pretrain.iic import BROKEN, BankModel
from cpr_kernels.train.pretrain.loop import build, learning_rate, restore, snapshot
from cpr_kernels.train.pretrain.phases import locate, make_plan, total_steps
from cpr_kernels.train.pretrain.presets import with_preset
from cpr_kernels.train.runtime.run_log import read_lines

pytest_plugins = ["train_fixtures"]
VIEWS, DRAWS, TOPK, T = ("rgb", "residual"), 10, 2, 0.1


@pytest.fixture(autouse=True)
def toy_encoder(monkeypatch):
    monkeypatch.setitem(ENCODERS, "toy", Toy)


def settings(data, out, **changes):
    given = {
        "framework": "iic", "views": VIEWS, "backbone": "toy", "infonce_epochs": 1, "cycles": 2, "cycle_epochs": 2,
        "clips": Clips(frames=8, crop=32, batch=12, workers=0), "iic": Iic(negatives=DRAWS),
        "mining": Mining(method="cpr", stages=3, topk=TOPK, siblings="negative", progressive=True),
        "optim": Optim(algorithm="sgd", lr=0.05, sgd_momentum=0.0, weight_decay=0.0, steps=(0.3, 0.6), temperature=T),
    }  # fmt: skip
    return tiny(data, out, **{**given, **changes})


def test_the_plan_trains_both_views_all_along_and_mines_more_from_cycle_to_cycle(data, tmp_path):
    config = build(settings(data, tmp_path)).config
    assert config.queue == 54  # a row for each training video
    plan = make_plan(config)
    assert [(p.name, p.train, str(p.schedule)) for p in plan] == [
        ("iic", VIEWS, "None"),
        ("cycle1", VIEWS, "residual:27,rgb:13,residual:1"),
        ("cycle2", VIEWS, "residual:27,rgb:13,residual:2"),
    ]
    published = with_preset("iic", data=data)
    assert [(p.topk, p.epochs) for p in make_plan(published)[1:]] == [(k, 20) for k in (1, 2, 3, 4, 5)]
    alone = make_plan(replace(published, cycles=0))
    rates = [learning_rate(published.optim, alone[0], locate(alone, 10, 10 * epoch)) for epoch in range(240)]
    changes = [epoch for epoch in range(1, 240) if rates[epoch] != rates[epoch - 1]]
    assert changes == [45, 90, 125, 160]
    assert rates[0] == 0.01 and rates[-1] == pytest.approx(0.01 * 0.2**4)


@pytest.mark.parametrize("broken", ["repeat", "none"])
def test_every_step_is_that_of_a_plain_loop(broken, data, tmp_path, monkeypatch):
    config = settings(data, tmp_path / "run", iic=Iic(negatives=DRAWS, broken=broken))
    draws, draw = [], MemoryBank.draw

    def recorded_draw(self, rows, count, generator=None):
        draws.append(draw(self, rows, count, generator))
        return draws[-1]

    broken_clips = []

    def recorded_break(clips, kind, generator):
        broken_clips.append(clips[:, :, :1].expand_as(clips))
        return broken_clips[-1]

    monkeypatch.setattr(MemoryBank, "draw", recorded_draw)
    monkeypatch.setattr("cpr_kernels.train.pretrain.iic.intra_negatives", recorded_break)
    count = 7
    trainer, results = trained(config, count, monkeypatch, BankModel)
    encoder = new_encoder("toy", config.width, config.embedding)
    encoder.load_state_dict(build(config).model.encoder.state_dict())
    bank, sources_of, order = {}, {}, trainer.dataset.videos
    for step, (clips, videos, sources) in enumerate(batches(config, count)):
        if step == 0:
            calibrate_(encoder, clips["rgb"][0])
        phase = trainer.plan[locate(trainer.plan, 4, step).phase]
        made = {view: encoder.train()(clips[view][0]) for view in VIEWS}
        if broken != "none":
            made[BROKEN] = encoder(broken_clips[step]).detach()
        losses = {}
        for view, other in (VIEWS, VIEWS[::-1]):
            each = []
            for b, video in enumerate(videos.tolist()):
                own = bank.get(video, {name: value[b].detach() for name, value in made.items()})
                picks = results[step].picked(b) if phase.schedule else set()
                drawn = [order[row] for row in draws[step][b].tolist()]
                e = lambda key: torch.exp(made[view][b] @ key / T)  # noqa: B023, E731
                above = e(own[other]) + sum(e(bank[v][other]) for v in picks)
                below = sum(e(bank[v][other]) for v in drawn if v in bank and v not in picks)
                if broken != "none":
                    below += e(own[BROKEN]) + sum(e(bank[v][BROKEN]) for v in drawn if v in bank)
                each.append(torch.log((above + below) / above))
            losses[view] = torch.stack(each).mean()
        for view in VIEWS:
            assert results[step].losses[view].item() == pytest.approx(losses[view].item(), abs=1e-4)
        encoder.zero_grad()
        (losses[VIEWS[0]] + losses[VIEWS[1]]).backward()
        rate = learning_rate(config.optim, phase, locate(trainer.plan, 4, step))
        with torch.no_grad():
            for parameter in encoder.parameters():
                parameter -= rate * parameter.grad
        for b, video in enumerate(videos.tolist()):
            new = {name: value[b].detach() for name, value in made.items()}
            old = bank.get(video)
            bank[video] = {
                name: normalize(0.5 * old[name] + 0.5 * value, dim=0) if old else value
                for name, value in new.items()
            }
            sources_of[video] = int(sources[b])
    model = trainer.model
    for (name, value), other in zip(model.encoder.state_dict().items(), encoder.state_dict().values()):
        assert torch.allclose(value.float(), other.float(), atol=1e-4), name
    for row, video in enumerate(order):
        assert int(model.bank.ids[row]) == sources_of.get(video, -1)
        if video in bank:
            for view in VIEWS:
                assert torch.allclose(model.bank.views[view][row], bank[video][view], atol=1e-4)


def test_it_resumes_bit_for_bit_and_logs_what_was_mined(data, tmp_path):
    straight = build(settings(data, tmp_path / "a"))
    end = total_steps(straight.plan, straight.sampler.steps_per_pass)
    steps(straight, 0, 7, tmp_path / "a")
    state = copy.deepcopy(snapshot(straight, 7))
    again = build(settings(data, tmp_path / "a"))
    assert restore(again, state) == 7
    steps(straight, 7, end, tmp_path / "a")
    steps(again, 7, end, tmp_path / "b")
    for (name, value), other in zip(straight.model.state_dict().items(), again.model.state_dict().values()):
        assert torch.equal(value, other), name
    lines = read_lines(tmp_path / "a" / "log.jsonl")
    last = [line for line in lines if line["kind"] == "epoch"][-1]
    assert {"mined", "rgb", "residual", "both"} <= set(last["mining"])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"views": ("rgb",)}, "views: framework iic takes two views of frames"),
        ({"views": ("rgb", "audio")}, "views: framework iic takes two views of frames"),
        ({"mining": Mining(siblings="positive")}, "mining.siblings: framework iic takes negative and ignore"),
        (
            {"mining": Mining(method="ubernce", siblings="ignore")},
            "mining.method: framework iic takes infonce",
        ),
        ({"iic": Iic(negatives=0)}, "iic.negatives: must be at least 1"),
        ({"optim": Optim(steps=(0.5, 1.5))}, r"optim.steps: must lie in \[0, 1\], got 1.5"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(changes, says, data, tmp_path):
    with pytest.raises(TrainError, match=says):
        build(settings(data, tmp_path, **changes))


def test_checkpoints_that_call_the_bank_a_queue_are_read(data, tmp_path):
    model = build(settings(data, tmp_path / "run")).model
    state = {
        f"queue.{name.removeprefix('bank.')}" if name.startswith("bank.") else name: value + 1
        for name, value in model.state_dict().items()
    }
    assert any(name.startswith("queue.") for name in state)
    model.load_state_dict(state)
    assert (model.bank.views["rgb"] == 1).all() and (model.held_videos == 0).all()
