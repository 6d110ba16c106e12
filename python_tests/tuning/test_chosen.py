"""Which candidate is chosen: not by a difference that chance explains, nor a view that only its likes find right."""

from __future__ import annotations

import pytest
import torch
from tuning_data import clusters

import cpr_kernels as cpr
from cpr_kernels.metrics import positive_mining_recall
from cpr_kernels.tuning.agreement import Votes
from cpr_kernels.tuning.candidates import Settings
from cpr_kernels.tuning.steps import joint_schedule
from cpr_kernels.tuning.tune import choose, is_vouched

ALONE = cpr.coclr_schedule("a", 5)


def test_the_least_whitening_among_equals_is_chosen():
    joint = joint_schedule(("a", "b"), 5)
    g = torch.Generator().manual_seed(0)
    base = torch.randint(0, 6, (1, 1, 500), generator=g).float()
    pairs = torch.full((1, 500), 5.0)
    noise = torch.randint(-1, 2, (1, 1, 500), generator=g).float()

    def pick(lift: float, **tried) -> int:
        of = [Settings(0.0, None, None, joint), Settings(0.5, tried.get("expand"), None, joint)]
        ballots = [Votes(base, pairs), Votes(base + noise + lift, pairs)]
        return choose(ballots, of, 0, thinned=False).chosen

    assert pick(0.02 - float(noise.mean())) == 0  # better, but not beyond chance
    assert pick(0.5 - float(noise.mean())) == 1


def test_views_that_err_alike_do_not_vouch_for_one_of_them():
    """The second is the first and some noise: each finds the other's pairs right, and the third knows better."""
    views, labels = clusters(rows=600, classes=20, views=3, noise=1.2)
    g = torch.Generator().manual_seed(1)
    views["v1"] = views["v0"] + 0.5 * torch.randn(views["v0"].shape, generator=g)
    plan = cpr.tune_schedule(views)
    assert plan.candidates[0].settings.schedule in {cpr.coclr_schedule(view, 5) for view in ("v0", "v1")}
    assert set(plan.schedule.views) == set(views)
    mined, _ = plan.mine(views, plan.prepare_keys(views), torch.arange(600))
    [alone, _] = cpr.cascade_topk(
        views,
        views,
        plan.candidates[0].settings.schedule,
        query_ids=torch.arange(600),
        key_ids=torch.arange(600),
    )
    pmr = [float(positive_mining_recall(found, labels, labels)) for found in (mined, alone)]
    assert pmr[0] > pmr[1] + 0.2


def test_a_copy_of_a_view_adds_no_vote():
    views, _ = clusters(rows=300, views=3)
    views["v1"] = views["v1"] + 1.5 * torch.randn(
        views["v1"].shape, generator=torch.Generator().manual_seed(0)
    )
    of_three = cpr.oracle_schedule(tuple(views))
    alone = cpr.estimate_agreement(views, of_three)
    assert cpr.estimate_agreement({**views, "copy": 2 * views["v1"]}, of_three) == pytest.approx(
        alone, abs=1e-3
    )


def test_a_noisy_twin_and_a_view_that_is_left_out_do_not_vouch_for_a_single_view():
    """The twin finds right what its twin errs in, twice as a copy; the other view is itself what the joint lacks."""
    views, labels = clusters(rows=600, classes=20, views=2, noise=1.2)
    g = torch.Generator().manual_seed(1)
    views["v2"] = views["v0"] + 0.5 * torch.randn(views["v0"].shape, generator=g)
    views["v3"] = 2 * views["v2"]
    plan, ids = cpr.tune_schedule(views), torch.arange(600)
    assert set(plan.schedule.views) == set(views)
    mined, _ = plan.mine(views, plan.prepare_keys(views), ids)
    alone = {"v0": views["v0"]}
    [single, _] = cpr.cascade_topk(alone, alone, cpr.coclr_schedule("v0", 5), query_ids=ids, key_ids=ids)
    pmr = [float(positive_mining_recall(found, labels, labels)) for found in (mined, single)]
    assert pmr[0] > pmr[1] + 0.1


def test_views_of_noise_do_not_vouch_for_a_single_view():
    views, _ = clusters(rows=600, classes=12, views=2, noise=1.2)
    g = torch.Generator().manual_seed(1)
    views |= {f"noise{n}": torch.randn(600, 12, generator=g) for n in range(2)}
    assert set(cpr.tune_schedule(views).schedule.views) == set(views)


def test_a_single_view_is_chosen_where_three_others_vouch_for_it():
    g = torch.Generator().manual_seed(0)
    right = torch.rand(4, 400, generator=g)
    pairs = torch.full((4, 400), 5.0)

    def votes(*shares: float) -> Votes:
        agreed = torch.stack([5.0 * (row < share) for row, share in zip(right, shares)])
        return Votes(agreed[:, None], pairs)

    joint = votes(0.3, 0.3, 0.3, 0.3)
    assert is_vouched(votes(0.3, 0.5, 0.5, 0.5), joint)
    assert not is_vouched(votes(0.3, 0.3, 0.9, 0.9), joint)  # of each other, one view's word
    assert not is_vouched(votes(0.1, 0.5, 0.9, 0.9), joint)  # against another's
    of = [Settings(0.0, None, None, schedule) for schedule in (joint_schedule(("a", "b"), 5), ALONE)]
    assert choose([joint, votes(0.3, 0.5, 0.5, 0.5)], of, 0, thinned=False).chosen == 1
    assert choose([joint, votes(0.3, 0.3, 0.9, 0.9)], of, 0, thinned=False).chosen == 0
