"""What a run logs about its mining without labels, and how the report shows it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from train_sets import tiny

from cpr_kernels import coclr_schedule, estimate_agreement
from cpr_kernels.train.pages.explorer.runs import memory_of
from cpr_kernels.train.pages.report.agreement import tracking
from cpr_kernels.train.pretrain.mining.agreement import SAMPLE, measured_agreement
from cpr_kernels.train.pretrain.phases import make_plan
from cpr_kernels.train.pretrain.run_folder import config_of
from cpr_kernels.train.runtime.run_log import read_lines

pytest_plugins = ["train_fixtures"]


def test_the_last_epoch_s_agreement_is_that_of_the_queue_it_leaves(cascade_run: Path, data: Path) -> None:
    epochs = [line for line in read_lines(cascade_run / "log.jsonl") if line["kind"] == "epoch"]
    assert [set(line["agreement"]) for line in epochs] == [set(), set(), {"mined"}, {"mined"}]
    queue, _ = memory_of(cascade_run, config_of(cascade_run))
    schedule = make_plan(tiny(data, cascade_run))[-1].schedule
    views = {view: queue[view] for view in ("rgb", "flow")}
    expected = estimate_agreement(views, schedule, queue["sources"], sample=SAMPLE, seed=0)
    assert epochs[-1]["agreement"]["mined"] == expected and 0 < expected <= 1


def test_views_that_cannot_judge_are_named_and_nothing_is_logged(capsys: pytest.CaptureFixture[str]) -> None:
    rows = torch.nn.functional.normalize(
        torch.randn(24, 4, generator=torch.Generator().manual_seed(0)), dim=1
    )
    collapsed, ids = {"rgb": rows, "flow": torch.ones(24, 4)}, torch.arange(24)
    assert measured_agreement(coclr_schedule("rgb", 2), collapsed, ids, 0) == {}
    assert "agreement of what is mined is not measured: estimate_agreement: views['flow'] is constant" in (
        capsys.readouterr().err
    )
    assert measured_agreement(None, collapsed, ids, 0) == {} and capsys.readouterr().err == ""


def test_tracking_ranks_epochs_within_a_phase() -> None:
    def epoch(phase: str, agreed: float | None, pmr: float | None) -> dict:
        mining = {} if pmr is None else {"mined": {"pmr": pmr}}
        return {"phase": phase, "mining": mining, "agreement": {} if agreed is None else {"mined": agreed}}

    lines = [epoch("infonce", None, None)]
    lines += [epoch("a", *pair) for pair in ((0.1, 0.3), (0.2, 0.5), (0.4, 0.4), (0.5, 0.9))]
    lines += [epoch("b", 0.3, 0.3), epoch("b", 0.2, 0.1), {"phase": "old", "mining": {}}]
    lines += [epoch("c", 0.1, None)] * 3
    assert tracking(lines) == [
        {"phase": "a", "epochs": 4, "last": 0.5, "rho": pytest.approx(0.8)},
        {"phase": "b", "epochs": 2, "last": 0.2, "rho": None},
        {"phase": "c", "epochs": 3, "last": 0.1, "rho": None},
    ]
