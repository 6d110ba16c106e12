"""`bench weights`: weights of views move only where the agreement clearly rises, and stay in their bounds."""

from __future__ import annotations

import pytest
from bench_tools import ROOT  # noqa: F401  puts the repository's root on the path

from bench.plans import weights
from bench.plans.tuning import TOPK
from cpr_kernels import estimate_agreement
from cpr_kernels.tuning.candidates import Settings
from cpr_kernels.tuning.steps import joint_schedule
from cpr_kernels.tuning.tune import as_plan


def test_weights_move_as_long_as_the_views_agree_more(monkeypatch: pytest.MonkeyPatch) -> None:
    table = weights.drawn_table(1.2)
    plan = as_plan(Settings(0.0, None, None, joint_schedule(tuple(table.views), TOPK)), table.axes)
    other = weights.weighed(plan, table)
    [stage] = other.schedule
    assert list(stage.weights) == ["a", "b", "c"] and sum(stage.weights.values()) == pytest.approx(1)
    assert 1 < max(stage.weights.values()) / min(stage.weights.values()) <= 4 * (1 + 1e-6)
    assert estimate_agreement(table.views, other) > estimate_agreement(table.views, plan)
    monkeypatch.setattr(weights, "ALIKE", 100.0)
    [stage] = weights.weighed(plan, table).schedule
    assert len(set(stage.weights.values())) == 1


def test_a_table_s_row(monkeypatch: pytest.MonkeyPatch) -> None:
    table = weights.drawn_table(0.5)
    plan = as_plan(Settings(0.0, None, None, joint_schedule(tuple(table.views), TOPK)), table.axes)
    monkeypatch.setattr(weights, "tune_schedule", lambda *_, **__: plan)
    monkeypatch.setattr(weights, "weighed", lambda *_: plan)
    name, equal, chosen, shown = weights.study(table)
    assert (name, shown) == ("drawn, noise 0.5", "a 1, b 1, c 1") and equal == chosen
    assert 0.3 < float(equal[:5]) <= 1 and "| drawn, noise 0.5 |" in weights.page(
        [[name, equal, chosen, shown]]
    )
