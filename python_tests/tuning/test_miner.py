"""The tuned step of a training loop: what keys keep, resuming, refitting, compiling, ranks."""

from __future__ import annotations

import pytest
import torch
from tuning_data import clusters
from two_ranks import on_two_ranks

import cpr_kernels as cpr
from cpr_kernels import Miner, MiningPlan, MultiViewQueue, Schedule, Stage
from cpr_kernels.tuning import Expansion
from cpr_kernels.tuning.whitening import principal_axes

VIEWS, _ = clusters()
IDS = torch.arange(160) // 2
JOINT = Schedule([Stage({"v0": 0.5, "v1": 0.5}, 5)])
FIVE = Expansion(5, 3)
STEPS = [(None, None), (FIVE, None), (None, 50), (FIVE, 50)]


def plan_of(expand=FIVE, hub=50) -> MiningPlan:
    whiten = {view: principal_axes(rows).whitener(0.5) for view, rows in VIEWS.items()}
    return MiningPlan(whiten, expand, hub, JOINT, power=0.5)


def some(rows: slice) -> dict[str, torch.Tensor]:
    return {view: table[rows] for view, table in VIEWS.items()}


def filled(size: int = 120) -> MultiViewQueue:
    queue = MultiViewQueue({"v0": 12, "v1": 12}, size)
    queue.enqueue(some(slice(0, 120)), IDS[:120])
    return queue


@pytest.mark.parametrize(("expand", "hub"), STEPS)
def test_a_batch_mines_as_the_plan_does_on_the_queue(expand, hub):
    plan, queue = plan_of(expand, hub), filled()
    miner = Miner(plan, queue)
    mined = miner(some(slice(120, 160)), IDS[120:])
    keys = plan.prepare_keys(queue.views, queue.ids)
    expected = plan.mine(some(slice(120, 160)), keys, IDS[120:])
    assert torch.equal(mined.indices, expected[0])
    assert torch.allclose(mined.scores, expected[1], atol=1e-5)


@pytest.mark.parametrize(("expand", "hub"), STEPS)
def test_what_a_key_keeps_enters_and_leaves_with_it(expand, hub):
    plan, queue = plan_of(expand, hub), filled(size=100)
    miner = Miner(plan, queue)
    before = miner.keys
    before = {view: rows.clone() for view, rows in before.views.items()}
    batch = some(slice(120, 137))
    at = int(queue.pointer)
    mined = miner(batch, IDS[120:137])
    miner.enqueue(mined, IDS[120:137])
    slots = (torch.arange(17) + at) % 100
    old = torch.ones(100, dtype=torch.bool).index_fill(0, slots, False)
    white = plan.whitened(batch)
    for view in VIEWS:
        assert torch.equal(queue.views[view][slots], batch[view])
        assert torch.allclose(miner.keys.whitened[view][slots][:, :12], white[view], atol=1e-6)
        assert torch.equal(miner.keys.views[view][old], before[view][old])
        assert torch.equal(miner.keys.views[view][slots], mined.kept.get(f"expanded {view}", white[view]))
    if hub is not None:
        assert torch.equal(miner.keys.hub[slots], mined.kept["hub"][:, 0])
    assert torch.equal(miner.store.ids, queue.ids) and torch.equal(miner.store.pointer, queue.pointer)


def test_mining_works_from_the_first_step():
    miner = Miner(plan_of(), MultiViewQueue({"v0": 12, "v1": 12}, 64))
    mined = miner(some(slice(0, 4)), IDS[:4])
    assert (mined.indices == -1).all()
    miner.enqueue(mined, IDS[:4])
    after = miner(some(slice(4, 8)), IDS[4:8])
    assert ((after.indices >= 0).sum(dim=1) == 4).all() and (after.indices < 4).all()


@pytest.mark.parametrize(("expand", "hub"), STEPS)
def test_a_query_without_views_mines_nothing(expand, hub):
    plan, queue = plan_of(expand, hub), filled()
    batch = {view: rows.clone() for view, rows in some(slice(120, 124)).items()}
    batch["v0"][0], batch["v1"][0], batch["v1"][1] = 0, torch.nan, 0
    mined = Miner(plan, queue)(batch, IDS[120:124])
    expected, scores = plan.mine(batch, plan.prepare_keys(queue.views, queue.ids), IDS[120:124])
    assert torch.equal(mined.indices, expected) and torch.allclose(mined.scores, scores, atol=1e-5)
    assert (mined.indices[0] == -1).all() and (mined.indices[1:] >= 0).all()
    assert all(torch.isfinite(kept).all() for kept in mined.kept.values())


def run(miner: Miner, first: int, steps: int) -> list[torch.Tensor]:
    found = []
    for step in range(first, first + steps):
        rows = slice(10 * step % 150, 10 * step % 150 + 10)
        mined = miner(some(rows), IDS[rows])
        miner.enqueue(mined, IDS[rows])
        if step % 3 == 2:
            miner.refit()
        found += [mined.indices, mined.scores]
    return found


def test_a_resumed_run_continues_bit_for_bit():
    whole = run(Miner(plan_of(), filled()), 0, 8)
    first = Miner(plan_of(), filled())
    run(first, 0, 4)
    state = {name: value.clone() for name, value in first.state_dict().items()}
    second = Miner(plan_of(), MultiViewQueue({"v0": 12, "v1": 12}, 120))
    second.load_state_dict(state)
    rest = run(second, 4, 4)
    assert all(torch.equal(a, b) for a, b in zip(whole[8:], rest, strict=True))


def test_refit_is_a_plan_fitted_to_the_queue():
    queue = filled(size=150)  # 30 slots are empty
    miner = Miner(plan_of(), queue)
    queue.views["v0"][:120, :3] *= 5
    miner.refit()
    whiten = {view: principal_axes(rows[:120]).whitener(0.5) for view, rows in queue.views.items()}
    expected = MiningPlan(whiten, FIVE, 50, JOINT)
    keys = expected.prepare_keys(queue.views, queue.ids)
    assert torch.allclose(miner.keys.hub, keys.hub, atol=1e-5)
    batch = some(slice(120, 160))
    assert torch.equal(miner(batch, IDS[120:]).indices, expected.mine(batch, keys, IDS[120:])[0])


def test_it_compiles_whole():
    miner = Miner(plan_of(), filled())
    batch = some(slice(120, 140))
    compiled = torch.compile(miner, fullgraph=True, backend="eager")
    mined, expected = compiled(batch, IDS[120:140]), miner(batch, IDS[120:140])
    assert torch.equal(mined.indices, expected.indices) and torch.equal(mined.scores, expected.scores)


def test_no_graph_is_recorded():
    batch = {view: rows.clone().requires_grad_() for view, rows in some(slice(120, 124)).items()}
    mined = Miner(plan_of(), filled())(batch, IDS[120:124])
    assert not mined.scores.requires_grad and not any(rows.requires_grad for rows in mined.kept.values())


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="queue must be a MultiViewQueue, got dict"):
        Miner(plan_of(), {})
    with pytest.raises(
        ValueError, match=r"the plan is of views \{'v0': 12, 'v1': 12\}, but the queue holds \{'v0': 9"
    ):
        Miner(plan_of(), MultiViewQueue({"v0": 9, "v1": 12}, 64))
    with pytest.raises(ValueError, match="held by 0 of 0 rows"):
        Miner(plan_of(), MultiViewQueue({"v0": 12, "v1": 12}, 64)).refit()
    by_hand = MiningPlan(plan_of().whiten, None, None, JOINT)
    with pytest.raises(ValueError, match="without a power of whitening"):
        Miner(by_hand, filled()).refit()
    with pytest.raises(ValueError, match="D=5, but the plan was made for D=12"):
        Miner(plan_of(), filled())({"v0": torch.zeros(2, 5), "v1": torch.zeros(2, 12)})


def test_the_queue_may_be_of_lower_precision():
    queue = MultiViewQueue({"v0": 12, "v1": 12}, 120, dtype=torch.bfloat16)
    queue.enqueue(some(slice(0, 120)), IDS[:120])
    miner = Miner(plan_of(), queue)
    assert miner.keys.hub.dtype == torch.float32
    mined = miner(some(slice(120, 130)), IDS[120:130])
    assert (mined.indices >= 0).all()


def test_the_public_name():
    assert cpr.Miner is Miner


def uneven_ranks(rank: int) -> dict[str, torch.Tensor]:
    """Each rank mines rows of its own, 6 or 3 of them, and all ranks enqueue all rows."""
    torch.set_num_threads(1)
    miner = Miner(plan_of(), filled())
    rows = slice(120, 126) if rank == 0 else slice(126, 129)
    mined = miner(some(rows), IDS[rows])
    miner.enqueue(mined, IDS[rows])
    return {"indices": mined.indices, **miner.state_dict()}


def test_ranks_keep_the_same_keys(tmp_path):
    first, second = on_two_ranks(uneven_ranks, tmp_path)
    alone = Miner(plan_of(), filled())
    mined = alone(some(slice(120, 129)), IDS[120:129])
    alone.enqueue(mined, IDS[120:129])
    assert torch.equal(torch.cat([first.pop("indices"), second.pop("indices")]), mined.indices)
    for name, value in alone.state_dict().items():
        assert torch.equal(first[name], second[name]), name
        assert torch.allclose(first[name], value, atol=1e-6), name
