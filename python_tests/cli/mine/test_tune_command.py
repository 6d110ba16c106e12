"""`cpr tune` and `cpr mine --plan`: what they print and write equals the functions, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tuning_data import clusters, save_clusters

import cpr_kernels as cpr
from cpr_kernels.__main__ import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`clips.npz` with views v0 and v1, labels and videos of two rows; its plan, made by `cpr tune`."""
    made = tmp_path_factory.mktemp("tune")
    save_clusters(made / "clips.npz", "video", clips=2)
    assert main(["tune", str(made / "clips.npz"), "--out", str(made / "plan.json"), "--no-progress"]) == 0
    return made


@pytest.fixture(scope="module")
def table():
    views, _ = clusters(rows=120)
    return views, torch.arange(120) // 2


def test_the_command_writes_what_the_function_returns(folder, table):
    assert cpr.MiningPlan.load(folder / "plan.json") == cpr.tune_schedule(*table)


def test_the_summary_lists_candidates_and_marks_labels_as_unused(folder, capsys):
    assert main(["tune", str(folder / "clips.npz")]) == 0
    shown = capsys.readouterr().out
    assert shown.count("\n* ") == 1 and "labels, not used for the choice: plan  PMR" in shown
    assert main(["tune", str(folder / "clips.npz"), "--json", "--labels", "none"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert "labelled" not in summary and len(summary["candidates"]) == 34
    kept = json.loads((folder / "plan.json").read_text())
    assert kept["candidates"] == summary["candidates"]  # the labels changed nothing


def test_the_plot_ranks_candidates_and_marks_the_choice(folder, table, monkeypatch):
    pytest.importorskip("matplotlib", reason="pip install 'cpr_kernels[train]'")
    from cpr_kernels.train.pages import plots

    drawn, save_dots = [], plots.save_dots
    monkeypatch.setattr(plots, "save_dots", lambda *args: drawn.append(args) or save_dots(*args))
    out = folder / "candidates.svg"
    assert main(["tune", str(folder / "clips.npz"), "--plot", str(out), "--no-progress"]) == 0
    plan = cpr.MiningPlan.load(folder / "plan.json")
    _, rows, series, marked = drawn[0]
    assert plan.candidates[marked].chosen and rows[marked] == str(plan.candidates[marked].settings)
    agreement, pmr = series.values()
    assert agreement == [tried.agreement for tried in plan.candidates]
    views, ids = table
    mined, _ = plan.mine(views, plan.prepare_keys(views, ids), ids)
    labels = clusters(rows=120)[1]
    assert pmr[marked] == float(cpr.positive_mining_recall(mined, labels, labels))
    text = out.read_text()
    assert "PMR by labels, not used" in text and text.count(rows[marked]) >= 1
    picture = folder / "candidates.png"
    words = ["tune", str(folder / "clips.npz"), "--labels", "none", "--plot", str(picture)]
    assert main(words) == 0 and picture.read_bytes()[:4] == b"\x89PNG"
    assert list(drawn[1][2]) == ["agreement, no labels"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_mining_by_a_plan_is_the_plan(folder, table, capsys, dtype):
    out = folder / f"{dtype}.npz"
    options = [
        "--plan",
        str(folder / "plan.json"),
        "--out",
        str(out),
        "--json",
        "--dtype",
        dtype,
        "--chunk",
        "50",
    ]
    assert main(["mine", str(folder / "clips.npz"), *options]) == 0
    summary = json.loads(capsys.readouterr().out)
    plan = cpr.MiningPlan.load(folder / "plan.json")
    views, ids = table
    mined, scores = plan.mine(views, plan.prepare_keys(views, ids), ids)
    found = np.load(out)
    assert summary["schedule"] == str(plan.cascade) and summary["topk"] == 5
    if dtype == "float32":
        assert torch.equal(torch.from_numpy(found["indices"]), mined)
        assert torch.allclose(torch.from_numpy(found["scores"]), scores, atol=1e-5)
    else:
        assert float((torch.from_numpy(found["indices"]) == mined).double().mean()) > 0.6


def test_other_queries_mine_by_the_plan(folder, capsys):
    whole = np.load(folder / "clips.npz")
    np.savez(folder / "few.npz", **{name: whole[name][10:17] for name in whole.files})
    out = [folder / "whole_mined.npz", folder / "few_mined.npz"]
    plan = ["--plan", str(folder / "plan.json")]
    assert main(["mine", str(folder / "clips.npz"), *plan, "--out", str(out[0])]) == 0
    assert (
        main(
            [
                "mine",
                str(folder / "clips.npz"),
                *plan,
                "--out",
                str(out[1]),
                "--queries",
                str(folder / "few.npz"),
            ]
        )
        == 0
    )
    capsys.readouterr()
    assert (np.load(out[1])["indices"] == np.load(out[0])["indices"][10:17]).all()


def test_rows_that_are_not_finite_are_counted(folder, capsys):
    """One number of a row makes the row a missing view, which must not pass unsaid."""
    arrays = dict(np.load(folder / "clips.npz"))
    arrays["v1"] = arrays["v1"].copy()
    arrays["v1"][[3, 70], [2, 0]] = np.nan, np.inf
    np.savez(folder / "odd.npz", **arrays)
    said = "2 rows of v1 hold NaN or infinity: they count as missing in that view"
    assert main(["tune", str(folder / "odd.npz"), "--no-progress"]) == 0
    assert f"note       {said}\n" in capsys.readouterr().out
    assert main(["tune", str(folder / "odd.npz"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["notes"] == [said]
    plan = ["--plan", str(folder / "plan.json")]
    assert main(["mine", str(folder / "odd.npz"), *plan, "--out", str(folder / "odd_mined.npz")]) == 0
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tune", "clips.npz", "--views", "v0"], "cpr tune: tune_schedule: views holds one view, 'v0'"),
        (["tune", "clips.npz", "--out", "plan.npz"], "cpr tune: --out: a plan is written as JSON"),
        (["tune", "clips.npz", "--out", "plan.json"], "add --force to replace it"),
        (["tune", "clips.npz", "--out", "no/plan.json"], "the folder no does not exist"),
        (["tune", "clips.npz", "--plot", "plan.pdf"], "cpr tune: --plot: is drawn as .svg or .png"),
        (["tune", "clips.npz", "--plot", "no/p.svg"], "--plot: the folder no does not exist"),
        (["tune", "clips.npz", "--topk", "0"], "cpr tune: --topk: must be >= 1"),
        (
            ["mine", "clips.npz", "--plan", "plan.json", "--topk", "3"],
            "cpr mine: --topk: does not go with --plan",
        ),
        (
            ["mine", "clips.npz", "--plan", "plan.json", "--center"],
            "cpr mine: --center: does not go with --plan",
        ),
        (["mine", "clips.npz", "--plan", "none.json"], "cpr mine: none.json: no such file"),
        (["mine", "clips.npz", "--views", "v1", "--plan", "plan.json"], "plan.json is of the view 'v0'"),
    ],
)
def test_errors_are_one_line(folder, capsys, monkeypatch, words, said):
    monkeypatch.chdir(folder)
    assert main(words) == 2
    shown = capsys.readouterr().err
    assert said in shown and shown.count("\n") == 1


def test_a_plan_s_rows_go_where_scratch_says(folder, monkeypatch, capsys):
    from cpr_kernels.cli.mine import embeddings

    monkeypatch.setattr(embeddings, "free_memory", lambda: 0)
    plan, missing = folder / "plan.json", folder / "nowhere"
    assert main(["mine", str(folder / "clips.npz"), "--plan", str(plan), "--scratch", str(missing)]) == 2
    assert f"--scratch: the folder {missing} does not exist" in capsys.readouterr().err
