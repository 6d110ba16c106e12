"""What tests of the emulated CUDA kernels share: devices, the core on one, guarded workspaces, calls, and a check of losses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import LossCase
from exact_losses import check_near, exact_loss

from cpr_kernels import cpr_schedule
from cpr_kernels.dispatch.calls import CascadeCall
from cpr_kernels.losses import native as loss_native
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
    call, exact = case.call(), exact_loss(case)
    got = loss_native.sweep_on_stream(call, True, core, 0)
    sums = (exact.grad_loss, got.lse_all, got.lse_positive)
    keys = loss_native.keys_gradient_on_stream(call, sums, core, 0)
    check_near(exact, got, keys, call.keys.dtype)
    without = loss_native.sweep_on_stream(call, False, core, 0)
    assert without.grad_query.shape[0] == 0 and torch.equal(without.loss, got.loss)
