"""Runs of three and four modalities, on videos of which some have no sound; and a new modality from one file."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch
from toy_view import Edges, SmallNet
from train_sets import steps, tiny
from train_steps import Toy

from cpr_kernels.networks import ENCODERS
from cpr_kernels.train import TrainError
from cpr_kernels.train.evaluate.retrieval import evaluate_run
from cpr_kernels.train.pages.report import write_report
from cpr_kernels.train.pretrain import missing_views
from cpr_kernels.train.pretrain.config import Clips, Mining, Optim
from cpr_kernels.train.pretrain.loop import build, pretrain, restore, snapshot
from cpr_kernels.train.pretrain.phases import make_plan
from cpr_kernels.train.pretrain.presets import with_preset
from cpr_kernels.train.runtime.run_log import read_lines
from cpr_kernels.train.views import KNOWN

pytest_plugins = ["train_fixtures"]
THREE = ("rgb", "flow", "audio")


@pytest.fixture(autouse=True)
def fourth_modality(monkeypatch):
    """What its file's author would write into two lists."""
    monkeypatch.setitem(KNOWN, "edges", Edges())
    monkeypatch.setitem(ENCODERS, SmallNet.architecture, SmallNet)
    monkeypatch.setitem(ENCODERS, Toy.architecture, Toy)  # S3D would take most of the tests' time


def settings(data, out, views=THREE, **changes):
    given = {
        "views": views, "backbone": "toy", "queue": 8, "infonce_epochs": 1, "cycles": 2, "cycle_epochs": 2,
        "clips": Clips(frames=8, crop=32, batch=4, workers=0, apart=True),
        "mining": Mining(method="coclr", topk=2), "optim": Optim(momentum=0.9),
    }  # fmt: skip
    return tiny(data, out, **{**given, **changes})


def test_two_cycles_of_a_stage_for_each_modality_with_the_others_as_oracle(sound_data, tmp_path):
    plan = make_plan(settings(sound_data, tmp_path))
    assert [(p.name, str(p.schedule)) for p in plan] == [
        ("infonce", "None"),
        ("cycle1-rgb", "flow+audio:2"), ("cycle1-flow", "rgb+audio:2"), ("cycle1-audio", "rgb+flow:2"),
        ("cycle2-rgb", "flow+audio:2"), ("cycle2-flow", "rgb+audio:2"), ("cycle2-audio", "rgb+flow:2"),
    ]  # fmt: skip
    paper = make_plan(with_preset("modalities", data=sound_data))
    assert [str(p.schedule) for p in paper[1:]] == ["flow+audio:5", "rgb+audio:5", "rgb+flow:5"] * 2


def test_clips_without_sound_take_part_and_train_no_audio(sound_data, tmp_path, monkeypatch):
    encoded, real = [], missing_views.ViewMask.encode

    def seen(self, view, videos, clips, encode):
        def counted(some):
            encoded.append((view, len(some), len(clips)))
            return encode(some)

        return real(self, view, videos, clips, counted)

    monkeypatch.setattr(missing_views.ViewMask, "encode", seen)
    config = settings(sound_data, tmp_path / "run", cycle_epochs=1)
    trainer = build(config)
    steps(trainer, 0, 18, tmp_path / "run")
    mute = torch.tensor([video.silence != "" for video in trainer.dataset.manifest.videos])
    queue = trainer.model.queue
    lacking = mute[queue.videos]
    assert lacking.any() and not lacking.all()
    assert not queue.views["audio"][lacking].any()
    assert queue.views["audio"][~lacking].norm(dim=1).tolist() == pytest.approx([1.0] * int((~lacking).sum()))
    assert queue.views["rgb"].norm(dim=1).tolist() == pytest.approx([1.0] * 8)
    assert all(some == whole for view, some, whole in encoded if view != "audio")
    assert any(some < whole for view, some, whole in encoded if view == "audio")
    lines = read_lines(tmp_path / "run" / "log.jsonl")
    assert next(line["missing"] for line in lines if line["kind"] == "epoch") == {
        "audio": pytest.approx(1 / 3)
    }
    audio = [line for line in lines if line["phase"] == "cycle1-audio" and line["kind"] == "step"]
    assert audio and all(line["loss_audio"] > 0 for line in audio)


def test_a_run_of_three_modalities_resumes_is_evaluated_and_reported(sound_data, tmp_path):
    config = settings(sound_data, tmp_path / "run", cycles=1, cycle_epochs=1)
    run = pretrain(config)
    trainer = build(config)
    middle = 4
    steps(trainer, 0, middle, tmp_path / "part")
    state = copy.deepcopy(snapshot(trainer, middle))
    again = build(config)
    assert restore(again, state) == middle
    for one in (trainer, again):
        steps(one, middle, 6, tmp_path / "part")
    for (name, value), other in zip(trainer.model.state_dict().items(), again.model.state_dict().values()):
        assert torch.equal(value, other), name
    results = evaluate_run(run, clips=2)
    assert list(results[-1]["recall"]) == ["rgb", "flow", "audio", "all"]
    page = write_report([run], tmp_path / "report.html").read_text()
    assert "What each view adds" in page
    assert "audio added to RGB and flow" in page
    assert json.loads((run / "eval.json").read_text())["phases"]


def test_a_fourth_modality_is_a_file_and_a_name(sound_data, tmp_path):
    config = settings(sound_data, tmp_path / "run", views=(*THREE, "edges"), infonce_epochs=0, cycle_epochs=1)
    assert str(make_plan(config)[3].schedule) == "rgb+flow+audio:2"
    trainer = build(config)
    steps(trainer, 0, 20, tmp_path / "run")
    line = [line for line in read_lines(tmp_path / "run" / "log.jsonl") if "loss_edges" in line][-1]
    assert line["loss_edges"] > 0
    assert {"pmr_mined", "pmr_audio", "pmr_edges", "pmr_all"} <= set(line)
    assert trainer.model.queue.views["edges"].shape == (8, 16)


@pytest.mark.parametrize(
    "schedule", ["audio:0.5,flow:0.5,frozen:2", "frozen:6,trained:4,flow+audio+rgb:2", "audio:6,trained:2"]
)
def test_cascades_over_three_views(schedule, sound_data, tmp_path):
    mining = Mining(method="custom", schedule=schedule, topk=2)
    config = settings(sound_data, tmp_path / "run", infonce_epochs=0, cycle_epochs=1, mining=mining)
    steps(build(config), 0, 5, tmp_path / "run")
    lines = [line for line in read_lines(tmp_path / "run" / "log.jsonl") if "pmr_mined" in line]
    assert len(lines) == 3


def test_what_cannot_be_is_said_in_a_sentence(data, sound_data, tmp_path):
    with pytest.raises(TrainError, match="no training video has audio"):
        build(settings(data, tmp_path, clips=Clips(frames=8, crop=32, batch=4, workers=0)))
    unknown = Mining(method="custom", schedule="smell:0.5,frozen:2", topk=2)
    with pytest.raises(TrainError, match="no view 'smell' in this run"):
        build(settings(sound_data, tmp_path, mining=unknown))
    with pytest.raises(TrainError, match="no view 'smell'; expected some of rgb, flow"):
        build(replace(settings(sound_data, tmp_path), views=("rgb", "smell")))


def test_a_tuned_plan_mines_nothing_for_videos_without_the_trained_view(sound_data, tmp_path):
    config = settings(
        sound_data, tmp_path, ("rgb", "audio"), infonce_epochs=0, cycles=1, cycle_epochs=1, queue=12,
        mining=Mining("auto", topk=2),
    )  # fmt: skip
    trainer = build(config)
    steps(trainer, 0, 12, tmp_path)
    lines = {line["phase"]: line for line in read_lines(tmp_path / "mined.jsonl")}
    has = trainer.view_mask.has["audio"].tolist()
    mined = lines["cycle1-rgb"]
    assert all(pick >= 0 for row in mined["picks"]["mined"] for pick in row)  # RGB is enough to mine by
    mined = lines["cycle1-audio"]
    filled = [all(pick >= 0 for pick in row) for row in mined["picks"]["mined"]]
    assert filled == [has[video] for video in mined["videos"]] and set(filled) == {True, False}
