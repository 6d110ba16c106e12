"""The tuned step of a training loop: what keys keep, resuming, refitting, compiling, ranks."""

from __future__ import annotations

import pytest
import torch
from tuning_data import clusters
from two_ranks import on_two_ranks

import cpr_kernels as cpr
from cpr_kernels import MemoryBank, Miner, MiningPlan, MultiViewQueue, Schedule, Stage
from cpr_kernels.tuning import Expansion, PlanKeys
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


def test_no_graph_is_recorded():
    batch = {view: rows.clone().requires_grad_() for view, rows in some(slice(120, 124)).items()}
    mined = Miner(plan_of(), filled())(batch, IDS[120:124])
    assert not mined.scores.requires_grad and not any(rows.requires_grad for rows in mined.kept.values())


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="queue must be a MultiViewQueue or a MemoryBank, got dict"):
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


def bank_of(rows: int = 120, momentum: float = 0.5) -> MemoryBank:
    bank = MemoryBank({"v0": 12, "v1": 12}, rows, momentum=momentum)
    bank.update(torch.arange(100), some(slice(0, 100)), IDS[:100])  # the last rows were never written
    return bank


@pytest.mark.parametrize(("expand", "hub"), STEPS)
def test_a_bank_is_mined_as_the_plan_does(expand, hub):
    plan, bank = plan_of(expand, hub), bank_of()
    miner, batch = Miner(plan, bank), some(slice(120, 160))
    expected = plan.mine(batch, plan.prepare_keys(bank.views, bank.ids), IDS[120:])
    mined = miner(batch, IDS[120:])
    assert torch.equal(mined.indices, expected[0])
    assert torch.allclose(mined.scores, expected[1], atol=1e-5)
    assert not (mined.indices >= 100).any()


@pytest.mark.parametrize(("expand", "hub"), STEPS)
def test_a_bank_s_rows_keep_what_their_averages_need(expand, hub):
    plan, bank = plan_of(expand, hub), bank_of()
    miner = Miner(plan, bank)
    rows = torch.tensor([3, 117, 40, 3])  # one is new, one comes twice
    before = {name: table.clone() for name, table in miner.store.views.items()}
    batch = {view: table[rows + 20] for view, table in VIEWS.items()}
    miner.update(rows, batch, IDS[rows])
    other = bank_of()
    other.update(rows, batch, IDS[rows])
    assert all(torch.equal(bank.views[view], other.views[view]) for view in VIEWS)
    white = plan.whitened({view: table[rows] for view, table in other.views.items()})
    old_keys = PlanKeys(
        {view: before[f"whitened {view}"] for view in VIEWS},
        {view: before.get(f"expanded {view}", before[f"whitened {view}"]) for view in VIEWS},
        other.ids, before["hub"][:, 0] if hub else None,
    )  # fmt: skip
    expected = plan.expanded(white, old_keys, IDS[rows])
    untouched = torch.ones(120, dtype=torch.bool).index_fill(0, rows, False)
    for view in VIEWS:
        assert torch.allclose(miner.keys.whitened[view][rows], white[view], atol=1e-6)
        assert torch.allclose(miner.keys.views[view][rows], expected[view], atol=1e-6)
    for name, table in miner.store.views.items():
        assert torch.equal(table[untouched], before[name][untouched])
    assert torch.equal(miner.store.ids, bank.ids) and int(bank.ids[117]) == int(IDS[117])


def test_updating_a_bank_by_itself_changes_nothing():
    miner = Miner(plan_of(), bank_of(momentum=0.0))
    before = {name: table.clone() for name, table in miner.store.views.items()}
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    miner.update(order, {view: table[order] for view, table in miner.queue.views.items()}, IDS[order])
    for name, table in miner.store.views.items():
        assert torch.allclose(table[:100], before[name][:100], atol=1e-5), name


def test_a_resumed_bank_continues_bit_for_bit():
    def steps(miner: Miner, first: int, last: int) -> list[torch.Tensor]:
        found = []
        for step in range(first, last):
            rows = (7 * step + torch.arange(10)) % 120
            batch = some(slice(10 * step, 10 * step + 10))
            mined = miner(batch, IDS[rows])
            miner.update(rows, batch, IDS[rows])
            if step == 4:
                miner.refit()
            found += [mined.indices, mined.scores]
        return found

    whole = steps(Miner(plan_of(), bank_of()), 0, 8)
    first = Miner(plan_of(), bank_of())
    steps(first, 0, 3)
    second = Miner(plan_of(), MemoryBank({"v0": 12, "v1": 12}, 120))
    second.load_state_dict(first.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(whole[6:], steps(second, 3, 8), strict=True))


def test_memories_are_written_in_their_own_way():
    batch, rows = some(slice(0, 4)), torch.arange(4)
    with pytest.raises(ValueError, match="update writes to a MemoryBank; a queue is written to with enqueue"):
        Miner(plan_of(), filled()).update(rows, batch)
    miner = Miner(plan_of(), bank_of())
    with pytest.raises(ValueError, match="a MemoryBank is written by row, with update"):
        miner.enqueue(miner(batch))


def test_a_whole_step_compiles():
    """Mining, and writing what keys keep."""
    batch, ids, rows = some(slice(120, 130)), IDS[120:130], torch.arange(10)

    def queue_step(miner: Miner) -> torch.Tensor:
        mined = miner(batch, ids)
        miner.enqueue(mined, ids)
        return mined.indices

    def bank_step(miner: Miner) -> torch.Tensor:
        mined = miner(batch, ids)
        miner.update(rows, batch, ids)
        return mined.indices

    for step, make in ((queue_step, filled), (bank_step, bank_of)):
        plain, compiled = Miner(plan_of(), make()), Miner(plan_of(), make())
        run_compiled = torch.compile(step, fullgraph=True, backend="eager")
        assert torch.equal(run_compiled(compiled), step(plain))
        for name, value in plain.state_dict().items():
            torch.testing.assert_close(compiled.state_dict()[name], value, rtol=0, atol=1e-6, msg=name)


def uneven_ranks(rank: int) -> dict[str, torch.Tensor]:
    """Each rank mines rows of its own, 6 or 3 of them, and all ranks enqueue all rows."""
    torch.set_num_threads(1)
    miner = Miner(plan_of(), filled())
    rows = slice(120, 126) if rank == 0 else slice(126, 129)
    mined = miner(some(rows), IDS[rows])
    miner.enqueue(mined, IDS[rows])
    bank = Miner(plan_of(), bank_of())
    bank.update(torch.arange(120)[rows.start - 120 : rows.stop - 120], some(rows), IDS[rows])
    return {"indices": mined.indices, **miner.state_dict(), "bank": bank.state_dict()}


def test_ranks_keep_the_same_keys(tmp_path):
    first, second = on_two_ranks(uneven_ranks, tmp_path)
    bank = Miner(plan_of(), bank_of())
    bank.update(torch.arange(9), some(slice(120, 129)), IDS[120:129])
    banks = first.pop("bank"), second.pop("bank")
    for name, value in bank.state_dict().items():
        assert torch.equal(banks[0][name], banks[1][name]), name
        assert torch.allclose(banks[0][name], value, atol=1e-6), name
    alone = Miner(plan_of(), filled())
    mined = alone(some(slice(120, 129)), IDS[120:129])
    alone.enqueue(mined, IDS[120:129])
    assert torch.equal(torch.cat([first.pop("indices"), second.pop("indices")]), mined.indices)
    for name, value in alone.state_dict().items():
        assert torch.equal(first[name], second[name]), name
        assert torch.allclose(first[name], value, atol=1e-6), name
