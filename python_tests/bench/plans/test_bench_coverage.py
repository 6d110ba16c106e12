"""`python -m bench coverage`: what is kept, by what sign, and what its figures are."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from tuning_data import clusters

cli = pytest.importorskip("bench.cli", reason="bench is not beside the tests")

import cpr_kernels as cpr  # noqa: E402
from bench.plans.coverage import BEGIN, END, SIGNS, figures, signs, study, surest, then  # noqa: E402
from bench.plans.tuning import Table, read  # noqa: E402


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Table:
    views, labels = clusters(rows=120, noise=1.0)
    path = tmp_path_factory.mktemp("tables") / "small.npz"
    arrays = {name: rows.numpy() for name, rows in views.items()}
    np.savez(path, **arrays, label=labels.numpy(), group=np.arange(120) // 3)
    return read(path)


def test_the_surest_pairs_are_kept():
    mined = torch.tensor([[4, 5], [6, 7]])
    sure = torch.tensor([[0.1, 0.9], [0.9, 0.3]], dtype=torch.float64)
    assert surest(mined, sure, 0.75).tolist() == [[-1, 5], [6, 7]]
    assert surest(mined, sure, 0.25).tolist() == [[-1, 5], [-1, -1]]  # equally sure: in their order
    assert surest(mined, sure, 1.0).tolist() == mined.tolist()
    ranked = then(torch.tensor([[1, 0], [1, 2]]), torch.tensor([[0.2, 9.0], [0.3, -1.0]])).reshape(-1)
    assert ranked.argsort(descending=True).tolist() == [3, 2, 0, 1]


def test_signs_are_what_they_are_called(table):
    plan = cpr.tune_schedule(table.views, table.ids)
    mined, found = signs(table, plan)
    keys = plan.prepare_keys(table.views, table.ids)
    expected, scores = plan.mine(table.views, keys, table.ids)
    assert torch.equal(mined, expected) and torch.equal(found["score"], scores.double())
    wider = cpr.Schedule([cpr.Stage(plan.schedule[-1].weights, 20)])
    wide = cpr.MiningPlan(plan.whiten, plan.expand, plan.hub, wider).mine(table.views, keys, table.ids)[0]
    lists = [row.tolist() for row in wide]
    for query, place in ((0, 0), (17, 3), (80, 4)):
        entry = lists[query][place]
        assert found["shared"][query, place].floor() == len(set(lists[query]) & set(lists[entry]))
        back = lists[entry].index(query) if query in lists[entry] else 20
        assert found["reciprocal"][query, place] == -(place + back)
        assert 0 <= found["views"][query, place] < 3
    assert set(found) == set(SIGNS)


def test_figures_count_what_is_kept(table):
    row = study(table)
    mined, found = signs(table, cpr.tune_schedule(table.views, table.ids))
    half = surest(mined, found["score"], 0.5)
    right = [
        int(table.labels[entry] == table.labels[query])
        for query, entries in enumerate(half.tolist())
        for entry in entries
        if entry >= 0
    ]
    assert len(right) == 300 and row.kept["score"][1].pmr == pytest.approx(sum(right) / 300)
    assert row.whole == figures(table, mined)
    assert all(a.cmr >= b.cmr for kept in row.kept.values() for a, b in pairwise([row.whole, *kept]))


def test_the_page_is_rewritten_between_its_markers(table, tmp_path, capsys):
    folder = tmp_path / "tables"
    folder.mkdir()
    arrays = {name: rows.numpy() for name, rows in table.views.items()}
    np.savez(folder / "small.npz", **arrays, label=table.labels.numpy())
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    assert cli.main(["coverage", str(folder), "--page", str(page)]) == 0
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert text.count("| small") == 2 and "small: all " in capsys.readouterr().out
    assert cli.main(["coverage", str(tmp_path)]) == 2
    assert "holds no .npz table" in capsys.readouterr().err
