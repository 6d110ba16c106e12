"""Statistics of the logits: by a dumb sort, on every backend and every road to the loss, without changing the loss."""

from __future__ import annotations

import math

import pytest
import torch
from cases import DRAWN_CASES, LOSS_CASES, TIED_CASES, LossCase, name_of
from cuda_tools import emulated
from torch import Tensor

from cpr_kernels import MILNCELoss, mil_nce
from cpr_kernels.dispatch.calls import LossCall
from cpr_kernels.losses import LogitStats, native, reference
from cpr_kernels.losses.autograd import run_directly

DRAWN_TIES = [LossCase("ties, drawn", 19, 60, 3, ids=7, negatives=80, integers=True)]
TIED = next(case for case in TIED_CASES if case.name == "ties, positives by id")


def oracle(call: LossCall) -> list[list[int]]:
    """Python lists and `sorted`, one query at a time; ties by place: the own pair, then by index."""
    found = []
    for b in range(call.query.shape[0]):
        columns = []  # (score, place, is it a positive?)
        listed = call.positives[b].tolist()
        for j in range(call.keys.shape[0]):
            sibling = False
            if call.key_ids is not None:
                sibling = call.query_ids is not None and bool(call.key_ids[j] == call.query_ids[b])
                if call.key_ids[j] < 0 or (sibling and call.siblings == 2):
                    continue
            drawn = 1 if call.negatives is None else call.negatives[b].tolist().count(j)
            score = math.fsum((call.query[b].double() * call.keys[j].double()).tolist())
            columns += [(score, j, j in listed or (sibling and call.siblings == 1))] * (
                1 if j in listed else drawn
            )
        own = math.fsum((call.query[b].double() * call.positive[b].double()).tolist())
        others = any(positive for _, _, positive in columns)
        columns.append((own, -1, call.use_own is None or bool(call.use_own[b]) or not others))
        best = sorted(columns, key=lambda column: (-column[0], column[1]))
        found.append(
            [sum(score > own for score, *_ in columns)] + [sum(c[2] for c in best[:k]) for k in (1, 5)]
        )
    return found


@pytest.mark.parametrize("case", TIED_CASES + DRAWN_TIES, ids=name_of)
def test_native_and_reference_rank_as_a_sort(case: LossCase, isa: str) -> None:
    call = case.call()
    expected = torch.tensor(oracle(call))
    assert torch.equal(native.sweep(call, False, True).stats, expected)
    assert torch.equal(reference.sweep(call, False, True).stats, expected)


@pytest.mark.parametrize("case", LOSS_CASES + DRAWN_CASES, ids=name_of)
def test_statistics_leave_every_bit_of_the_rest(case: LossCase, isa: str) -> None:
    call = case.call()
    plain, ranked = native.sweep(call, True), native.sweep(call, True, True)
    assert plain.stats.shape == (0, 3)
    assert all(torch.equal(a, b) for a, b in zip(plain[:-1], ranked[:-1]))
    assert torch.equal(ranked.stats, reference.sweep(case.call(dtype=torch.float64), False, True).stats)


@pytest.mark.parametrize(
    "case", [*TIED_CASES, *(c for c in LOSS_CASES if c.queries * c.keys < 4000)], ids=name_of
)
def test_cuda_kernels_rank_as_the_reference(case: LossCase) -> None:
    call = case.call()
    plain, ranked = (native.sweep_on_stream(call, True, emulated(), 0, wanted) for wanted in (False, True))
    assert all(torch.equal(a, b) for a, b in zip(plain[:-1], ranked[:-1]))
    assert torch.equal(ranked.stats, reference.sweep(call, False, True).stats)


@pytest.mark.parametrize("late", [[17], [17, 24], [39]], ids=str)
def test_of_equal_scores_the_first_keys_stay_among_the_best(late: list[int]) -> None:
    """Higher scores push out the last of the best five, where five of one score had filled a lane's list."""
    query, keys = torch.zeros(1, 8), torch.zeros(40, 8)
    query[0, 0], keys[[0, 1, 8, 9, 16], 0], keys[late, 0] = 1.0, 5.0, 6.0
    for listed in (0, 1, 8, 9, 16):
        call = LossCall(query, torch.zeros(1, 8), keys, torch.tensor([[listed]]), 1.0, None, None, None, 1)
        expected = torch.tensor(oracle(call))
        assert torch.equal(native.sweep(call, False, True).stats, expected)
        assert torch.equal(native.sweep_on_stream(call, True, emulated(), 0, True).stats, expected)


def test_threads_do_not_change_them() -> None:
    call = LossCase("", 130, 5000, 8, positives=6, ids=40, integers=True).call()
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(native.sweep(call, False, True).stats)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


def test_accuracies_are_those_of_topk() -> None:
    call = LossCase("", 64, 300, 16, positives=3).call()
    own = (call.query * call.positive).sum(dim=1, keepdim=True)
    best = torch.cat([own, call.query @ call.keys.T], dim=1).topk(5).indices  # [B, 5]
    positive = torch.cat([torch.zeros(64, 1, dtype=torch.int64), call.positives + 1], dim=1)
    hit = (best[:, :, None] == positive[:, None, :]).any(dim=2)
    _, stats = mil_nce(*call[:4], return_stats=True)
    assert isinstance(stats, LogitStats)
    assert torch.equal(stats.own_rank < 5, (best == 0).any(dim=1))
    assert torch.equal(stats.own_rank == 0, best[:, 0] == 0)
    assert torch.equal(stats.positives_in_top1, hit[:, 0].long())
    assert torch.equal(stats.positives_in_top5, hit.sum(dim=1))


def test_a_loss_that_is_nan_has_none() -> None:
    call = TIED.call()
    call.keys[3, 0] = float("nan")
    call.positive[1, 0] = float("inf")
    call.query[1, 0] = 1.0
    for sweep in (native.sweep, reference.sweep):
        swept = sweep(call, False, True)
        assert torch.equal(swept.loss.isnan()[:, None].expand(-1, 3), swept.stats == -1)
        assert swept.stats[1].tolist() == [-1, -1, -1]
    call = LossCase("", 4, 30, 4).call()  # NaN in an empty slot alone
    call.keys[3] = float("nan")
    ids = torch.arange(30).masked_fill(torch.arange(30) == 3, -1)
    assert (native.sweep(call._replace(key_ids=ids), False, True).stats >= 0).all()


def test_every_road_gives_the_same() -> None:
    call = TIED.call()
    masks = {"query_ids": call.query_ids, "key_ids": call.key_ids}
    expected = torch.tensor(oracle(call))
    query = call.query.clone().requires_grad_()
    loss, stats = mil_nce(query, *call[1:5], **masks, return_stats=True)
    assert torch.equal(torch.stack(stats, dim=1), expected) and not stats.own_rank.requires_grad
    (gradient,) = torch.autograd.grad(loss, query)
    (plain,) = torch.autograd.grad(mil_nce(query, *call[1:5], **masks), query)
    assert torch.equal(gradient, plain)
    found = run_directly(call, want_stats=True)
    assert found is not None and torch.equal(found[1], expected)
    for backend in ("native", "reference"):
        assert torch.equal(
            mil_nce(*call[:5], **masks, return_stats=True, backend=backend)[1].own_rank, expected[:, 0]
        )
    module = MILNCELoss(call.temperature)(*call[:4], **masks, return_stats=True)
    assert torch.equal(module[1].positives_in_top5, expected[:, 2])
    torch.library.opcheck(torch.ops.cpr.mil_nce_stats.default, (query, *call[1:]))


def test_under_compile_and_vmap() -> None:
    call = TIED.call()
    masks = {"query_ids": call.query_ids, "key_ids": call.key_ids}

    def run(query: Tensor) -> tuple[Tensor, LogitStats]:
        return mil_nce(query, *call[1:5], **masks, return_stats=True)

    expected = run(call.query)
    loss, stats = torch.compile(run, backend="aot_eager", fullgraph=True)(call.query.clone().requires_grad_())
    assert torch.equal(torch.stack(stats), torch.stack(expected[1]))
    loss.backward()
    both = torch.stack([call.query, call.query.flip(0)])
    batched = torch.func.vmap(lambda query: torch.ops.cpr.mil_nce_stats(query, *call[1:])[1])(both)
    each = [torch.ops.cpr.mil_nce_stats(query, *call[1:])[1] for query in both]
    assert torch.equal(batched, torch.stack(each))
