"""`python -m bench tuning`: its figures are those of the functions, and labels never choose."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tuning_data import clusters, save_clusters

cli = pytest.importorskip("bench.cli", reason="bench is not beside the tests")

import cpr_kernels as cpr  # noqa: E402
from bench.plans.tuning import BEGIN, END, UNSEEN, Figures, Row, against, rank_correlation, read, study  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("tables")
    save_clusters(made / "small.npz", "group", clips=3)
    return made


@pytest.fixture(scope="module")
def row(folder) -> Row:
    return study(read(folder / "small.npz"), [0, 1])


def test_the_figures_are_those_of_the_functions(folder, row):
    views, labels = clusters(rows=120)
    ids = labels * 100_000 + torch.arange(120) // 3
    plan = cpr.tune_schedule(views, ids)
    mined, _ = plan.mine(views, plan.prepare_keys(views, ids), ids)
    assert row.tuned[0].pmr == float(cpr.positive_mining_recall(mined, labels, labels))
    unit = {v: torch.nn.functional.normalize(x - x.mean(dim=0), dim=1) for v, x in views.items()}
    for schedule, found in (
        (cpr.oracle_schedule(("v0", "v1")), row.joint),
        (cpr.cpr_schedule(("v0", "v1"), 120, 3), row.cascades[0]),
    ):
        mined, _ = cpr.cascade_topk(unit, unit, schedule, query_ids=ids, key_ids=ids)
        assert found.pmr == pytest.approx(float(cpr.positive_mining_recall(mined, labels, labels)), abs=0.002)
    assert row.hindsight.pmr >= max(row.single.pmr, row.joint.pmr, *(found.pmr for found in row.cascades))
    assert len(row.cascades) == 2 and len(row.tuned) == 2 and -1 <= row.correlation <= 1


def test_labels_take_no_part_in_the_choice(folder, row, tmp_path):
    with np.load(folder / "small.npz") as arrays:
        kept = {name: arrays[name] for name in arrays.files if name != "group"}
    ids_only = {**kept, "label": np.zeros(120, dtype=np.int64)}
    np.savez(tmp_path / "a.npz", **kept)
    np.savez(tmp_path / "b.npz", **ids_only)
    assert study(read(tmp_path / "a.npz"), [0]).chosen == study(read(tmp_path / "b.npz"), [0]).chosen


def test_the_page_is_rewritten_between_its_markers(folder, tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    assert cli.main(["tuning", str(folder), "--page", str(page)]) == 0
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "small (120, 2)" in text and "small (120, 2)" in capsys.readouterr().out
    assert cli.main(["tuning", str(tmp_path)]) == 2
    assert "holds no .npz table" in capsys.readouterr().err


def test_the_page_of_unseen_tables_says_how_often_the_plan_is_better(folder, row, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("\n".join([*UNSEEN, BEGIN, "kept", END]) + "\n")
    assert cli.main(["tuning", str(folder), "--unseen", "--page", str(page)]) == 0
    text = page.read_text()
    cells = [
        cell.strip() for cell in next(line for line in text.splitlines() if "small (120)" in line).split("|")
    ]
    assert cells[2] == " ".join(f"{found.pmr:.2f}" for found in row.alone) and "kept" in text
    assert float(cells[10]) == pytest.approx(row.candidate, abs=6e-4) and row.candidate >= row.joint.pmr
    lower, higher = Figures(row.joint.pmr - 0.05, 0.0), Figures(row.joint.pmr + 0.03, 0.0)
    [_, _, joint, *_] = against(
        [row._replace(tuned=[lower]), row._replace(tuned=[higher, higher])]
    ).splitlines()
    assert joint == (
        "- against the joint score: more by over 0.01 PMR on 1 of 2 tables, less on 1, mean -0.010, worst -0.050"
    )


@pytest.mark.parametrize("drop", ["label", "v1"])
def test_tables_that_do_not_fit_are_refused(folder, tmp_path, drop):
    with np.load(folder / "small.npz") as arrays:
        np.savez(tmp_path / "odd.npz", **{name: arrays[name] for name in arrays.files if name != drop})
    with pytest.raises(ValueError, match=r"odd\.npz: has"):
        read(tmp_path / "odd.npz")


def test_rank_correlation():
    assert rank_correlation([1, 2, 3, 4], [10, 20, 30, 99]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert rank_correlation([1, 2, 2, 4], [1, 3, 2, 4]) == pytest.approx(
        3 / math.sqrt(10)
    )  # a tie shares its rank
