"""Runs that choose their own mining: the plan of each phase, what is kept per key, resuming, ranks, what is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from train_sets import steps, tiny
from train_steps import Toy, assert_same_run

from cpr_kernels import MiningPlan, mil_nce, parse_schedule, tune_schedule
from cpr_kernels.networks import ENCODERS
from cpr_kernels.train import TrainError
from cpr_kernels.train.pages.explorer.packed import unpacked
from cpr_kernels.train.pages.explorer.runs import explore, memory_of
from cpr_kernels.train.pages.report.agreement import plan_tables
from cpr_kernels.train.pretrain import co_training, loop
from cpr_kernels.train.pretrain.config import Mining, TrainConfig
from cpr_kernels.train.pretrain.loop import build, pretrain, restore, snapshot
from cpr_kernels.train.pretrain.mining.tuned import score_weights
from cpr_kernels.train.pretrain.run_folder import WarmStart, config_of, plan_files
from cpr_kernels.train.runtime.checkpoint import load, save

pytest_plugins = ["train_fixtures"]
REFIT = 3


@pytest.fixture(autouse=True, scope="module")
def toy_encoder() -> Generator[None, None, None]:
    """S3D would take most of the tests' time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ENCODERS, Toy.architecture, Toy)
        yield


def settings(data: Path, out: Path, **changes: Any) -> TrainConfig:
    """Two phases of two filling steps and eight training steps."""
    given = {
        "infonce_epochs": 0,
        "cycle_epochs": 2,
        "backbone": "toy",
        "mining": Mining("auto", topk=2, refit=REFIT),
    }
    return tiny(data, out, **{**given, **changes})


@pytest.fixture(scope="module")
def straight(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped."""
    return pretrain(settings(data, tmp_path_factory.mktemp("auto") / "run"))


def tensors(state: Any, name: str = "") -> dict[str, torch.Tensor]:
    """The tensors of nested dictionaries, by path."""
    if isinstance(state, torch.Tensor):
        return {name: state}
    children = state.items() if isinstance(state, dict) else ()
    return {key: found for part, one in children for key, found in tensors(one, f"{name}.{part}").items()}


def assert_same_mining(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one["plan"] == other["plan"]
    a, b = tensors(one), tensors(other)
    assert a.keys() == b.keys() and len(a) > 6
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def test_each_phase_mines_by_the_plan_of_its_filled_queue(data: Path, tmp_path: Path) -> None:
    trainer = build(settings(data, tmp_path))
    model = trainer.model
    steps(trainer, 0, 2, tmp_path)
    assert model.tuned.miner is None and model.queue.is_full
    held = {view: rows.clone() for view, rows in model.queue.views.items()}
    ids, at = model.queue.ids.clone(), int(model.queue.pointer)
    expected = tune_schedule(held, ids, topk=2, seed=0)
    mined: list[torch.Tensor] = []
    record = model.tuned.mine
    model.tuned.mine = lambda *args: mined.append(record(*args)[0]["mined"]) or ({"mined": mined[-1]}, None)
    steps(trainer, 2, 3, tmp_path)
    [(phase, path)] = plan_files(tmp_path)
    assert phase == "cycle1-rgb" and MiningPlan.load(path) == expected
    slots = (at + torch.arange(12)) % 24  # the batch's keys, which were its mining queries
    batch = {view: rows[slots] for view, rows in model.queue.views.items()}
    keys = expected.prepare_keys(held, ids)
    by_plan, _ = expected.mine(batch, keys, model.queue.ids[slots])
    assert torch.equal(mined[0], by_plan) and (by_plan >= 0).all()
    kept = model.tuned.miner.keys
    assert torch.equal(kept.ids, model.queue.ids)
    for view, rows in expected.whitened(batch).items():
        assert torch.allclose(kept.whitened[view][slots][:, : rows.shape[1]], rows, atol=1e-6)


def test_sure_pairs_weigh_more() -> None:
    scores = torch.tensor([[0.9, 0.5, -torch.inf], [0.5, -2.0, -3.0], [-torch.inf] * 3])
    expected = torch.tensor([[1.0, 0.8, 0.0], [0.8, 0.4, 0.2], [0.0] * 3])
    assert torch.equal(score_weights(scores), expected)
    assert not score_weights(torch.full((2, 2), -torch.inf)).any()


def test_the_loss_takes_the_pairs_by_their_scores(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, list[Any]] = {"equal": [], "score": []}
    losses = {}
    for weights, calls in given.items():
        trainer = build(settings(data, tmp_path / weights, mining=Mining("auto", topk=2, weights=weights)))

        def record(*args: Any, seen: list[Any] = calls, **masks: Any) -> torch.Tensor:
            seen.append((args[3], masks["positive_weights"]))
            return mil_nce(*args, **masks)

        monkeypatch.setattr(co_training, "mil_nce", record)
        steps(trainer, 0, 3, tmp_path / weights)
        losses[weights] = next(iter(trainer.model.online.values())).state_dict()
    assert given["equal"][0][1] is None
    mined, sure = given["score"][0]
    assert torch.equal(mined, given["equal"][0][0]) and sure.shape == mined.shape
    assert sure.max() == 1 and len(sure.unique()) > 4 and torch.equal(sure > 0, mined >= 0)
    assert any(not torch.equal(one, losses["score"][name]) for name, one in losses["equal"].items())


def test_plans_are_fitted_anew_while_a_phase_trains(data: Path, tmp_path: Path) -> None:
    trainer = build(settings(data, tmp_path))
    steps(trainer, 0, 5, tmp_path)  # training steps 0, 1 and 2
    chosen = MiningPlan.load(plan_files(tmp_path)[0][1])
    first = {view: white.mean.clone() for view, white in trainer.model.tuned.plan.whiten.items()}
    assert all(torch.equal(first[view], chosen.whiten[view].mean) for view in first)
    queue = {view: rows.clone() for view, rows in trainer.model.queue.views.items()}
    steps(trainer, 5, 6, tmp_path)
    for view, white in trainer.model.tuned.plan.whiten.items():
        assert torch.allclose(white.mean, queue[view].mean(dim=0), atol=1e-6)
        assert not torch.equal(white.mean, first[view])
    steps(trainer, 6, 11, tmp_path)  # the next phase begins to fill its queue
    assert trainer.model.tuned.miner is None and trainer.model.tuned.state_dict() == {}


def test_a_run_killed_in_the_middle_of_a_phase_ends_alike(
    straight: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last checkpoint is of the first phase's first epoch: a plan was chosen, fitted anew, and keys were added."""
    config, run_step = settings(data, tmp_path / "run"), loop.run_step

    def dies(trainer: Any, moment: Any, step: int, *args: Any) -> Any:
        if step == 8:
            raise KeyboardInterrupt
        return run_step(trainer, moment, step, *args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "run_step", dies)
        pretrain(config)
    held = load(config.out / "checkpoint.pt")
    assert held["step"] == 6 and held["tuned"]["plan"]["candidates"]
    pretrain(config, resume=True)
    assert_same_run(straight, config.out)
    assert_same_mining(*(load(run / "checkpoint.pt")["tuned"] for run in (straight, config.out)))
    first, second = ([MiningPlan.load(path) for _, path in plan_files(run)] for run in (straight, config.out))
    assert len(first) == 2 and first == second


def test_snapshots_between_steps_keep_what_each_key_keeps(data: Path, tmp_path: Path) -> None:
    one = build(settings(data, tmp_path / "a"))
    steps(one, 0, 4, tmp_path / "a")  # between choice and refit
    save(tmp_path / "x.pt", snapshot(one, 4))
    steps(one, 4, 7, tmp_path / "a")
    two = build(settings(data, tmp_path / "b"))
    assert restore(two, load(tmp_path / "x.pt")) == 4
    steps(two, 4, 7, tmp_path / "b")
    a, b = snapshot(one, 7), snapshot(two, 7)
    assert all(torch.equal(a["model"][name], b["model"][name]) for name in a["model"])
    assert_same_mining(a["tuned"], b["tuned"])


def test_online_queries_mine_and_momentum_keys_are_kept(data: Path, tmp_path: Path) -> None:
    mining = Mining("auto", topk=2, query="online", frozen_query="online")
    trainer = build(settings(data, tmp_path, mining=mining))
    steps(trainer, 0, 3, tmp_path)
    model = trainer.model
    kept, fresh = model.tuned.miner.keys, model.tuned.plan.whitened(model.queue.views)
    for view, rows in fresh.items():
        assert torch.allclose(
            kept.whitened[view][:, : rows.shape[1]], rows[:, : kept.whitened[view].shape[1]], atol=1e-6
        )


def test_a_run_that_continues_another_tunes_at_once(straight: Path, data: Path, tmp_path: Path) -> None:
    """As `cpr update` does: the queue is full of the run before."""
    WarmStart(str(straight), 36, 0.5).save(tmp_path / "note.json")
    trainer = build(settings(data, tmp_path / "run", goes_on=tmp_path / "note.json"))
    queue = {view: rows.clone() for view, rows in trainer.model.queue.views.items()}
    ids = trainer.model.queue.ids.clone()
    steps(trainer, 0, 1, tmp_path / "run")
    assert MiningPlan.load(plan_files(tmp_path / "run")[0][1]) == tune_schedule(queue, ids, topk=2)


def test_what_cannot_be_tuned_is_refused(data: Path, tmp_path: Path) -> None:
    for changes, sentence in (
        ({"views": ("rgb",)}, r"mining\.method: auto lets one view judge .* needs two views, got rgb"),
        ({"queue": 7}, "queue: mining.method auto needs at least 8 entries, got 7"),
        ({"mining": Mining("auto", topk=2, refit=-1)}, r"mining\.refit: must be at least 0, got -1"),
        ({"mining": Mining("cpr", weights="score")}, r"mining\.weights: score .* needs mining\.method auto"),
        (
            {"framework": "iic", "mining": Mining("auto", topk=2, siblings="negative")},
            r"mining\.method: framework iic takes .* got auto",
        ),
    ):
        with pytest.raises(TrainError, match=sentence):
            settings(data, tmp_path, **changes).check()
    trainer = build(settings(data, tmp_path))
    steps(trainer, 0, 2, tmp_path)
    trainer.model.queue.views["flow"].fill_(0.25)  # an encoder that gives one embedding for all clips
    with pytest.raises(TrainError, match=r"mining\.method auto: tune_schedule: views\['flow'\] is constant"):
        steps(trainer, 2, 3, tmp_path)
    assert plan_files(tmp_path) == []


def test_the_report_s_table_is_the_plan_s(straight: Path, tmp_path: Path) -> None:
    plans = [MiningPlan.load(path) for _, path in plan_files(straight)]
    shown = plan_tables(straight)
    assert [one["phase"] for one in shown] == ["cycle1-rgb", "cycle1-flow"]
    for plan, one in zip(plans, shown):
        assert one["says"] == plan.summary() and len(one["rows"]) == len(plan.candidates) > 30
        assert [row["cells"] for row in one["rows"] if row["strong"]] == [
            c.row() for c in plan.candidates if c.chosen
        ]
    cut = Path(shutil.copytree(straight, tmp_path / "cut"))
    file = plan_files(cut)[0][1]
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(TrainError, match=r"run: .*00-cycle1-rgb\.json: is cut or damaged"):
        plan_tables(cut)


def test_the_explorer_holds_the_plan_of_the_checkpoint(straight: Path, tmp_path: Path) -> None:
    page = explore([straight], tmp_path / "explore.html").read_text()
    found = re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.DOTALL)
    [held] = json.loads(found[1])["runs"]
    queue, plan = memory_of(straight, config_of(straight))
    keys = plan.prepare_keys(queue, queue["sources"])
    views = {view["name"]: view for view in held["views"]}
    assert (
        held["schedules"][0] == ["as trained", held["schedule"]]
        and held["plain"] == 2
        and set(parse_schedule(held["schedule"]).views) <= set(views)
    )
    for view, rows in keys.views.items():
        assert torch.allclose(unpacked(views[f"tuned_{view}"]).float(), rows, atol=1e-4)
    assert ("hub" in views) == (plan.hub is not None) and plan.topk == held["topk"] == 2
