"""Choosing without labels: agreement against loops over sets, planted cases, determinism, what cannot be decided."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from places import SHARED_DATA
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from tuning_data import allowed, clusters, plan_by_loops, ranked, whitened_by_loops

import cpr_kernels as cpr
from cpr_kernels.metrics import class_mining_recall, median_recall, positive_mining_recall
from cpr_kernels.tuning import Expansion
from cpr_kernels.tuning.agreement import Votes, copies, is_mutual, votes_of
from cpr_kernels.tuning.candidates import Settings, without_views
from cpr_kernels.tuning.checks import check_varied, check_views
from cpr_kernels.tuning.steps import joint_schedule
from cpr_kernels.tuning.trial import draw_sample
from cpr_kernels.tuning.whitening import TESTED_ROWS, present, principal_axes

POWERS = (0.0, 0.25, 0.5, 0.75, 1.0)
ALONE = cpr.coclr_schedule("a", 5)


@pytest.fixture(scope="module")
def three():
    views, labels = clusters(rows=90, views=3)
    return views, torch.arange(90) // 2, labels


@pytest.fixture(scope="module")
def plan(three):
    return cpr.tune_schedule(three[0], three[1])


def agreement_by_loops(views, ids, power, expand, hub, topk=5, copied=()):
    """The definition: sets of neighbours, one pair at a time."""
    white = {p: {v: whitened_by_loops(x, p) for v, x in views.items()} for p in POWERS}
    may, size = allowed(ids, ids), max(10, len(ids) // 50)
    of_power = []
    for q in POWERS:
        shares = []
        for u in [view for view in views if view not in copied[1:]]:  # copies vote once
            rest = {v: rows for v, rows in white[power].items() if v != u and not {u, v} <= set(copied)}
            mined = plan_by_loops(rest, ids, expand, hub, topk)
            near = [set(some[:size]) for some in ranked(white[q][u] @ white[q][u].T, may)]
            pairs = [(i, j) for i, some in enumerate(mined) for j in some]
            shares.append(sum(j in near[i] and i in near[j] for i, j in pairs) / len(pairs))
        of_power.append(sum(shares) / len(shares))
    return max(of_power)


@pytest.mark.parametrize(
    ("power", "expand", "hub"), [(0.0, None, None), (0.5, Expansion(5, 3), 50), (1.0, Expansion(10, 3), 50)]
)
def test_agreement_is_its_definition(three, plan, power, expand, hub):
    views, ids, _ = three
    [tried] = [
        c for c in plan.candidates
        if (c.settings.power, c.settings.expand, c.settings.hub) == (power, expand, hub)
        and c.settings.schedule == joint_schedule(tuple(views), 5)
    ]  # fmt: skip
    assert tried.agreement == pytest.approx(agreement_by_loops(views, ids, power, expand, hub), abs=0.01)


def test_every_candidate_is_listed_best_first_and_one_is_chosen(plan):
    agreements = [tried.agreement for tried in plan.candidates]
    assert len(agreements) == 30 + 3 + 2 and agreements == sorted(agreements, reverse=True)
    [chosen] = [tried for tried in plan.candidates if tried.chosen]
    assert (chosen.settings.expand, chosen.settings.hub, chosen.settings.schedule) == (
        plan.expand, plan.hub, plan.schedule,
    )  # fmt: skip
    assert chosen.behind < 1.645 and not plan.doubt and 0 <= plan.confidence <= 1
    text = str(plan).splitlines()
    assert len(text) == 2 + 1 + 35 and sum(line.startswith("*") for line in text) == 1


def test_the_same_seed_gives_the_same_plan(three, plan):
    views, ids, _ = three
    torch.set_num_threads(2)
    try:
        again = cpr.tune_schedule(views, ids)
    finally:
        torch.set_num_threads(1)
    assert again.to_dict() == plan.to_dict()
    state = torch.get_rng_state()
    other = cpr.tune_schedule(views, ids, sample=70, seed=3)
    assert other.to_dict() != plan.to_dict()
    assert torch.equal(state, torch.get_rng_state())


def test_estimate_of_a_plan_is_the_agreement_of_its_candidate(three, plan):
    views, ids, _ = three
    [chosen] = [tried for tried in plan.candidates if tried.chosen]
    assert cpr.estimate_agreement(views, plan, ids) == pytest.approx(chosen.agreement, abs=0.01)


def test_estimate_of_a_schedule_mines_the_rows_as_they_are(three):
    views, ids, _ = three
    alone = cpr.coclr_schedule("v0", 5)
    mined, _ = cpr.cascade_topk(views, views, alone, query_ids=ids, key_ids=ids)
    may = allowed(ids, ids)
    of_power = []
    for q in POWERS:
        shares = []
        for u in ("v1", "v2"):  # v0 cannot judge what it mines
            white = whitened_by_loops(views[u], q)
            near = [set(some[:10]) for some in ranked(white @ white.T, may)]
            shares.append(
                np.mean(
                    [j in near[i] and i in near[j] for i, some in enumerate(mined.tolist()) for j in some]
                )
            )
        of_power.append(np.mean(shares))
    assert cpr.estimate_agreement(views, alone, ids) == pytest.approx(max(of_power), abs=0.004)


def test_better_views_agree_more():
    scores = []
    for noise in (2.0, 1.0, 0.4):
        views, _ = clusters(noise=noise)
        scores.append(cpr.estimate_agreement(views, cpr.oracle_schedule(("v0", "v1"))))
    assert scores == sorted(scores) and scores[-1] > 2 * scores[0]


def test_a_nuisance_axis_is_whitened_away():
    views, labels = clusters(rows=400, nuisance=6.0, noise=0.5)
    plan = cpr.tune_schedule(views)
    [chosen] = [tried for tried in plan.candidates if tried.chosen]
    assert chosen.settings.power >= 0.5
    mined, _ = plan.mine(views, plan.prepare_keys(views), torch.arange(400))
    ids = torch.arange(400)
    plain, _ = cpr.cascade_topk(views, views, cpr.oracle_schedule(list(views)), query_ids=ids, key_ids=ids)
    assert positive_mining_recall(mined, labels, labels) > positive_mining_recall(plain, labels, labels) + 0.2


def test_copies_and_unrelated_views_cannot_decide(three):
    views, ids, _ = three
    g = torch.Generator().manual_seed(0)
    twins = {"a": views["v0"], "b": 3 * views["v0"] @ torch.linalg.qr(torch.randn(12, 12, generator=g))[0]}
    plan = cpr.tune_schedule(twins, ids)
    assert "copies" in plan.doubt and "cannot tell" in str(plan)
    apart = {"a": torch.randn(300, 8, generator=g), "b": torch.randn(300, 8, generator=g)}
    plan_apart = cpr.tune_schedule(apart)
    assert "no more than on random pairs" in plan_apart.doubt and plan_apart.candidates
    for found in (plan, plan_apart):
        assert found.expand is None and found.hub is None and found.schedule == joint_schedule(("a", "b"), 5)
        assert all(white.matrix is None for white in found.whiten.values())
        assert not any(tried.chosen for tried in found.candidates)
    with pytest.raises(ValueError, match="no view is left to judge"):
        cpr.estimate_agreement(twins, cpr.oracle_schedule(["a", "b"]), ids)


def test_a_copy_of_a_view_does_not_vouch_for_it(three):
    views, ids, _ = three
    near = {v: torch.tensor([[1, 2], [0, 2], [0, 3]]) for v in "ab"} | {
        "c": torch.tensor([[2, -1], [-1, -1], [1, -1]])
    }
    assert copies(near) == [("a", "b"), ("c",)]
    twice = {"v0": views["v0"], "v1": views["v1"], "copy": 2 * views["v0"]}
    [plain] = [
        c
        for c in cpr.tune_schedule(twice, ids).candidates
        if c.settings == Settings(0.0, None, None, joint_schedule(tuple(twice), 5))
    ]
    expected = agreement_by_loops(twice, ids, 0.0, None, None, copied=("v0", "copy"))
    assert plain.agreement == pytest.approx(expected, abs=0.01)
    assert abs(agreement_by_loops(twice, ids, 0.0, None, None) - expected) > 0.03  # with the copy left in
    with_copy = {**views, "v3": views["v0"] * 2}
    alone = cpr.coclr_schedule("v0", 5)
    assert cpr.estimate_agreement(with_copy, alone, ids) == cpr.estimate_agreement(views, alone, ids)


def test_missing_views_neither_judge_nor_count(three):
    views, ids, _ = three
    half = {**views, "v2": views["v2"].clone()}
    half["v2"][::2] = torch.nan
    plan = cpr.tune_schedule(half, ids)
    assert not plan.doubt and plan.candidates[0].agreement > 0.05
    mined = torch.tensor([[1, 2], [0, -1], [0, 1]])
    near = [torch.tensor([[1], [0], [-1]])]
    votes = votes_of(mined, near, torch.tensor([True, True, False]))
    assert votes.agreed.tolist() == [[1, 1, 0]] and votes.pairs.tolist() == [1, 1, 0]


def test_mutual_pairs():
    near = torch.tensor([[1, 2], [0, 3], [3, -1], [-1, -1]])
    mined = torch.tensor([[1, 2], [0, -1], [0, 3], [-1, 0]])
    assert is_mutual(mined, near).tolist() == [[True, False], [True, False], [False, False], [False, False]]


def test_leaving_views_out_of_a_schedule():
    cascade = cpr.parse_schedule("a:40,b:20,a+b:10,2*a+c:5")
    assert str(without_views(cascade, ["b"])) == "a:40,a:10,2*a+c:5"
    assert str(without_views(cascade, ["a"])) == "b:20,b:10,c:5"
    assert without_views(cascade, ["a", "c"]) is None  # the last stage decides


def test_standard_errors_are_those_of_resamples():
    g = torch.Generator().manual_seed(3)
    pairs = torch.randint(3, 6, (2, 80), generator=g).float()
    pairs[0, :20] = 0  # rows that lack a view
    rate = torch.tensor([[0.2, 0.5, 0.3], [0.4, 0.6, 0.1]])[:, :, None]
    votes = Votes((torch.rand(2, 3, 80, generator=g) * pairs[:, None] * 2 * rate).floor(), pairs)
    influence, plain = votes.influence().double(), votes.agreement()
    for query in (0, 30, 79):
        weights = torch.ones(80, 1)
        weights[query] += 0.01
        assert float(votes.agreement(weights) - plain) / 0.01 == pytest.approx(
            float(influence[query]), rel=0.05
        )
    drawn = torch.randint(80, (4000, 80), generator=g)
    weights = torch.zeros(4000, 80).scatter_add_(1, drawn, torch.ones(4000, 80)).T
    assert float(influence.norm()) == pytest.approx(float(votes.agreement(weights).std()), rel=0.1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda v, i: ({"v0": v["v0"]}, i), "holds one view, 'v0'"),
        (lambda v, i: ({}, i), "views must be"),
        (lambda v, i: ({**v, "v1": torch.ones(90, 3)}, i), r"views\['v1'\] is constant"),
        (lambda v, i: ({**v, "v1": torch.zeros(90, 3)}, i), "held by 0 of 90 rows"),
        (lambda v, i: ({n: x[:9] for n, x in v.items()}, i[:9]), "at least 10 are needed for topk=5"),
        (lambda v, i: (v, torch.zeros(90, dtype=torch.int64)), "ids name 1 source over 90 rows"),
        (lambda v, i: (v, i.int()), r"ids must be int64 of shape \[90\]"),
        (
            lambda v, i: ({**v, "v1": v["v1"].index_fill(1, torch.tensor([2]), torch.nan)}, i),
            "row 0 of .*'v1'.* holds NaN",
        ),
        (
            lambda v, i: ({**v, "v1": v["v1"].index_fill(1, torch.tensor([2]), torch.inf)}, i),
            "NaN or infinity",
        ),
        (lambda v, i: ({**v, "v1": v["v1"][:7]}, i), "has 7 rows"),
        (lambda v, i: ({**v, "v1": v["v1"].long()}, i), "must hold floats"),
        (lambda v, i: ({**v, "v1": v["v1"].numpy()}, i), "must be a torch tensor, got ndarray"),
    ],
)
def test_bad_input_is_named(three, change, said):
    views, ids, _ = three
    changed, of = change(views, ids)
    with pytest.raises(ValueError, match=rf"^tune_schedule: .*{said}"):
        cpr.tune_schedule(changed, of)
    if changed:
        with pytest.raises(ValueError, match=rf"^estimate_agreement: .*{said}"):
            cpr.estimate_agreement(changed, cpr.coclr_schedule("v0", 5), of)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), rows=st.integers(10, 60), count=st.integers(2, 4), topk=st.integers(1, 5))
def test_any_table_is_tuned_or_refused_in_words(seed, rows, count, topk):
    g = torch.Generator().manual_seed(seed)
    views = {}
    for v in range(count):
        table = torch.randn(rows, 1 + seed % 5 + v, generator=g) * 10.0 ** (seed % 7 - 3)
        table = table.round() if seed % 3 == 0 else table
        table[torch.rand(rows, generator=g) < 0.2 * (seed % 2)] = torch.nan
        views[f"v{v}"] = table
    ids = torch.randint(-1, rows, (rows,), generator=g)
    try:
        found = cpr.tune_schedule(views, ids, topk=topk, sample=max(2 * topk, 8 + seed % 50), seed=seed)
    except ValueError as error:
        assert str(error).startswith("tune_schedule: ")
        return
    json.dumps(found.to_dict(), allow_nan=False)
    mined, scores = found.mine(views, found.prepare_keys(views, ids), ids)
    may = allowed(ids, ids)
    assert mined.shape == (rows, topk) and ((mined >= 0) == (scores > -torch.inf)).all()
    assert may.gather(1, mined.clamp(min=0))[mined >= 0].all()
    assert all(0 <= tried.agreement <= 1 for tried in found.candidates)


def test_few_rows_are_no_copies_for_being_few():
    views, _ = clusters(rows=12, noise=3.0)
    assert "copies" not in cpr.tune_schedule(views, topk=2).doubt


@pytest.mark.parametrize("wrong", [{"topk": 0}, {"sample": 4}, {"seed": -1}, {"topk": 2.5}])
def test_bad_numbers_are_named(three, wrong):
    with pytest.raises(ValueError, match=rf"tune_schedule: {next(iter(wrong))} must be an integer >="):
        cpr.tune_schedule(three[0], three[1], **wrong)


def test_ucf101_without_a_label():
    path = SHARED_DATA / "features" / "ucf101_test_twostream.npz"
    if not path.is_file():
        pytest.skip("shared/data/features, with the real feature tables, is not beside the checkout")
    arrays = np.load(path)
    labels = torch.from_numpy(arrays["label"].astype(np.int64))
    ids = labels * 1000 + torch.from_numpy(arrays["group"].astype(np.int64))
    views = {name: torch.from_numpy(arrays[name]) for name in ("flow", "rgb")}
    plan = cpr.tune_schedule(views, ids)
    mined, _ = plan.mine(views, plan.prepare_keys(views, ids), ids)
    assert positive_mining_recall(mined, labels, labels).item() == pytest.approx(0.860, abs=6e-4)
    assert median_recall(class_mining_recall(mined, labels, labels)) == pytest.approx(0.818, abs=6e-4)


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that is made."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        found = [one.numel() for one in tree_leaves(made) if isinstance(one, torch.Tensor)]
        self.numbers = max(self.numbers, *found, 0)
        return made


def test_a_table_is_read_in_parts():
    rows = 3 * TESTED_ROWS
    views = {
        name: torch.randn(rows, 4, generator=torch.Generator().manual_seed(i))
        for i, name in enumerate(("a", "b"))
    }
    views["a"][5] = torch.nan  # a missing row: what is held would be copied
    with Largest() as largest:
        check_views("t", views)
        check_varied("t", views)
        draw_sample(views, torch.arange(rows), 100, 0)
    assert largest.numbers <= 4 * TESTED_ROWS
    held = views["a"][present(views["a"])].double()
    assert torch.allclose(principal_axes(views["a"]).mean, held.mean(0), rtol=0, atol=1e-12)
