"""The loop: it learns, it measures, and a run that was killed ends with the weights of one that was not."""

from __future__ import annotations

import errno
import json
import shutil
import signal
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import run_python
from places import ROOT
from train_sets import DRAFT, tiny
from train_steps import assert_same_run, weights

from cpr_kernels.cli import train as commands
from cpr_kernels.train import TrainError
from cpr_kernels.train.batches.dataset import ClipDataset
from cpr_kernels.train.data.prepare import prepare
from cpr_kernels.train.encoders.weights import load_encoder
from cpr_kernels.train.pretrain import loop
from cpr_kernels.train.pretrain.config import Mining, Optim, TrainConfig, from_json, to_json
from cpr_kernels.train.pretrain.loop import build, learning_rate, pretrain, restore, snapshot
from cpr_kernels.train.pretrain.phases import locate, make_plan, second_clip_only, total_steps
from cpr_kernels.train.pretrain.presets import small, with_preset
from cpr_kernels.train.pretrain.run_folder import encoder_files
from cpr_kernels.train.runtime.checkpoint import load, save
from cpr_kernels.train.runtime.files import write_atomically
from cpr_kernels.train.runtime.lock import exclusive
from cpr_kernels.train.runtime.run_log import read_lines, truncate

pytest_plugins = ["train_fixtures"]


@pytest.fixture(scope="module")
def straight(cascade_run: Path) -> Path:
    """A run that was never stopped."""
    return cascade_run


SIGNALLED = """
import os, sys
import cpr_kernels.train.pretrain.loop as loop
from cpr_kernels.__main__ import main

out, at, number = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
run_step = loop.run_step
def step(trainer, moment, step, batch, log):
    if step == at:
        os.kill(os.getpid(), number)
    return run_step(trainer, moment, step, batch, log)
loop.run_step = step
sys.exit(main(["pretrain", "--resume", out]))
"""


def signalled(config: TrainConfig, step: int, number: signal.Signals) -> subprocess.CompletedProcess[str]:
    """The run in another process, begun or resumed by the command line, which gets a signal as it begins a step."""
    if not config.out.exists():
        config.out.mkdir(parents=True)
        write_atomically(config.out / "config.json", to_json(config).encode())
    return run_python("-c", SIGNALLED, config.out, str(step), str(int(number)), cwd=ROOT)


def test_plan_follows_algorithm_1(data: Path, tmp_path: Path) -> None:
    config = tiny(data, tmp_path, cycles=2)
    plan = make_plan(config)
    assert [phase.name for phase in plan] == [
        "infonce",
        "cycle1-rgb",
        "cycle1-flow",
        "cycle2-rgb",
        "cycle2-flow",
    ]
    assert str(plan[1].schedule) == "flow:12,rgb:6,flow:2" and str(plan[2].schedule) == "rgb:12,flow:6,rgb:2"
    assert plan[0].schedule is None and plan[1].fill_steps == 2
    assert total_steps(plan, 4) == 2 * 4 + 4 * (2 + 4)
    moments = [locate(plan, 4, step) for step in range(14)]
    assert [moment.epoch for moment in moments] == [0, 0, 0, 0, 1, 1, 1, 1, -1, -1, 0, 0, 0, 0]
    assert [i for i, moment in enumerate(moments) if moment.starts_phase] == [0, 8]
    assert [i for i, moment in enumerate(moments) if moment.ends_epoch] == [3, 7, 13]
    coclr = make_plan(replace(config, mining=Mining(method="coclr", topk=3)))
    assert str(coclr[1].schedule) == "flow:3"
    with pytest.raises(TrainError, match=r"mining: cpr_schedule: .*stages=7"):
        make_plan(replace(config, mining=Mining(stages=7)))


def test_cycles_train_the_views_that_are_named(data: Path, tmp_path: Path) -> None:
    config = tiny(data, tmp_path, cycle_views=("flow",), cycles=2)
    assert [phase.name for phase in make_plan(config)] == ["infonce", "cycle1-flow", "cycle2-flow"]
    assert make_plan(config)[0].train == ("rgb", "flow")
    turned = make_plan(replace(config, cycle_views=("flow", "rgb"), cycles=1))
    assert [phase.name for phase in turned[1:]] == ["cycle1-flow", "cycle1-rgb"]
    with pytest.raises(TrainError, match=r"cycle-views: the run has no view 'depth'; it has rgb, flow"):
        replace(config, cycle_views=("depth",)).check()


def test_of_frozen_views_the_second_clip_is_enough(data: Path, tmp_path: Path) -> None:
    """But in the first step, and where they are encoded online too: batch norm and mining need the first one."""

    def records(step: int, **changes: Any) -> set[str]:
        config = tiny(data, tmp_path, **changes)
        stored = {"rgb": "rgb", "flow": "flow"}
        return set(second_clip_only(config, make_plan(config), 3, stored, step))

    config = tiny(data, tmp_path)
    plan = make_plan(config)
    end = total_steps(plan, 3)
    by_phase = {plan[locate(plan, 3, step).phase].train: records(step) for step in range(1, end)}
    assert by_phase == {("rgb", "flow"): set(), ("rgb",): {"flow"}, ("flow",): {"rgb"}}
    assert records(end) == records(end + 9) == set()
    assert records(0, infonce_epochs=0) == set() and records(1, infonce_epochs=0) == {"flow"}
    online = replace(config.mining, frozen_query="online")
    assert not any(records(step, mining=online) for step in range(end))


def test_learning_rate_grows_and_falls(data: Path, tmp_path: Path) -> None:
    plan = make_plan(tiny(data, tmp_path, infonce_epochs=5, cycle_epochs=2))

    def rates(optim: Optim) -> list[float]:
        moments = [locate(plan, 2, step) for step in range(16)]
        return [learning_rate(optim, plan[moment.phase], moment) for moment in moments if moment.epoch >= 0]

    assert rates(Optim(lr=1.0, warmup=4))[:10] == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 0.1, 0.1])
    assert rates(Optim(lr=1.0, cycle_lr=0.5, warmup=2))[10:] == pytest.approx([0.25, 0.5, 0.5, 0.5])
    assert set(rates(Optim(lr=1.0, decay_at=1.0))) == {1.0}


def test_run_logs_mining_quality_of_every_way(straight: Path, data: Path) -> None:
    lines = read_lines(straight / "log.jsonl")
    epochs = {(line["phase"], line["epoch"]): line["mining"] for line in lines if line["kind"] == "epoch"}
    assert list(epochs) == [("infonce", 0), ("infonce", 1), ("cycle1-rgb", 0), ("cycle1-flow", 0)]
    assert set(epochs["infonce", 1]) == {"rgb", "flow", "both"}
    assert set(epochs["cycle1-rgb", 0]) == {"mined", "rgb", "flow", "both"}
    last = epochs["cycle1-flow", 0]["mined"]
    assert 0 <= last["pmr"] <= 1 and len(last["cmr"]) == 9
    mined = read_lines(straight / "mined.jsonl")[-1]
    assert len(mined["videos"]) == 12 and len(mined["picks"]["mined"][0]) == 2
    manifest = json.loads((data / "manifest.json").read_text())["videos"]
    for query, picks in zip(mined["videos"], mined["picks"]["mined"]):
        assert all(
            manifest[pick]["group"] != manifest[query]["group"] for pick in picks
        )  # siblings are never mined
        assert all(manifest[pick]["split"] == "train" for pick in picks)
    assert [phase for phase, _ in encoder_files(straight)] == ["infonce", "cycle1-rgb", "cycle1-flow"]


def test_frozen_encoders_tell_clips_apart_from_the_start(straight: Path, data: Path) -> None:
    """After eight steps the running statistics would still be mostly their 0 and 1, and features a constant."""
    dataset = ClipDataset(data, 8, 32, split="test", cache_mb=0)
    cut = [dataset.evenly_spaced(position, 1) for position in range(0, 18, 3)]
    for _, files in encoder_files(straight):
        for view, path in files.items():
            clips = dataset.views[view].plain(torch.cat([torch.from_numpy(clip[view]) for clip in cut]))
            with torch.no_grad():
                features = load_encoder(path).eval().features(clips)
            assert features.std(dim=0).mean() > 0.05 * features.abs().mean(), (view, path)


def test_a_run_killed_stopped_and_killed_again_ends_bit_for_bit_alike(
    straight: Path, data: Path, tmp_path: Path
) -> None:
    """In the second epoch of InfoNCE, with one checkpoint behind; by Ctrl-C in the same epoch, whose counts are kept;
    in the cycle's first epoch.
    """
    config = tiny(data, tmp_path / "run")
    assert signalled(config, 6, signal.SIGKILL).returncode == -signal.SIGKILL
    assert load(config.out / "checkpoint.pt")["step"] == 4
    stopped = signalled(config, 5, signal.SIGINT)
    assert stopped.returncode == 130 and "continue with: cpr pretrain --resume" in stopped.stderr
    assert load(config.out / "checkpoint.pt")["step"] == 6
    assert signalled(config, 13, signal.SIGKILL).returncode == -signal.SIGKILL
    assert 8 <= load(config.out / "checkpoint.pt")["step"] < 13
    pretrain(config, resume=True)
    assert_same_run(straight, config.out)


def test_snapshot_between_any_two_steps_continues_alike(data: Path, tmp_path: Path) -> None:
    """In one process: a trainer restored from a snapshot mid-epoch takes the same next steps, meters included."""
    from cpr_kernels.train.pretrain.loop import _batches, run_step
    from cpr_kernels.train.runtime.run_log import RunLog

    config = tiny(data, tmp_path / "a", infonce_epochs=0)

    def advance(trainer: Any, first: int, end: int, log: RunLog) -> None:
        for step, batch in enumerate(_batches(trainer, first, end), start=first):
            run_step(trainer, locate(trainer.plan, trainer.sampler.steps_per_pass, step), step, batch, log)

    with RunLog(tmp_path) as log:
        one = build(config)
        advance(one, 0, 4, log)
        save(tmp_path / "x.pt", snapshot(one, 4))
        advance(one, 4, 9, log)
        two = build(config)
        assert restore(two, load(tmp_path / "x.pt")) == 4
        advance(two, 4, 9, log)
    a, b = snapshot(one, 9), snapshot(two, 9)
    assert all(torch.equal(a["model"][name], b["model"][name]) for name in a["model"])
    assert all(torch.equal(a["meter"][n][k], b["meter"][n][k]) for n in a["meter"] for k in a["meter"][n])


@pytest.mark.slow
def test_training_lowers_the_loss(data: Path, tmp_path: Path) -> None:
    config = tiny(data, tmp_path / "r", infonce_epochs=10, cycles=0, backbone="s3d", width=0.125)
    steps = [line for line in read_lines(pretrain(config) / "log.jsonl") if line["kind"] == "step"]
    for view in ("rgb", "flow"):
        losses = [line[f"loss_{view}"] for line in steps]
        early, late = sum(losses[4:12]) / 8, sum(losses[-8:]) / 8  # the first steps have few negatives
        assert late < early - 0.3, (view, early, late)


def test_refusals_are_one_sentence(straight: Path, data: Path, tmp_path: Path) -> None:
    config = tiny(data, straight)
    with pytest.raises(TrainError, match="holds a run already; continue it with --resume"):
        pretrain(config)
    with pytest.raises(TrainError, match="settings differ"):
        pretrain(replace(config, queue=12), resume=True)
    with pytest.raises(TrainError, match="holds no run"):
        pretrain(replace(config, out=tmp_path / "none"), resume=True)
    with pytest.raises(TrainError, match=r"clips\.frames: must be at least 8, got 7"):
        pretrain(replace(config, out=tmp_path / "x", clips=replace(config.clips, frames=7)))
    with pytest.raises(TrainError, match="5 positives cannot come from a queue of 4"):
        replace(config, queue=4, mining=Mining(stages=1, topk=5)).check()
    with pytest.raises(TrainError, match=r"a conv4 of width 0\.05 and embedding 16"):
        encoder = encoder_files(straight)[0][1]["rgb"]
        build(replace(config, out=tmp_path / "x", width=0.1, init={"rgb": encoder}))
    assert not (tmp_path / "x").exists()


def hold(folder: Path, seconds: float) -> None:
    """Another writer, for a while."""
    with exclusive(folder, "prepare"):
        time.sleep(seconds)


def test_two_processes_never_write_one_folder(
    straight: Path, data: Path, clip_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A worker that outlived its torchrun, or the same command typed twice."""
    before, sentence = (
        weights(straight),
        r"another process \(process \d+ on .+\) is at work in .*, which only one may ",
    )
    with (
        exclusive(straight, "train"),
        pytest.raises(TrainError, match=sentence + "train; wait for it, or end it"),
    ):
        pretrain(tiny(data, straight), resume=True)
    other = threading.Thread(target=hold, args=(data, 1.0))
    other.start()
    time.sleep(0.2)
    began = time.monotonic()
    prepared = prepare(clip_folder, data, DRAFT)
    assert time.monotonic() - began > 0.5 and prepared.stored == 0  # what the other did is not done again
    assert "is at work in" in capsys.readouterr().err
    other.join()
    pretrain(tiny(data, straight), resume=True)  # finished: nothing is left to do
    after = weights(straight)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_config_text_and_presets_come_back(data: Path, tmp_path: Path) -> None:
    config = tiny(data, tmp_path, init={"rgb": Path("a.pt")})
    assert from_json(to_json(config)) == config
    assert '"drop_own_positive": 0.0' in to_json(config)
    old = to_json(config).replace('"drop_own_positive": 0.0', '"own_drop": 0.9')
    assert from_json(old) == replace(config, mining=replace(config.mining, drop_own_positive=0.9))
    assert with_preset("small", data=data, queue=128).clips == small()["clips"]
    assert with_preset("paper", data=data) == TrainConfig(data)
    assert with_preset("k400+coclr", data=data).queue == 16384
    mixed = with_preset("small+cpr3+published", data=data)
    assert mixed.mining == Mining(stages=3, query="online", drop_own_positive=0.9) and mixed.width == 0.25
    grown = with_preset("small+progressive", data=data)
    assert (grown.cycles, grown.cycle_epochs, grown.mining.progressive) == (5, 3, True)
    assert [phase.topk for phase in make_plan(grown)[1::2]] == [1, 2, 3, 4, 5]
    assert with_preset("ubernce", data=data).mining.method == "ubernce"
    with pytest.raises(TrainError, match="preset: must be one of paper, k400, small"):
        with_preset("small+simclr", data=data)


@pytest.mark.parametrize("name", ["own-drop", "own_drop", "drop-own-positive"])
def test_an_option_keeps_its_old_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configs: list[TrainConfig] = []
    (tmp_path / "log.jsonl").write_text("{}\n")
    monkeypatch.setattr(loop, "pretrain", lambda config: configs.append(config) or tmp_path)
    assert commands.pretrain(["--data", str(tmp_path), f"--mining.{name}", "0.9"]) == 0
    assert configs[0].mining.drop_own_positive == 0.9


def test_a_full_disk_costs_nothing_that_was_there(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny(data, tmp_path / "r", infonce_epochs=0, cycle_epochs=1)
    written, plain = [], Path.write_bytes

    def fills_up(path: Path, body: bytes) -> int:
        written.append(path)
        if len(written) > 4:  # config, then encoder, encoder and checkpoint of the first phase
            plain(path, body[: len(body) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        return plain(path, body)

    with monkeypatch.context() as full:
        full.setattr(Path, "write_bytes", fills_up)
        with pytest.raises(
            TrainError, match=r"cannot be written \(No space left on device\).*free some space"
        ):
            pretrain(config)
    assert load(config.out / "checkpoint.pt")["step"] == 6 and list(config.out.rglob("*.part")) == []
    straight = pretrain(replace(config, out=tmp_path / "s"))
    pretrain(config, resume=True)
    assert_same_run(straight, config.out)


def test_checkpoint_of_another_model_is_refused(straight: Path, data: Path, tmp_path: Path) -> None:
    config = tiny(data, tmp_path / "r", width=0.1)
    config.out.mkdir()
    (config.out / "config.json").write_text(to_json(config))
    shutil.copy(straight / "checkpoint.pt", config.out)
    with pytest.raises(
        TrainError, match=r"resume: .*checkpoint\.pt is not of this run's model \(.*size mismatch"
    ):
        pretrain(config, resume=True)
    (config.out / "checkpoint.pt").write_bytes((straight / "checkpoint.pt").read_bytes()[:5000])
    with pytest.raises(TrainError, match="cut short"):
        pretrain(config, resume=True)


def test_logs_are_cut_back_to_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in range(5)) + '{"step": 5, "los')
    truncate(path, 3)
    assert [line["step"] for line in read_lines(path)] == [0, 1, 2]


def test_methods_say_where_positives_come_from(data: Path, tmp_path: Path) -> None:
    def schedules(views: tuple[str, ...], **mining: Any) -> list[str]:
        config = tiny(data, tmp_path, views=views, cycles=3, infonce_epochs=0, mining=Mining(**mining))
        config.check()
        return [str(phase.schedule) for phase in make_plan(config)]

    three = ("rgb", "flow", "residual")
    assert schedules(("rgb",), method="coclr") == schedules(("rgb",), method="cpr") == ["None"] * 3
    assert schedules(three, method="coclr")[:3] == ["flow+residual:5", "rgb+residual:5", "rgb+flow:5"]
    assert schedules(three, stages=3, topk=2)[0] == "flow+residual:12,rgb:6,flow+residual:2"
    own = "frozen:0.5,2*flow+trained:0.5,residual:6"
    assert schedules(three, method="custom", schedule=own)[1] == "rgb+residual:12,3*flow:6,residual:5"
    assert schedules(("rgb", "flow"), stages=3, topk=3, progressive=True)[::2] == [
        "flow:12,rgb:6,flow:1", "flow:12,rgb:6,flow:2", "flow:12,rgb:6,flow:3",
    ]  # fmt: skip
    plan = make_plan(tiny(data, tmp_path, mining=Mining(method="ubernce")))
    assert [phase.supervised for phase in plan] == [False, True, True]
    for mining, sentence in [
        ({"method": "custom"}, "method custom needs it"),
        ({"schedule": "flow:5"}, "belongs to mining.method custom"),
        ({"method": "custom", "schedule": "flow;5"}, "mining: schedule: cannot read"),
    ]:
        with pytest.raises(TrainError, match=sentence):
            schedules(("rgb", "flow"), **mining)
    with pytest.raises(TrainError, match="it needs 2 cycles or more, got 1"):
        make_plan(tiny(data, tmp_path, mining=Mining(progressive=True)))
    with pytest.raises(TrainError, match="no view 'sound'; expected some of rgb"):
        tiny(data, tmp_path, views=("rgb", "sound")).check()


def first_steps(config: TrainConfig, steps: int) -> Any:
    """A trainer after its first steps, by hand."""
    from cpr_kernels.train.pretrain.loop import _batches, run_step
    from cpr_kernels.train.runtime.run_log import RunLog

    config.out.mkdir(parents=True, exist_ok=True)
    trainer = build(config)
    with RunLog(config.out) as log:
        for step, batch in enumerate(_batches(trainer, 0, steps)):
            run_step(trainer, locate(trainer.plan, trainer.sampler.steps_per_pass, step), step, batch, log)
    return trainer


def test_one_view_is_infonce_and_three_train_in_turn(data: Path, tmp_path: Path) -> None:
    """A further view changes nothing for the others; M views take part in mining, supervised phases use labels."""
    one = first_steps(tiny(data, tmp_path / "1", views=("rgb",)), 3)
    three = first_steps(tiny(data, tmp_path / "3", views=("rgb", "flow", "residual")), 3)
    alone, among = one.model.state_dict(), three.model.state_dict()
    assert all(torch.equal(alone[name], among[name]) for name in alone if "rgb" in name)
    cycles = tiny(data, tmp_path / "c", views=("rgb", "flow", "residual"), infonce_epochs=0)
    trained = first_steps(cycles, 7)
    figures = read_lines(tmp_path / "c" / "log.jsonl")[-1 - 1]  # the last step of the first cycle's RGB phase
    assert {"pmr_mined", "pmr_rgb", "pmr_flow", "pmr_residual", "pmr_all"} <= set(figures)
    assert trained.model.queue.views["residual"].shape == (24, 16)
    supervised = replace(cycles, out=tmp_path / "u", views=("rgb", "flow"), mining=Mining(method="ubernce"))
    first_steps(supervised, 4)
    line = read_lines(tmp_path / "u" / "log.jsonl")[0]
    assert "pmr_mined" not in line and line["loss_rgb"] < 5
