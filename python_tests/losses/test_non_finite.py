"""NaN, infinities, overflowing products and extreme temperatures in `mil_nce`: one rule on every backend."""

from __future__ import annotations

import functools
import math
import shutil
from typing import Any

import non_finite
import pytest
import torch
from cases import LossCase
from cuda_tools import emulated
from non_finite import CASES, NonFiniteCase
from torch import Tensor

from cpr_kernels import mil_nce
from cpr_kernels.dispatch.calls import LossCall, Sweep
from cpr_kernels.losses import native, reference, sharded

TINY = torch.finfo(torch.float32).tiny
by_name = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])


@by_name
def test_native(case: NonFiniteCase, isa: str) -> None:
    assert non_finite.wrong(case, native.sweep, native.keys_gradient) == ""


@by_name
def test_reference(case: NonFiniteCase) -> None:
    assert non_finite.wrong(case, reference.sweep, reference.keys_gradient) == ""


@by_name
def test_shares_of_the_keys(case: NonFiniteCase, isa: str) -> None:
    """As ranks of a sharded queue sum them: 40 keys and the others."""

    def sweep(call: LossCall, want_gradient: bool) -> Sweep:
        parts = []
        for rows in (slice(0, 40), slice(40, None)):
            first = rows.start
            local = torch.where(
                (call.positives >= first) & (call.positives < (rows.stop or 90)), call.positives - first, -1
            )
            part = call._replace(keys=call.keys[rows], key_ids=call.key_ids[rows], positives=local)
            parts.append(native.share(part, want_gradient))
        sums, attended, ranks, best = (torch.stack(tensors) for tensors in zip(*parts))
        return sharded._reduce(call, native.Share(sums.double(), attended.double(), ranks[:, :, :0], best))

    assert non_finite.wrong(case, sweep, None) == ""


@pytest.mark.skipif(
    shutil.which("g++") is None, reason="there is no g++ to build the emulated CUDA kernels with"
)
@by_name
def test_cuda_sources(case: NonFiniteCase) -> None:
    """The CUDA kernels, run thread by thread on the CPU."""
    core = emulated()
    core.set_seed(0)
    assert non_finite.wrong(case, functools.partial(_swept, core), functools.partial(_graded, core)) == ""


def _swept(core: Any, call: LossCall, want_gradient: bool) -> Sweep:
    return native.sweep_on_stream(call, want_gradient, core, 0)


def _graded(core: Any, call: LossCall, *given: Tensor) -> Tensor:
    return native.keys_gradient_on_stream(call, given, core, 0)


def check_shares(case: LossCase, sweep: Any, keys_gradient: Any) -> None:
    """No weight of a key beyond 1 in either sum, though sweep and gradient round scores of 1e30 apart by 1e23."""
    call = case.call()
    size = torch.logspace(13, 15, len(call.keys))[:, None]
    call = call._replace(query=call.query * 1e15, positive=call.positive * 1e15, keys=call.keys * size)
    got = sweep(call, False)
    assert got.loss.isfinite().all()
    grad = keys_gradient(call, torch.ones(len(call.query)), got.lse_all, got.lse_positive)
    most = 2 / call.temperature * call.query.double().abs().sum(0)
    assert (grad.double().abs() <= 1.001 * most).all()


HUGE = [LossCase("", 40, 150, 100, ids=12, use_own=False), LossCase("", 19, 90, 20, ids=12, use_own=True)]


@pytest.mark.parametrize("case", HUGE, ids=["100 features", "20 features"])
def test_shares_of_huge_scores(case: LossCase, isa: str) -> None:
    check_shares(case, native.sweep, native.keys_gradient)
    check_shares(case, reference.sweep, reference.keys_gradient)


@pytest.mark.skipif(
    shutil.which("g++") is None, reason="there is no g++ to build the emulated CUDA kernels with"
)
@pytest.mark.parametrize("case", HUGE, ids=["100 features", "20 features"])
def test_shares_of_huge_scores_on_cuda_sources(case: LossCase) -> None:
    core = emulated()
    check_shares(case, functools.partial(_swept, core), functools.partial(_graded, core))


@pytest.mark.parametrize("backend", ["auto", "native", "reference"])
def test_gradients_through_the_op(backend: str) -> None:
    """A sibling's NaN spoils the other queries only; their gradient is NaN, its own query's is not."""
    call = CASES[10].call()
    leaves = [t.clone().requires_grad_() for t in (call.query, call.positive, call.keys)]
    arguments = dict(call._asdict(), query=leaves[0], positive=leaves[1], keys=leaves[2])
    loss = mil_nce(**arguments, reduction="none", backend=backend)
    query, positive, keys = torch.autograd.grad(loss.sum(), leaves)
    others = torch.arange(19) != 2
    assert loss[2].isfinite() and query[2].isfinite().all() and positive[2].isfinite().all()
    assert loss[others].isnan().all() and query[others].isnan().all() and positive[others].isnan().all()
    assert keys[7].eq(0).all() and keys[5].isnan().all()


def at_temperature(
    temperature: float, backend: str, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, ...]:
    """The losses of an own pair by itself; with a key far above it, far below it, and just as high."""
    query = torch.tensor([[3.0, 4.0]], dtype=dtype)
    given = {"temperature": temperature, "backend": backend, "reduction": "none"}
    none = mil_nce(query, query, torch.empty(0, 2, dtype=dtype), **given)
    return none, *(mil_nce(query, query, factor * query, **given) for factor in (9.0, -9.0, 1.0))


@pytest.mark.parametrize("temperature", [TINY, 1e-37, 1e-30, 1e-20, 1e20, 3e38])
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_extreme_temperatures(temperature: float, backend: str, isa: str) -> None:
    alone, above, below, level = at_temperature(temperature, backend)
    assert alone.item() == 0
    most = torch.finfo(torch.float32).max
    if temperature < 1:
        torch.testing.assert_close(above.item(), min(200 / temperature, most), rtol=1e-6, atol=0)
        assert below.item() == 0
    else:
        torch.testing.assert_close(above.item(), math.log(2), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(below.item(), math.log(2), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(level.item(), math.log(2), rtol=1e-6, atol=0)


def test_extreme_scores_on_cuda_sources() -> None:
    """Finite at the smallest temperature also there; what overflows float32 is float32's largest number."""
    query = torch.tensor([[3.0, 4.0]])
    call = LossCall(query, query, 9 * query, torch.empty(1, 0, dtype=torch.int64), TINY, None, None, None, 1)
    loss = native.sweep_on_stream(call, False, emulated(), 0).loss
    assert loss.item() == torch.finfo(torch.float32).max


@pytest.mark.parametrize("temperature", [1e-38, 1e-40, 1e-46, 1e-50, 1e39, 1e300])
def test_temperatures_that_float32_does_not_hold(temperature: float) -> None:
    for backend in ("auto", "native", "reference"):
        with pytest.raises(ValueError, match="temperature must be a finite number > 0 in float32") as caught:
            at_temperature(temperature, backend)
        assert f"got {temperature}" in str(caught.value)
    alone, *_ = at_temperature(temperature, "auto", torch.float64)
    assert alone.item() == 0
