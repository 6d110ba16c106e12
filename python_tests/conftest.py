"""Shared by all tests: one import order, fresh memory that is never accidentally right, real data when it is there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch  # before anything that brings an OpenMP runtime of its own
from places import SHARED_DATA

import cpr_kernels
from cpr_kernels import _core


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch.empty` called by the package returns NaN (or huge integers): an unwritten output fails its test."""
    plain = torch.empty

    def poisoned(*args: object, **kwargs: object) -> torch.Tensor:
        made = plain(*args, **kwargs)
        if torch.compiler.is_compiling() or made.device.type == "meta" or type(made) is not torch.Tensor:
            return made
        if made.dtype.is_floating_point:
            return made.fill_(float("nan"))
        return made.fill_(1 if made.dtype == torch.bool else min(2**31 - 1, torch.iinfo(made.dtype).max))

    for module in (cpr_kernels.mining.native, cpr_kernels.losses.native):
        fake_torch = _Proxy(torch, empty=poisoned)
        monkeypatch.setattr(module, "torch", fake_torch)


class _Proxy:
    """A module with some names replaced."""

    def __init__(self, module: object, **replaced: object) -> None:
        self.__dict__.update(replaced)
        self._module = module

    def __getattr__(self, name: str) -> object:
        return getattr(self._module, name)


@pytest.fixture(params=_core.cpu_isas())
def isa(request: pytest.FixtureRequest) -> str:
    """Each instruction set that this machine runs, in turn."""
    before = _core.cpu_isa()
    assert _core.use_cpu_isa(request.param)
    yield request.param
    _core.use_cpu_isa(before)


@pytest.fixture
def shared_data() -> Path:
    """Real clips and feature tables beside the checkout; the test skips where there are none."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the real data folder shared/data is not beside the checkout")
    return SHARED_DATA
