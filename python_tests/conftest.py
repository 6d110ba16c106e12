"""Shared by all tests: one import order, fresh memory that is never accidentally right, real data when it is there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch  # before anything that brings an OpenMP runtime of its own
from places import SHARED_DATA

import cpr_kernels
from cpr_kernels import _core
from cpr_kernels.progress import set_output

THREADS = torch.get_num_threads()
NETWORKS = {"bench", "cli", "deploy", "train"}  # folders whose tests run networks rather than kernels


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Beside other workers a network runs on one thread, in child processes too: torch's threads would wait for each
    other's turn on a core.
    """
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    if NETWORKS & set(item.path.parts):
        torch.set_num_threads(1)
        os.environ["OMP_NUM_THREADS"] = "1"
    else:
        torch.set_num_threads(THREADS)
        os.environ.pop("OMP_NUM_THREADS", None)


@pytest.fixture(autouse=True)
def plain_output() -> None:
    """No test is quiet because an earlier one parsed `--quiet` or `--json`."""
    set_output(quiet=False, json=False)


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
