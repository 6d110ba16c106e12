"""The comparison of methods in one command: common warm-up, one budget, resumable, tables that say what was measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from train_sets import tiny

from bench.studies import protocol
from bench.studies.protocol_tables import curves_table, diagnosis, gains_table
from cpr_kernels.train import TrainError
from cpr_kernels.train.data.manifest import Manifest
from cpr_kernels.train.pretrain.config import Mining
from cpr_kernels.train.pretrain.phases import make_plan
from cpr_kernels.train.pretrain.run_folder import config_of
from cpr_kernels.train.runtime.checkpoint import load

pytest_plugins = ["train_fixtures"]


@pytest.fixture(scope="module")
def base(data: Path, tmp_path_factory: pytest.TempPathFactory) -> protocol.Budget:
    out = tmp_path_factory.mktemp("protocol")
    return protocol.Budget(
        tiny(data, out, infonce_epochs=1, cycle_epochs=1, queue=24, mining=Mining(topk=2)), clips_per_video=1
    )


@pytest.fixture(scope="module")
def document(base: protocol.Budget) -> dict:
    return protocol.run_protocol(base, base.config.out, [3], ["coclr", "cpr-3", "tuned"])


def test_methods_start_from_the_common_warm_up(base: protocol.Budget, document: dict) -> None:
    out = base.config.out / "seed3"
    coclr, cpr, tuned = (config_of(out / name) for name in ("coclr", "cpr-3", "tuned"))
    assert tuned.mining.method == "auto" and tuned.init == cpr.init
    assert coclr.init == cpr.init and all(
        path.parent == out / "warm-up" / "encoders" for path in cpr.init.values()
    )
    assert coclr.seed == cpr.seed == 3 and cpr.infonce_epochs == 0
    assert [str(phase.schedule) for phase in make_plan(cpr)] == [
        "flow:12,rgb:6,flow:2",
        "rgb:12,flow:6,rgb:2",
    ]
    runs = document["results"]
    assert runs["coclr"]["3"]["trained_steps"] == runs["cpr-3"]["3"]["trained_steps"] == 8
    assert set(runs["coclr"]["3"]["mining"]) == {"rgb", "flow"}


def test_tables_say_what_was_measured(base: protocol.Budget, document: dict) -> None:
    text = (base.config.out / "protocol.md").read_text()
    r1 = document["results"]["cpr-3"]["3"]["recall"]["both"]["1"]
    line = next(line for line in text.splitlines() if line.startswith("| cpr-3") and "| both" in line)
    assert f"{100 * r1:.1f}" in line
    assert json.loads((base.config.out / "protocol.json").read_text())["results"] == document["results"]
    assert (base.config.out / "curves.svg").read_text().startswith("<?xml")
    found = document["diagnosis"]["3"]
    assert found["entries"] == 24 and len(found["purity"]["cascade, 3 stages, flow first"]) == 3
    assert "cascade, 7 stages, flow first" not in found["purity"]  # 24 entries halved six times are none
    assert found["purity"]["flow alone"] == pytest.approx(purity_by_hand(base), abs=1e-9)
    for name, kept in found["kept"].items():
        assert kept == sorted(kept, reverse=True) and kept[-1] == 2, name
        for stage, entries in enumerate(kept):  # the same right entries, as a share of two different things
            right = found["purity"][name][stage] * entries * 24
            assert right == pytest.approx(found["alive"][name][stage] * pairs_of_a_class(base), abs=1e-6)
    for view in ("rgb", "flow"):  # the nearest are nearer than what is mined by another view, and than any
        similarity = {name: of_view[view] for name, of_view in found["similarity"].items()}
        assert max(similarity, key=lambda name: similarity[name]) == f"{view} alone"
        assert min(similarity, key=lambda name: similarity[name]) == "any entry"
        assert f"A random eligible entry's {view} similarity is {similarity['any entry']:.2f}." in text
    assert "| cascade, 3 stages, flow first |" in text and "12 → 6 → 2" in text
    assert (
        f"in {100 * found['chance']:.1f} %; {100 * found['siblings']:.1f} % of the entries are siblings"
        in text
    )


def test_gains_are_paired_by_video_and_seed() -> None:
    def run(right: str) -> dict:
        return {"right": {"flow": right}}

    results = {
        "infonce": {"0": run("1100-0"), "1": run("0000-0"), "2": run("1111-1")},
        "cpr-7": {"0": run("1110-1"), "1": run("1000-0")},
    }
    for of_seed in results.values():
        for made in of_seed.values():
            made["right"]["rgb"] = "000000"
    budget = {"views": ["rgb", "flow"], "views trained in cycles": ["flow"]}
    text = gains_table({"results": results, "sources": [1, 1, 2, 3, 4, 5], "budget": budget})
    assert "rgb" not in text  # no run trained it after the warm-up
    gains = np.array([0.5, 0, 0.5, 0, 0.5])  # of the five videos that have the view, mean of two seeds
    sums = np.array([gains[:2].sum() - 0.6, *(gains[2:] - 0.3)])  # of four sources, less the mean
    half = 1.96 * np.sqrt((sums**2).sum() * 4 / 3) / 5
    row = [cell.strip() for cell in text.splitlines()[-1].split("|")]
    assert row[1:4] == ["cpr-7", "flow", "+30.0"] and row[5] == "+40.0, +20.0"
    assert row[4] == f"{30 - 100 * half:+.1f} to {30 + 100 * half:+.1f}"


def test_runs_of_another_sitting_stay(base: protocol.Budget, document: dict, tmp_path: Path) -> None:
    """Only protocol.json came along from another machine: its runs are in the tables of the next one."""
    moved = replace(base, config=replace(base.config, out=tmp_path))
    (tmp_path / "protocol.json").write_text(json.dumps({**document, "seeds": [3]}))
    both = protocol.run_protocol(moved, tmp_path, [4], ["coclr"])
    assert both["seeds"] == [3, 4] and set(both["results"]["coclr"]) == {"3", "4"}
    assert both["results"]["cpr-3"] == document["results"]["cpr-3"]
    more = protocol.run_protocol(moved, tmp_path, [4], ["infonce"])  # a method more of a seed that is there
    assert list(more["results"])[:3] == ["warm-up", "infonce", "coclr"]
    assert more["results"]["coclr"] == both["results"]["coclr"] and set(more["results"]["infonce"]) >= {"4"}
    other = replace(moved, clips_per_video=2)
    with pytest.raises(TrainError, match=r"protocol.json has runs of another budget"):
        protocol.run_protocol(other, tmp_path, [5], ["coclr"])


def pairs_of_a_class(base: protocol.Budget) -> int:
    """Ordered pairs of the queue's entries with one class and two sources."""
    state = load(base.config.out / "seed3" / "warm-up" / "checkpoint.pt")["model"]
    videos = [Manifest.load(base.config.data).videos[i] for i in state["queue.labels"].tolist()]
    return sum(a.label == b.label and a.group != b.group for a in videos for b in videos)


def purity_by_hand(base: protocol.Budget) -> list[float]:
    """Top-2 by flow of every entry among the entries of other sources, entry by entry."""
    state = load(base.config.out / "seed3" / "warm-up" / "checkpoint.pt")["model"]
    videos = [Manifest.load(base.config.data).videos[i] for i in state["queue.labels"].tolist()]
    rows, right = state["queue.view_flow"], 0
    for i, video in enumerate(videos):
        others = [j for j, other in enumerate(videos) if other.group != video.group]
        best = sorted(others, key=lambda j: -float(torch.dot(rows[i], rows[j])))[:2]
        right += sum(videos[j].label == video.label for j in best)
    return [right / (2 * len(videos))]


def test_pmr_and_agreement_are_watched_epoch_by_epoch(base: protocol.Budget, document: dict) -> None:
    lines = [
        json.loads(line)
        for line in (base.config.out / "seed3" / "tuned" / "log.jsonl").read_text().splitlines()
    ]
    epochs = [line for line in lines if line["kind"] == "epoch"]
    watched = document["results"]["tuned"]["3"]["watched"]
    assert [epoch["phase"] for epoch in watched] == [line["phase"] for line in epochs] and len(watched) == 2
    assert [epoch["agreement"] for epoch in watched] == [line["agreement"]["mined"] for line in epochs]
    assert [epoch["pmr"] for epoch in watched] == document["results"]["tuned"]["3"]["pmr_by_epoch"]


def test_curves_are_means_over_seeds() -> None:
    def run(*pairs: tuple[float, float]) -> dict:
        return {
            "watched": [{"phase": "cycle1-flow", "pmr": pmr, "agreement": agreed} for pmr, agreed in pairs]
        }

    seeds = {"0": run((0.2, 0.1), (0.4, 0.3), (0.3, 0.2)), "1": run((0.3, 0.1), (0.5, 0.3), (0.4, 0.2))}
    text = curves_table({"results": {"cpr-7": seeds, "warm-up": {"0": {}}}})
    cells = [cell.strip() for cell in text.splitlines()[-1].split("|")[1:-1]]
    assert cells == ["cpr-7", "cycle1-flow", "25 45 35", "10 30 20", "1.00"]
    assert curves_table({"results": {"cpr-7": {"0": {}}}}) == ""


def test_same_command_goes_on_and_leaves_what_is_done(base: protocol.Budget, document: dict) -> None:
    files = {path: path.stat().st_mtime_ns for path in base.config.out.rglob("checkpoint.pt")}
    again = protocol.run_protocol(base, base.config.out, [3], ["coclr", "cpr-3", "tuned"])
    assert {path: path.stat().st_mtime_ns for path in base.config.out.rglob("checkpoint.pt")} == files
    assert again["results"] == document["results"]
    assert diagnosis(base.config.out / "seed3" / "warm-up", base.config) == document["diagnosis"]["3"]


def test_what_others_finished_is_only_read(
    base: protocol.Budget, document: dict, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two processes made the runs, a seed each; the command over all of them trains nothing, on another machine too."""

    def trained(*_: object, **__: object) -> None:
        raise AssertionError("nothing is left to train or to measure")

    monkeypatch.setattr(protocol, "pretrain", trained)
    monkeypatch.setattr(protocol, "evaluate_run", trained)
    monkeypatch.setattr(protocol, "budget", lambda preset, data, out, device: base)
    arguments = [
        "--data",
        str(base.config.data),
        "--out",
        str(base.config.out),
        "--workers",
        "3",
        "--device",
        "cpu",
    ]
    assert protocol.main([*arguments, "--seeds", "3", "--methods", "coclr", "cpr-3", "tuned"]) == 0
    again = json.loads((base.config.out / "protocol.json").read_text())
    assert again["results"] == document["results"] and again["diagnosis"] == document["diagnosis"]
    page, said = (base.config.out / "report.html").read_text(), capsys.readouterr().out
    assert "<li>Seed 3 of 1; protocol.md has the tables of all.</li>" in page
    assert said.endswith((base.config.out / "protocol.md").read_text() + "\n")


def test_other_arguments_do_not_mix_with_what_is_there(base: protocol.Budget, document: dict) -> None:
    other = protocol.Budget(replace(base.config, cycle_epochs=2), 1)
    with pytest.raises(TrainError, match=r"protocol.json has runs of another budget"):
        protocol.run_protocol(other, base.config.out, [3], ["coclr"])
    slower = replace(base, config=replace(base.config, optim=replace(base.config.optim, lr=1e-5)))
    with pytest.raises(TrainError, match=r"seed3/warm-up was made with other settings"):
        protocol.run_protocol(slower, base.config.out, [3], ["coclr"])


def test_every_method_has_the_same_budget(
    data: Path, tmp_path: Path, base: protocol.Budget, document: dict
) -> None:
    for preset in protocol.PRESETS:
        budget = protocol.budget(preset, data, base.config.out, "cpu")
        budget.config.check()
        epochs = set()
        for method in protocol.METHODS:
            made = protocol.method_config(budget, base.config.out, 3, method)
            replace(made, init={}).check()  # the warm-up here is of rgb and flow
            assert made.augment.min_area == (budget.cycle_min_area or budget.config.augment.min_area)
            epochs.add(sum(phase.epochs for phase in make_plan(made)))
        assert len(epochs) == 1
    with pytest.raises(TrainError, match="1 epochs a view do not divide into 5 cycles"):
        protocol.method_config(base, base.config.out, 3, "cpr-7-progressive")


def test_bad_arguments_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert protocol.main(["--data", str(tmp_path), "--out", str(tmp_path / "o")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("bench protocol: data:") and said.count("\n") == 1


def test_another_chance_of_leaving_the_own_pair_out(base: protocol.Budget, document: dict) -> None:
    """It is a budget of its own; InfoNCE and the warm-up, which have no other positives, are not trained again."""
    config = base.config
    changed = replace(base, config=replace(config, mining=replace(config.mining, drop_own_positive=0.5)))
    assert protocol.described(changed) == {**protocol.described(base), "own positive dropped": 0.5}
    warm_up = config.out / "seed3" / "warm-up" / "log.jsonl"
    before = warm_up.stat().st_mtime_ns
    protocol.train(protocol.warm_up_config(changed.config, config.out, 3), 1)
    assert warm_up.stat().st_mtime_ns == before
    with pytest.raises(TrainError, match=r"cpr-3 was made with other settings"):
        protocol.train(protocol.method_config(changed, config.out, 3, "cpr-3"), 1)
    dropped = protocol.method_config(base, config.out, 3, "cpr-7-drop-own").mining
    assert dropped == replace(config.mining, stages=7, drop_own_positive=0.9)
