"""Calls that one cluster serves (csrc/cuda/tiny), emulated beside the kernels that serve larger ones: bit for bit."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cuda_tools import shuffled_core
from emulation_fixtures import H200, H200_SLICE
from oracles import same

from cpr_kernels.dispatch.calls import CascadeCall
from cpr_kernels.dispatch.launch_plans import CudaLimits, plan_on_cuda
from cpr_kernels.mining import native

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("g++") is None, reason="the emulation needs g++ on Linux"
)


def odd_call(dtype: torch.dtype, queries: int, keys: int, dims: tuple[int, ...]) -> CascadeCall:
    """Views of normal numbers: rows of zeros and of extreme size, infinities, NaN, excluded pairs, entries of the source."""
    g = torch.Generator().manual_seed(keys)
    query = [torch.randn(queries, dim, generator=g) for dim in dims]
    key = [torch.randn(keys, dim, generator=g) for dim in dims]
    for view in key:
        view[9] *= 1e30
        view[11] *= 1e-38
        view[12] *= 5e37
        view[13::29] = 0.0
    query[0][3 % queries] *= 1e-36
    query[0][2 % queries] *= 5e37
    key[0][3, 5], key[-1][keys - 10, 0], query[0][1 % queries, 1] = float("inf"), float("nan"), float("-inf")
    exclude = torch.rand(queries, keys, generator=g) < 0.1
    weights = [float(v == s % len(dims)) for s in range(3) for v in range(len(dims))]
    keep = [keys * 2 // 3, keys // 3, 30]
    rows = [view.to(dtype) for view in query], [view.to(dtype) for view in key]
    return CascadeCall(*rows, weights, keep, torch.arange(queries), torch.arange(keys) - 5, exclude)


CALLS = [
    (torch.float32, 16, 300, (72, 9)),
    (torch.float32, 3, 2100, (128, 128)),  # more keys than the warps take at a time
    (torch.float32, 2, 100, (128, 7, 64)),  # more views than the threads split at a time
    (torch.bfloat16, 16, 300, (128, 24)),
    (torch.float16, 1, 130, (100,)),
]


@pytest.fixture
def core() -> Iterator[Any]:
    """The emulated core, its threads shuffled."""
    with shuffled_core(H200) as module:
        yield module


@pytest.mark.parametrize(("dtype", "queries", "keys", "dims"), CALLS)
def test_bits_are_those_of_other_kernels(
    core: Any, dtype: torch.dtype, queries: int, keys: int, dims: tuple[int, ...]
) -> None:
    call = odd_call(dtype, queries, keys, dims)
    assert plan_on_cuda(call, CudaLimits(*H200)).path == "tiny"
    got = native.run_on_stream(call, core, 0)
    without_ids = call._replace(query_ids=None, key_ids=None, exclude=None)
    plain = native.run_on_stream(without_ids, core, 0)
    core.set_limits(*H200_SLICE)  # no clusters
    same(got, native.run_on_stream(call, core, 0))
    same(plain, native.run_on_stream(without_ids, core, 0))


@pytest.mark.parametrize(
    ("changes", "because"),
    [
        ({"dim": 129}, "more than 128 features"),
        ({"keep": [300]}, "results of more than 256"),
        ({"views": 8}, "more views than shared memory holds scores of"),
    ],
)
def test_what_one_cluster_does_not_serve(changes: dict[str, Any], because: str) -> None:
    plan = plan_on_cuda(wide(**changes), CudaLimits(*H200))
    assert plan.path == "ring" and because in plan.rule
    assert plan_on_cuda(wide(), CudaLimits(*H200)).path == "tiny"


def wide(dim: int = 128, keep: tuple[int, ...] = (256,), views: int = 2) -> CascadeCall:
    """A call of 4,096 keys, never run."""
    rows = [torch.empty(16, dim)] * views, [torch.empty(4096, dim)] * views
    return CascadeCall(*rows, [1.0] * views, list(keep), None, None, None)
