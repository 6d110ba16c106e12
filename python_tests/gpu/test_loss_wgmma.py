"""The loss by wgmma (compute capability 9.0): emulated against the reference, and planned. Its PTX runs in test_ptx.py."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cases import TIED_CASES, LossCase, name_of
from cuda_tools import shuffled_core
from emulation_fixtures import A100, H200, check_loss

from cpr_kernels.dispatch.calls import LossCall
from cpr_kernels.dispatch.launch_plans import CudaLimits, plan_on_cuda
from cpr_kernels.losses import native, reference

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("g++") is None, reason="the emulation needs g++ on Linux"
)
PREPARE_ATTEND_FINISH, OWN = 3, 1


@pytest.fixture
def core() -> Iterator[Any]:
    """The emulated core, its threads shuffled, copies and products early and late, sweeps by wgmma."""
    with shuffled_core(H200, wgmma_parts=1) as module:
        yield module


CASES = [  # both warpgroups, steps beyond the stages, features fewer than 128, all meanings of ids
    LossCase("two tiles of queries", 70, 140, 128, ids=20, use_own=True),
    LossCase("siblings are left out", 5, 300, 100, ids=20, siblings=2),
    LossCase("an odd number of features, large scores", 3, 130, 101, scale=30.0, ids=3, siblings=0),
    LossCase("few features", 5, 140, 40, ids=20),
    LossCase("bf16", 3, 140, 128, dtype=torch.bfloat16, ids=9),
    LossCase("fp16, cold", 3, 60, 66, dtype=torch.float16, temperature=0.005),
]


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_losses(core: Any, case: LossCase) -> None:
    core.kernels_launched()
    native.sweep_on_stream(case.call(), True, core, 0)
    assert core.kernels_launched() == PREPARE_ATTEND_FINISH
    check_loss(core, case)


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("case", [*CASES, *TIED_CASES], ids=name_of)
def test_statistics(core: Any, case: LossCase, parts: int) -> None:
    """Those of the reference, and every bit of the rest as without them."""
    call = case.call()
    core.cuda_tune(wgmma_parts=parts)
    plain = native.sweep_on_stream(call, True, core, 0)
    core.kernels_launched()
    ranked = native.sweep_on_stream(call, True, core, 0, True)
    assert core.kernels_launched() == PREPARE_ATTEND_FINISH + OWN
    assert all(torch.equal(a, b) for a, b in zip(plain[:-1], ranked[:-1]))
    exact = reference.sweep(case.call(dtype=torch.float64), False, True).stats
    assert torch.equal(ranked.stats, exact)


def test_parts_change_no_more_than_rounding(core: Any) -> None:
    call = LossCase("", 5, 260, 72, ids=20).call()
    answers = []
    for parts, seed in ((1, 0), (2, 7), (2, 3)):
        core.cuda_tune(wgmma_parts=parts)
        core.set_seed(seed)
        answers.append(native.sweep_on_stream(call, True, core, 0))
    torch.testing.assert_close(answers[0].grad_query, answers[1].grad_query, rtol=1e-5, atol=1e-5)
    assert all(
        torch.equal(a, b) for a, b in zip(answers[1], answers[2])
    )  # of one plan, in any order of threads


def extreme() -> LossCall:
    """Keys and queries of sizes from 1e-30 to 1e30, of which no score overflows, and temperatures to suit none."""
    g = torch.Generator().manual_seed(3)
    keys = torch.randn(140, 72, generator=g) * 10.0 ** torch.randint(-30, 3, (140, 1), generator=g)
    keys[129] = keys[129].sign() * 1e30
    query = torch.randn(4, 72, generator=g) * torch.tensor([1.0, 1e-28, 1e-3, 30.0])[:, None]
    positives = torch.randint(0, 140, (4, 2), generator=g)
    return LossCall(query, query.flip(0).contiguous(), keys, positives, 3.0, None, None, None, 1)


def test_rows_of_any_size(core: Any) -> None:
    call = extreme()
    exact = reference.sweep(
        call._replace(**{n: getattr(call, n).double() for n in ("query", "positive", "keys")}), True
    )
    got = native.sweep_on_stream(call, True, core, 0, True)
    assert torch.equal(got.stats, reference.sweep(call, True, True).stats)
    for name in ("loss", "lse_all", "lse_positive", "own_weight", "grad_query"):
        value, wanted = getattr(got, name).double(), getattr(exact, name)
        assert value.isfinite().all(), name
        size = wanted.abs().reshape(4, -1).amax(1)
        assert ((value - wanted).abs().reshape(4, -1).amax(1) <= 2e-5 * (1 + size)).all(), name


@pytest.mark.parametrize("size", [1.0, 1e-12], ids=["usual", "of any size"])
@pytest.mark.parametrize("taking", [True, False], ids=["taking part", "left out"])
def test_numbers_that_are_not_finite(core: Any, taking: bool, size: float) -> None:
    """They make queries NaN with which they take part, and change nothing else."""
    call = LossCase("", 4, 140, 80, positives=0, ids=9, siblings=2).call()
    call.keys[3] *= size
    clean = native.sweep_on_stream(call, True, core, 0)
    spoilt, ids = call.keys.clone(), call.key_ids.clone()
    spoilt[135, 3], spoilt[7, 79] = float("nan"), float("inf")
    ids[[7, 135]] = call.query_ids[0] if taking else -1
    masked = call._replace(key_ids=ids)
    got = native.sweep_on_stream(masked._replace(keys=spoilt), True, core, 0, True)
    expected = native.sweep_on_stream(masked, True, core, 0, True)
    own = call.query_ids == call.query_ids[0]  # whose siblings are left out
    kept = own if taking else torch.ones(4, dtype=torch.bool)
    assert clean.loss.isfinite().all() and kept.any()
    assert torch.equal(got.loss[kept], expected.loss[kept])
    assert torch.equal(got.grad_query[kept], expected.grad_query[kept])
    assert torch.equal(got.stats[kept], expected.stats[kept]) and (got.stats[~kept] == -1).all()
    assert got.loss[~kept].isnan().all() and got.grad_query[~kept].isnan().all()


def shape(queries: int, keys: int, dim: int = 128, dtype: torch.dtype = torch.float32) -> LossCall:
    """A call whose features are never touched."""
    rows = torch.empty(1, dim, dtype=dtype)
    lists = torch.empty(queries, 0, dtype=torch.int64)
    return LossCall(
        rows.expand(queries, dim),
        rows.expand(queries, dim),
        rows.expand(keys, dim),
        lists,
        0.07,
        None,
        None,
        None,
        1,
    )


@pytest.mark.parametrize(
    ("call", "parts", "said"),
    [
        (shape(512, 16384), 32, "wgmma"),
        (shape(64, 16384), 128, "wgmma"),
        (shape(512, 16384, 100, torch.bfloat16), 32, "wgmma"),
        (shape(512, 16384, 3), 32, "wgmma"),
        (shape(512, 16384, 129), 16, "mma.sync, not wgmma: more than 128 features"),
        (shape(16, 16384), 256, "mma.sync, not wgmma: too few queries"),
        (shape(64, 4096), 64, "mma.sync, not wgmma: too few blocks"),
    ],
)
def test_the_plan_says_how_products_are_formed(call: LossCall, parts: int, said: str) -> None:
    plan = plan_on_cuda(call, CudaLimits(*H200))
    assert plan.products.startswith(said) and plan.parts == parts and f"products by {said}" in str(plan)
    assert plan_on_cuda(call, CudaLimits(*A100)).products == "mma.sync"
