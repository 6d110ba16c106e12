"""Updates of a run: warm start, old videos among the new, and retrieval before and after."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import train_sets  # noqa: F401  skips without the trainer's packages

from cpr_kernels.__main__ import main
from cpr_kernels.train import Interrupted, TrainError
from cpr_kernels.train.data.manifest import Manifest
from cpr_kernels.train.data.store import FrameStore
from cpr_kernels.train.data.synthetic import SyntheticSettings, generate
from cpr_kernels.train.encoders.weights import load_encoder
from cpr_kernels.train.evaluate.features import Protocol
from cpr_kernels.train.evaluate.retrieval import retrieval
from cpr_kernels.train.pretrain import loop
from cpr_kernels.train.pretrain.loop import build
from cpr_kernels.train.pretrain.phases import make_plan
from cpr_kernels.train.pretrain.run_folder import WarmStart, encoder_files
from cpr_kernels.train.runtime.checkpoint import load
from cpr_kernels.train.update import Update, config_of_update, update

pytest_plugins = ["train_fixtures"]


@pytest.fixture(scope="module")
def run(cascade_run: Path) -> Path:
    return cascade_run


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """18 new files of 9 classes, one of them unheard of, half for testing."""
    drawn, folder = tmp_path_factory.mktemp("drawn"), tmp_path_factory.mktemp("fresh")
    generate(drawn, SyntheticSettings(sources=2, test_sources=1, clips=1, frames=14, size=40, seed=5))
    for path in sorted(drawn.rglob("*.mp4")):
        label = path.parent.name.replace("SwingRound", "Unheard")
        place = folder / path.parent.parent.name / label / f"new_{path.name.removeprefix('v_')}"
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
    return folder


@pytest.fixture(scope="module")
def settings(run: Path, fresh: Path, tmp_path_factory: pytest.TempPathFactory) -> Update:
    out = tmp_path_factory.mktemp("updates") / "more"
    return Update(run, fresh, out, old_share=0.75, epochs=1, batch=8, clips=1)


@pytest.fixture(scope="module")
def updated(settings: Update) -> Path:
    """Interrupted after its second step, then run again."""
    step = loop.run_step
    calls = []

    def stopped(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 3:
            raise Interrupted("stopped")
        return step(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "run_step", stopped)
        with pytest.raises(Interrupted):
            update(settings)
    update(settings)
    return settings.out


def test_old_videos_keep_their_numbers_and_only_new_ones_are_decoded(
    updated: Path, data: Path, run: Path, fresh: Path
) -> None:
    old, joined = Manifest.load(data), Manifest.load(updated / "data")
    assert joined.videos[: len(old.videos)] == old.videos and len(joined.videos) == len(old.videos) + 18
    assert joined.classes == [*old.classes, "Unheard"]
    groups = {video.group for video in old.videos}
    assert not groups & {video.group for video in joined.videos[len(old.videos) :]}
    video = old.videos[3]
    stored = (
        FrameStore(data).frames(video.id, "flow", 0, 2),
        FrameStore(updated / "data").frames(video.id, "flow", 0, 2),
    )
    assert (stored[0] == stored[1]).all()
    assert Manifest.load(data).videos == old.videos  # the run that was updated stays as it was
    assert load(run / "checkpoint.pt")["step"] > 0


def test_it_reports_old_and_new_before_and_after(run: Path, updated: Path, data: Path) -> None:
    figures_file = json.loads((updated / "update.json").read_text())
    assert set(figures_file) == {"before", "after"}
    for figures in figures_file.values():
        assert set(figures) == {"old", "new"} and set(figures["new"]) == {"rgb", "flow", "both"}
        assert list(figures["old"]["rgb"]) == ["1", "5", "10", "20"]
    joined, old = Manifest.load(updated / "data"), len(Manifest.load(data).videos)
    tests = [i for i, video in enumerate(joined.videos) if video.split == "test"]
    for when, folder in (("before", run), ("after", updated)):  # parts of one measurement of all test videos
        rgb = {"rgb": load_encoder(encoder_files(folder)[-1][1]["rgb"])}
        whole = retrieval(updated / "data", rgb, Protocol(frames=8, crop=32, clips=1))["rgb"][20]
        parts = [(sum(i < old for i in tests), "old"), (sum(i >= old for i in tests), "new")]
        right = sum(count * figures_file[when][name]["rgb"]["20"] for count, name in parts)
        assert right / len(tests) == pytest.approx(whole)


def test_every_batch_has_its_share_of_old_videos_and_all_get_their_turn(
    settings: Update, updated: Path
) -> None:
    trainer = build(loop.config_of(updated))
    old = WarmStart.load(updated / "goes_on.json").old_videos
    seen: set[int] = set()
    for number in range(40):
        videos = [trainer.dataset.videos[position] for position, *_ in trainer.sampler.sample_keys(number)]
        assert len(set(videos)) == 8 and sum(video < old for video in videos) == 6
        seen |= set(videos)
    assert seen == set(trainer.dataset.videos)
    assert trainer.sampler.steps_per_pass == 4  # 9 new ones for training, 2 a batch
    assert trainer.sampler.sample_keys(7) == build(loop.config_of(updated)).sampler.sample_keys(7)


def test_it_starts_warm(run: Path, updated: Path) -> None:
    before = load(run / "checkpoint.pt")["model"]
    config = loop.config_of(updated)
    trainer = build(config)
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert int(trainer.model.queue.count) == config.queue
    plan = make_plan(config)
    assert [phase.name for phase in plan] == ["cycle1-rgb", "cycle1-flow"]
    assert plan[0].fill_steps == 0 and plan[1].fill_steps == 3


def test_what_cannot_work_is_told_in_one_line(
    run: Path, fresh: Path, clip_folder: Path, settings: Update, updated: Path, tmp_path: Path, capsys: Any
) -> None:
    same = tmp_path / "same"
    for path in sorted(clip_folder.rglob("*.mp4"))[:2]:
        place = same / path.relative_to(clip_folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(path.read_bytes() + b" ")
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    for changed, sentence in (
        ({"run": tmp_path}, "has no checkpoint.pt"),
        ({"out": run}, "give a folder of its own"),
        ({"old_share": 1.0}, r"must lie in \[0, 1\)"),
        ({"epochs": 2}, "was begun with other settings"),
        ({"videos": same, "out": tmp_path / "a"}, "has the name of another video"),
        ({"videos": nothing, "out": tmp_path / "b"}, "no video found"),
        ({"batch": 30, "old_share": 0.5, "out": tmp_path / "c"}, "needs 15 new videos, and there are 9"),
    ):
        with pytest.raises(TrainError, match=sentence):
            update(replace(settings, **changed))
    assert not (tmp_path / "a" / "data").exists() and not (tmp_path / "b" / "data").exists()
    assert main(["update", str(run), "--videos", str(fresh), "--out", str(run)]) == 2
    assert "give a folder of its own" in capsys.readouterr().err


def test_a_run_of_infonce_alone_goes_on_with_it(run: Path, settings: Update) -> None:
    before = replace(loop.config_of(run), cycles=0)
    config = config_of_update(before, replace(settings, epochs=3, lr=0.5))
    [phase] = make_plan(config)
    assert phase.pretrains and phase.epochs == 3 and config.optim.lr == 0.5
