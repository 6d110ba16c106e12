"""Mining plans: whitening, expansion and hub term against loops over rows; what is kept on disk; bad input."""

from __future__ import annotations

import json
import math

import pytest
import torch
from tuning_data import clusters, plan_by_loops, whitened_by_loops

import cpr_kernels as cpr
from cpr_kernels import MiningPlan, Schedule, Stage
from cpr_kernels.tuning import Expansion, Whitener
from cpr_kernels.tuning.steps import Neighbors, less_hubs
from cpr_kernels.tuning.whitening import principal_axes

VIEWS, LABELS = clusters()
IDS = torch.arange(len(LABELS)) // 2
JOINT = Schedule([Stage({"v0": 0.5, "v1": 0.5}, 5)])


def plan_of(power: float = 0.5, expand=None, hub=None, schedule=JOINT, views=VIEWS) -> MiningPlan:
    return MiningPlan(
        {v: principal_axes(x).whitener(power) for v, x in views.items()}, expand, hub, schedule, power=power
    )


def same_but_ties(indices: torch.Tensor, expected: list[list[int]]) -> None:
    """At most one entry in a hundred differs: two float64 scores closer than float32 tells."""
    table = torch.tensor(expected)
    assert indices.shape == table.shape
    assert float((indices != table).double().mean()) <= 0.01


@pytest.mark.parametrize("power", [0.0, 0.25, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("dim", [6, 40], ids=["rows>D", "rows<D"])
def test_whitening_is_its_formula(power, dim):
    table = torch.randn(24, dim, generator=torch.Generator().manual_seed(dim)) * torch.linspace(0.2, 3, dim)
    made = principal_axes(table).whitener(power)(table)
    expected = whitened_by_loops(table, power)
    assert torch.allclose(made.double() @ made.double().T, expected @ expected.T, atol=2e-5)
    assert torch.allclose(made.norm(dim=1), torch.ones(24), atol=1e-5)


@pytest.mark.parametrize("expand", [None, Expansion(5, 3), Expansion(10, 1)])
@pytest.mark.parametrize("hub", [None, 50])
def test_a_plan_mines_what_its_formulas_say(expand, hub):
    plan = plan_of(0.5, expand, hub)
    keys = plan.prepare_keys(VIEWS, IDS)
    indices, scores = plan.mine(VIEWS, keys, IDS)
    white = {v: whitened_by_loops(x, 0.5) for v, x in VIEWS.items()}
    same_but_ties(indices, plan_by_loops(white, IDS, expand, hub, 5))
    assert (scores[:, :-1] >= scores[:, 1:]).all()
    assert not (IDS[indices] == IDS[:, None]).any()


def test_the_hub_term_is_subtracted_and_ties_go_to_the_lower_index():
    near = Neighbors(torch.tensor([[4, 2, 0, -1]]), torch.tensor([[3.0, 2.0, 1.0, -torch.inf]]))
    indices, scores = less_hubs(near, torch.tensor([0.0, 9.0, 2.0, 9.0, 4.0]), 4)
    assert indices.tolist() == [[0, 2, 4, -1]] and scores.tolist() == [[1.0, 1.0, 1.0, -math.inf]]


def test_a_cascade_in_a_plan_is_the_cascade_on_whitened_rows():
    schedule = cpr.parse_schedule("v0:40,v1:20,v0:5")
    plan = plan_of(0.25, schedule=schedule)
    keys = plan.prepare_keys(VIEWS, IDS)
    mined = plan.mine(VIEWS, keys, IDS)
    white = plan.whitened(VIEWS)
    expected = cpr.cascade_topk(white, white, schedule, query_ids=IDS, key_ids=IDS)
    assert torch.equal(mined[0], expected[0]) and torch.equal(mined[1], expected[1])


def test_some_queries_mine_what_they_mine_among_all():
    plan = plan_of(0.5, Expansion(5, 3), 50)
    keys = plan.prepare_keys(VIEWS, IDS)
    whole = plan.mine(VIEWS, keys, IDS)
    few = plan.mine({v: x[30:37] for v, x in VIEWS.items()}, keys, IDS[30:37])
    assert torch.equal(few[0], whole[0][30:37])


def test_a_missing_view_scores_zero_and_a_row_without_views_takes_no_part():
    views = {v: x.clone() for v, x in VIEWS.items()}
    views["v0"][3] = torch.nan
    views["v0"][4] = 0
    views["v0"][5] = views["v1"][5] = torch.nan
    plan = plan_of(0.5, Expansion(5, 3), 50)
    white = plan.whitened(views)
    assert not white["v0"][3:6].any() and white["v1"][3].any()
    mined, scores = plan.mine(views, plan.prepare_keys(views, IDS), IDS)
    assert (mined[5] == -1).all() and (scores[5] == -torch.inf).all()
    assert not (mined == 5).any() and (mined[3] >= 0).all() and scores[:5].isfinite().all()


def test_rows_without_a_view_do_not_move_its_statistics():
    table = VIEWS["v0"]
    odd = torch.cat([table, torch.full((9, table.shape[1]), torch.nan), torch.zeros(4, table.shape[1])])
    first, second = principal_axes(table), principal_axes(odd)
    assert torch.allclose(first.mean, second.mean) and torch.allclose(first.variances, second.variances)


def test_a_plan_is_kept_and_read_back(tmp_path):
    found = cpr.tune_schedule(VIEWS, IDS)
    found.save(tmp_path / "plan.json")
    again = MiningPlan.load(tmp_path / "plan.json")
    assert again == found and str(again) == str(found)
    other = plan_of(0.5)
    other.save(tmp_path / "plan.json")  # replaces both files
    assert MiningPlan.load(tmp_path / "plan.json") == other != found
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan.json", "plan.safetensors"]


def test_plans_are_equal_by_value():
    assert plan_of() == plan_of() and plan_of() != plan_of(0.75) and plan_of() != plan_of(hub=50)
    assert plan_of() != "plan"


@pytest.mark.parametrize("part", ["plan.json", "plan.safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.98])
def test_a_cut_file_is_refused(tmp_path, part, share):
    plan_of(0.5).save(tmp_path / "plan.json")
    body = (tmp_path / part).read_bytes()
    (tmp_path / part).write_bytes(body[: int(share * len(body))])
    with pytest.raises(ValueError, match=r"plan\.(json|safetensors): is cut"):
        MiningPlan.load(tmp_path / "plan.json")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda found: found.update(format="x"), "is not a mining plan"),
        (lambda found: found.update(version=9), "version 9, expected 1"),
        (lambda found: found.pop("hub"), "has no 'hub'"),
        (lambda found: found.update(hub=-3), "hub must be a count >= 1"),
        (lambda found: found.update(schedule=[]), "is cut or damaged"),
        (lambda found: found.update(expand={"neighbors": 0, "power": 1}), "neighbors >= 1"),
        (lambda found: found["views"].pop(), "has no such view"),
    ],
)
def test_a_changed_file_is_refused(tmp_path, change, said):
    path = tmp_path / "plan.json"
    plan_of(0.5).save(path)
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))
    with pytest.raises(ValueError, match=said):
        MiningPlan.load(path)


def test_files_of_two_plans_are_told_apart(tmp_path):
    plan_of(0.5).save(tmp_path / "a.json")
    plan_of(0.75).save(tmp_path / "b.json")
    (tmp_path / "b.safetensors").replace(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="of another plan"):
        MiningPlan.load(tmp_path / "a.json")
    with pytest.raises(ValueError, match=r"b\.safetensors: no such file"):
        MiningPlan.load(tmp_path / "b.json")
    with pytest.raises(ValueError, match=r"end its name in \.json"):
        plan_of().save(tmp_path / "c.safetensors")


def test_rows_that_do_not_fit_a_plan_are_refused():
    plan = plan_of()
    with pytest.raises(ValueError, match=r"plan is of the views \['v0', 'v1'\], got \['v0'\]"):
        plan.prepare_keys({"v0": VIEWS["v0"]})
    with pytest.raises(ValueError, match="D=5, but the plan was made for D=12"):
        plan.prepare_keys({"v0": VIEWS["v0"][:, :5], "v1": VIEWS["v1"]})
    with pytest.raises(ValueError, match="has 3 rows"):
        plan.whitened({"v0": VIEWS["v0"], "v1": VIEWS["v1"][:3]})
    with pytest.raises(ValueError, match=r"ids must be int64 of shape \[160\]"):
        plan.prepare_keys(VIEWS, torch.arange(3))
    with pytest.raises(ValueError, match="whiten has no such view"):
        MiningPlan({"v0": Whitener(torch.zeros(12), None)}, None, None, JOINT)


def test_float16_and_float64_rows_are_whitened_in_float32():
    plan = plan_of()
    for dtype in (torch.float16, torch.float64):
        made = plan.whitened({v: x.to(dtype) for v, x in VIEWS.items()})
        assert all(rows.dtype == torch.float32 for rows in made.values())
        assert torch.allclose(made["v0"], plan.whitened(VIEWS)["v0"], atol=2e-3)
