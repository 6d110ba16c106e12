"""Selection by 16-bit codes (csrc/cuda/select/by_codes.h), emulated, beside selection by scores alone: bit for bit."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cuda_tools import shuffled_core
from emulation_fixtures import A100, H200, H200_SLICE, RTX, shape
from oracles import same

from cpr_kernels.dispatch.calls import CascadeCall
from cpr_kernels.dispatch.launch_plans import CudaLimits, plan_on_cuda
from cpr_kernels.mining import native, reference

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("g++") is None, reason="the emulation needs g++ on Linux"
)
BY_SCORES = {"select_threads": 1024}
BOTH = [1.0, 0.0, 0.0, 1.0] * 3  # two views in turn


@pytest.fixture
def core() -> Iterator[Any]:
    """The emulated core, its threads shuffled."""
    with shuffled_core(H200_SLICE) as module:
        yield module


def features(
    queries: int, keys: int, seed: int, whole: int = 0
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Two views of normal numbers, or of whole ones up to `whole`."""
    g = torch.Generator().manual_seed(seed)

    def rows(count: int) -> torch.Tensor:
        if whole:
            return torch.randint(-whole, whole + 1, (count, 4), generator=g).float()
        return torch.randn(count, 6, generator=g)

    return [rows(queries), rows(queries)], [rows(keys), rows(keys)]


def cascade(
    queries: int, keys: int, keep: list[int], seed: int = 0, whole: int = 0, weights: list[float] = BOTH
) -> CascadeCall:
    """A call of as many stages as counts."""
    return CascadeCall(
        *features(queries, keys, seed, whole), weights[: 2 * len(keep)], keep, None, None, None
    )


def odd(call: CascadeCall) -> CascadeCall:
    """The same with rows of NaN and infinities in one view, excluded pairs and entries of the query's source."""
    queries, keys = call.queries[0].shape[0], call.keys[0].shape[0]
    views = [view.clone() for view in call.keys]
    views[0][5::97, 1] = float("nan")
    views[1][7::89, 0] = float("nan")
    views[1][11::83, 2] = float("inf")
    views[0][13::79] = float("-inf")
    exclude = torch.rand(queries, keys, generator=torch.Generator().manual_seed(3)) < 0.1
    return call._replace(
        keys=views,
        query_ids=torch.arange(queries),
        key_ids=torch.arange(keys) % (queries + 3) - 1,
        exclude=exclude,
    )


CALLS = {
    # candidates that are dropped would be counted by the next stage's row, and long results show it
    "both rows at once": cascade(24, 4096, [2048, 256]),
    "three lists": cascade(4, 4096, [3000, 2000, 1500, 900, 600, 251], 1),
    "one row twice, then the other": cascade(6, 4001, [3000, 700, 250], 2, weights=[1.0, 0.0, 1.0, 0.0, 0.0, 1.0]),
    "one row": cascade(4, 3001, [900, 100], 3, weights=[1.0, 0.0, 1.0, 0.0]),
    "512 threads": cascade(2, 9001, [4500, 2250, 1125, 256], 4),
    "mixed rows": cascade(3, 2500, [1250, 200], 5, weights=[0.5, 0.5, 0.25, 0.75]),
    "odd rows": odd(cascade(5, 4096, [2000, 1000, 250], 6)),
    # what codes leave to scores: ties, a cut among the lowest, more wanted than are there
    "ties": cascade(4, 4096, [2048, 1024, 200], 7, whole=2),
    "all equal": cascade(2, 2000, [1000, 100], 8, whole=2)._replace(queries=[torch.zeros(2, 4)] * 2),
    "nearly all stay": cascade(3, 4096, [4095, 250], 9),
    "few are there": cascade(3, 600, [500, 100], 10)._replace(exclude=torch.arange(600).expand(3, 600) > 40),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_bits_are_those_of_selection_by_scores(core: Any, name: str) -> None:
    call = CALLS[name]
    core.cuda_tune(**BY_SCORES)
    expected = native.run_on_stream(call, core, 0)
    core.cuda_tune()
    for seed in (7, 0):
        core.set_seed(seed)
        same(native.run_on_stream(call, core, 0), expected)


@pytest.mark.parametrize("keys", [1, 2, 31, 32, 33, 511, 513, 2047, 4095])
def test_lengths(core: Any, keys: int) -> None:
    """Whole numbers, for which the reference's sums are exact."""
    call = cascade(3, keys, [(keys + 1) // 2, (keys + 3) // 4], keys, whole=40)
    if keys < 8:
        call = call._replace(stage_keep=[keys, 1])
    same(native.run_on_stream(call, core, 0), reference.run(call))


def test_tiny_calls(core: Any) -> None:
    core.set_limits(*H200)
    for call in (CALLS["ties"], CALLS["odd rows"], CALLS["three lists"]):
        assert plan_on_cuda(call, CudaLimits(*H200)).path == "tiny"
        expected = native.run_on_stream(call, core, 0)
        core.cuda_tune(**BY_SCORES)
        same(native.run_on_stream(call, core, 0), expected)
        core.cuda_tune()


SAID = "selection by 16-bit codes"


@pytest.mark.parametrize(
    ("call", "device", "by_codes"),
    [
        (shape(512, 16384), H200, True),
        (shape(16, 2048), H200, True),
        (shape(512, 4096), A100, True),
        (shape(512, 16385), H200, False),  # more than 512 threads hold
        (CALLS["mixed rows"], H200, True),
        (CALLS["one row"], H200, True),
        (cascade(2, 4096, [2000, 257]), H200, False),  # a long result
        (cascade(2, 4096, [2000, 2000]), H200, False),  # a stage that drops nothing
        (cascade(2, 900, [300, 200, 100], weights=[1.0, 0.0, 0.0, 1.0, 0.5, 0.5]), H200, False),  # three rows
        (cascade(2, 16384, [12000, 200]), RTX, False),  # too little shared memory
    ],
)
def test_the_plan_says_who_decides(call: CascadeCall, device: tuple[int, ...], by_codes: bool) -> None:
    assert (SAID in plan_on_cuda(call, CudaLimits(*device)).rule) == by_codes
