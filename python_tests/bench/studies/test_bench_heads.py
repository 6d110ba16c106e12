"""`bench heads`: splits, one seed by the trainer of `cpr adapt`, and paired differences with their intervals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.plans.tuning import Table, read
from bench.studies.heads import (
    FACTORS,
    METHODS,
    QUEUE,
    changed,
    collected,
    main,
    publish,
    queue_of,
    run_seed,
    split,
)
from bench.studies.heads_plot import pmr_of, recall_of
from bench.studies.heads_tables import ALL, Resampled, changes_table, claims_table
from cpr_kernels.train.adapt import AdaptConfig
from cpr_kernels.train.adapt.positives import positives_of

TINY = AdaptConfig(head="projection", hidden=8, embedding=8, warm_up=1, epochs=1, batch=64, lr=1e-3)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Table:
    draw = np.random.default_rng(0)
    label, group = np.repeat(np.arange(10), 28), np.tile(np.arange(7), 40)
    code = draw.standard_normal((10, 12))
    views = {
        view: (code[label] + draw.standard_normal((280, 12))).astype("float32") for view in ("rgb", "flow")
    }
    path = tmp_path_factory.mktemp("tables") / "small.npz"
    np.savez(path, **views, label=label, group=group)
    return read(path)


def test_groups_are_split_whole(table: Table) -> None:
    train, test = split(table, seed=1)
    assert len(train) == 160 and len(test) == 120  # 4 and 3 of 7 groups
    assert not set((train.sources % 100_000).tolist()) & set((test.sources % 100_000).tolist())
    assert [queue_of(rows) for rows in (2134, 914, 160)] == [1024, 512, 64]


def test_a_seed_branches_from_one_warm_up(table: Table) -> None:
    found = run_seed(table, TINY, {name: METHODS[name] for name in ("infonce", "joint")}, {})
    assert list(found["methods"]) == ["raw", "infonce", "joint"] and found["queue"] == 64
    assert found["methods"]["infonce"]["pmr"] is None and 0.1 < found["methods"]["joint"]["pmr"] <= 1
    for of in found["methods"].values():
        assert sum(of["hits"][ALL]) / sum(found["counts"]) == pytest.approx(of["recall"][ALL][1])
    kept = run_seed(table, TINY, {"infonce": METHODS["infonce"]}, found["methods"])
    assert kept["methods"]["joint"] is found["methods"]["joint"]


def document(gain: int) -> dict[str, Any]:
    """Two seeds of four sources each, six of them in all; methods have `gain` hits more a source than the one before."""
    seeds = {}
    for seed, names in (("0", [1, 2, 3, 4]), ("1", [3, 4, 5, 6])):
        methods = {}
        for number, method in enumerate(["raw", *METHODS]):
            right = [20 + gain * number] * 4
            share = right[0] / 100
            methods[method] = {
                "recall": {view: {"1": share, "5": share} for view in ("rgb", "flow", ALL)},
                "hits": dict.fromkeys(("rgb", "flow", ALL), right),
                "pmr": None if method in ("raw", "infonce", "ubernce") else share,
                "plan": None,
            }
        body = {"rows": [400, 400], "queue": 64, "sources": names, "counts": [100] * 4, "methods": methods}
        seeds[seed] = body
    made = {"settings": {"head": "residual"}, "cpu": "x", "versions": {"torch": "2"}, "commits": ["abc"]}
    return {**made, "tables": {"small": seeds}}


def test_paired_differences() -> None:
    seeds = document(2)["tables"]["small"]
    resampled = Resampled(seeds)
    gap = resampled.difference("cpr-7", "coclr", ALL)  # three methods later
    assert (gap.mean, gap.low, gap.high, gap.above) == (pytest.approx(0.06),) * 3 + (1.0,)
    assert str(gap) == "+6.0 [+6.0, +6.0]"
    worse = resampled.difference("coclr", "cpr-7", ALL)
    assert worse.above == 0 and worse.high == pytest.approx(-0.06)
    assert resampled.correlation(ALL).mean == pytest.approx(1.0)


def test_sources_and_seeds_are_resampled_together() -> None:
    seeds = document(0)["tables"]["small"]
    seeds["0"]["methods"]["joint"]["hits"][ALL] = [40, 20, 20, 20]  # one source of one seed gains 20 of 100
    gap = Resampled(seeds).difference("joint", "coclr", ALL)
    assert gap.mean == pytest.approx(20 / 800)
    assert gap.low == 0 and gap.high > 0.06  # half of the resamples lack the source or the seed
    assert 0.4 < gap.above < 0.6


def test_pages(tmp_path: Path) -> None:
    publish(document(1), tmp_path, "heads")
    page = (tmp_path / "heads.md").read_text()
    assert "| tuned " in page and "**+1.0 [+1.0, +1.0]**" in page
    assert "hits" not in (tmp_path / "heads.json").read_text()
    drawn = (tmp_path / "heads.svg").read_text()
    assert "cpr-7, r 0.8" in drawn and "PMR of what is mined" in drawn
    assert claims_table({"small": document(0)["tables"]["small"]}).count("**") == 0
    assert collected(tmp_path)["tables"] == {}
    (tmp_path / "heads.svg").unlink()
    assert main([str(tmp_path / "heads.json")]) == 0 and (tmp_path / "heads.svg").read_text() == drawn
    with pytest.raises(ValueError, match="--out: give the folder"):
        main([str(tmp_path)])


def test_a_changed_setting_is_compared_with_the_same_method_and_with_infonce_so_changed(
    tmp_path: Path,
) -> None:
    made = document(2)
    names = {
        "infonce": "infonce",
        "coclr": "cpr-7",
        "cpr-3": "cpr-7, warm",
        "cpr-5": "infonce, warm",
        "cpr-7": "cpr-7, top 1",
    }
    for body in made["tables"]["small"].values():
        body["methods"] = {
            "raw": body["methods"]["raw"],
            **{new: body["methods"][old] for old, new in names.items()},
        }
    publish(made, tmp_path, "factors")
    page, (warm, infonce, top) = (
        (tmp_path / "factors.md").read_text(),
        changes_table(made["tables"]).splitlines()[2:],
    )
    assert "## Changes" in page and "Claims" not in page and not (tmp_path / "factors.svg").exists()
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in (warm, infonce, top)]
    assert cells[0] == ["cpr-7", "warm", "**+2.0 [+2.0, +2.0]**", "-2.0 [-2.0, -2.0]"]
    assert cells[1] == ["infonce", "warm", "**+6.0 [+6.0, +6.0]**", ""]
    assert cells[2] == ["cpr-7", "top 1", "**+6.0 [+6.0, +6.0]**", "+8.0 [+8.0, +8.0]"]


def test_every_factor_is_a_setting_of_the_trainer() -> None:
    made = {name: changed(TINY, changes) for name, changes in FACTORS.items()}
    for config in made.values():
        config.check()
        positives_of(config, ("rgb", "flow"), QUEUE, config.topk)  # raises for what cannot be
    assert made["cpr-7, rate x 3"].lr == pytest.approx(3 * TINY.lr)
    assert len(set(made.values())) == len(FACTORS)


def test_the_plot_s_figures_are_the_table_s() -> None:
    seeds = document(2)["tables"]["small"]
    first = next(iter(seeds.values()))
    first["rows"], first["counts"] = [400, 200], [50] * 4  # seeds differ in their numbers of rows
    for found in first["methods"].values():
        found["recall"][ALL]["1"] *= 2
    resampled = Resampled(seeds)
    for method in ("joint", "coclr"):
        assert pmr_of(seeds, method) == pytest.approx(float(resampled.pmr(method)[0]))
        assert recall_of(seeds, method) == pytest.approx(float(resampled.recalls(method, ALL)[0]))
