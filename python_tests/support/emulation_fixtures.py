"""What tests of the emulated CUDA kernels share: devices, the core on one, guarded workspaces, calls, and a check of losses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import LossCase

from cpr_kernels import cpr_schedule
from cpr_kernels.dispatch.calls import CascadeCall
from cpr_kernels.losses import native as loss_native
from cpr_kernels.losses import reference as loss_reference
from cpr_kernels.mining import native

# compute capability, shared memory a block, L2 bytes, clusters of 16 blocks
H200 = (90, 232_448, 60 << 20, True)
H200_SLICE = (90, 232_448, 10 << 20, False)
A100 = (80, 166_912, 40 << 20, False)
RTX = (86, 101_376, 6 << 20, False)


@pytest.fixture(params=[0, 7], ids=["in order", "shuffled"])
def core(request: pytest.FixtureRequest) -> Any:
    """The emulated core, its threads in order or shuffled between barriers."""
    from cuda_tools import emulated

    module = emulated()
    module.set_seed(request.param)
    module.set_limits(*H200)
    return module


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Workspaces with a border that nobody may touch; checked by `borders_hold`."""
    borders: list[torch.Tensor] = []
    plain = torch.empty

    def empty(*args: Any, **kwargs: Any) -> torch.Tensor:
        if kwargs.get("dtype") is not torch.uint8:
            made = plain(*args, **kwargs)
            return made.fill_(float("nan")) if made.dtype.is_floating_point else made.fill_(2**31 - 1)
        size = args[0]
        whole = torch.full((size + 1024,), 0xA5, dtype=torch.uint8)
        start = -whole.data_ptr() % 256 + 256
        borders.extend((whole[:start], whole[start + size :]))
        return whole[start : start + size]

    for module in (native, loss_native):
        monkeypatch.setattr(module.torch, "empty", empty, raising=False)
    return borders


def borders_hold(borders: list[torch.Tensor]) -> None:
    assert borders
    assert all((border == 0xA5).all() for border in borders)


def shape(queries: int, keys: int, dtype: torch.dtype = torch.bfloat16, dim: int = 64) -> CascadeCall:
    """A call of two views whose features are never touched."""
    views = [torch.empty(1, dim, dtype=dtype) for _ in range(2)]
    schedule = cpr_schedule(num_keys=keys, stages=3)
    weights, keep = schedule.table(("flow", "rgb"))
    return CascadeCall(
        [v.expand(queries, dim) for v in views],
        [v.expand(keys, dim) for v in views],
        weights,
        keep,
        None,
        None,
        None,
    )


def check_loss(core: Any, case: LossCase) -> None:
    """Loss, statistics and gradients near the reference in float64."""
    call, exact_call = case.call(), case.call(dtype=torch.float64)
    exact = loss_reference.sweep(exact_call, True)
    grad_loss = torch.linspace(-1, 1, call.query.shape[0])
    exact_keys = loss_reference.keys_gradient(
        exact_call, grad_loss.double(), exact.lse_all, exact.lse_positive
    )
    got = loss_native.sweep_on_stream(call, True, core, 0)
    keys = loss_native.keys_gradient_on_stream(call, (grad_loss, got.lse_all, got.lse_positive), core, 0)
    logits = max([1.0, *(t.abs().max().item() for t in (exact.lse_all, exact.lse_positive) if t.numel())])
    rounding = {torch.float32: 0.0, torch.bfloat16: 2**-8, torch.float16: 2**-11}[call.keys.dtype]
    for name, value, wanted in [
        *((name, getattr(got, name), getattr(exact, name)) for name in got._fields),
        ("grad_keys", keys, exact_keys),
    ]:
        size = wanted.abs().max().item() if wanted.numel() else 0.0
        slack = (1 + size) * (1e-5 + 4e-7 * logits) + (rounding * size if name == "grad_keys" else 0.0)
        assert ((value.double() - wanted).abs() <= slack).all(), name
    without = loss_native.sweep_on_stream(call, False, core, 0)
    assert without.grad_query.shape[0] == 0 and torch.equal(without.loss, got.loss)
