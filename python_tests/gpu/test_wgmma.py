"""Scores by wgmma (compute capability 9.0): emulated beside the kernels of other devices, planned, and with faults
planted in PTX that the runner must name. Their PTX runs in test_ptx.py."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from cuda_tools import last_words, shuffled_core
from emulation_fixtures import A100, H200, H200_SLICE, shape
from oracles import same

from cpr_kernels.dispatch.calls import CascadeCall
from cpr_kernels.dispatch.launch_plans import CudaLimits, plan_on_cuda
from cpr_kernels.mining import native

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("g++") is None, reason="the emulation needs g++ on Linux"
)


def odd_features(dtype: torch.dtype, queries: int = 70, dim: int = 72) -> CascadeCall:
    """Two views of normal numbers: rows of extreme size, infinities, NaN, excluded pairs, entries of the query's source."""
    g = torch.Generator().manual_seed(queries)
    query, keys = torch.randn(queries, dim, generator=g), torch.randn(300, dim, generator=g)
    keys[9] *= 1e30
    query[4 % queries] *= 1e-33
    keys[3, 5], keys[290, 0], query[7 % queries, 1] = float("inf"), float("nan"), float("-inf")
    exclude = torch.rand(queries, 300, generator=g) < 0.1
    rows = [query.to(dtype), query[:, :9].to(dtype)], [keys.to(dtype), keys.flip(0)[:, :9].to(dtype)]
    return CascadeCall(
        *rows, [1.0, 0.0, 0.0, 1.0], [200, 30], torch.arange(queries), torch.arange(300) - 5, exclude
    )


@pytest.fixture
def core() -> Iterator[Any]:
    """The emulated core, its threads shuffled, copies and products early and late."""
    with shuffled_core(H200_SLICE) as module:
        yield module


@pytest.mark.parametrize(
    ("dtype", "queries", "dim"),
    [(torch.float32, 70, 72), (torch.float32, 3, 8), (torch.bfloat16, 70, 24), (torch.float16, 3, 200)],
)
def test_bits_are_those_of_the_other_kernels(core: Any, dtype: torch.dtype, queries: int, dim: int) -> None:
    call = odd_features(dtype, queries, dim)
    core.cuda_tune(wgmma_parts=0)
    expected = native.run_on_stream(call, core, 0)
    core.kernels_launched()
    for choice, seed in (
        ({"wgmma_parts": 1, "sweep": 64}, 7),
        ({"wgmma_parts": 2}, 0),
        ({"wgmma_parts": 1, "key_splits": 0}, 7),
    ):
        core.set_seed(seed)
        core.cuda_tune(**choice)
        same(native.run_on_stream(call, core, 0), expected)
    assert core.kernels_launched() == 3  # prepare, score_wgmma, select


@pytest.mark.parametrize(
    ("device", "call", "said"),
    [
        (H200, shape(512, 16384), "by wgmma, 256 keys"),
        (H200, shape(64, 16384, torch.float32, 128), "while queries stream, which splits them itself"),
        (H200, shape(64, 16384, torch.bfloat16, 128), "while queries stream;"),
        (H200, shape(512, 4096, torch.float32, 128), "while queries stream;"),  # eight parts
        (H200, shape(512, 16384, torch.float32, 129), "not wgmma: more features"),
        (H200, shape(512, 16384, torch.bfloat16, 256), "by wgmma, 256 keys"),
        (H200, shape(16, 16384), "not wgmma: too few queries"),
        (H200, shape(64, 4096), "not wgmma: too few blocks"),
    ],
)
def test_the_plan_says_how_scores_are_formed(device: tuple[int, ...], call: CascadeCall, said: str) -> None:
    assert said in plan_on_cuda(call, CudaLimits(*device)).rule
    assert "mma" not in plan_on_cuda(call, CudaLimits(*A100)).rule


def products(number: int, a: str = "%rd3", b: str = "%rd4") -> str:
    """wgmma of accumulators %f<number>0 to %f<number>63."""
    sums = ", ".join(f"%f{number}{i:02}" for i in range(64))
    return f"wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {{{sums}}}, {a}, {b}, %p2, 1, 1, 0, 0;"


def columns(number: int) -> str:
    """The same of a factor in registers by columns."""
    sums = ", ".join(f"%f{number}{i:02}" for i in range(64))
    return f"wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {{{sums}}}, {{%r2, %r2, %r5, %r5}}, %rd4, %p2, 1, 1, 1;"


FENCE, COMMIT, WAIT = (f"wgmma.{name}.sync.aligned{rest};" for name, rest in (("fence", ""), ("commit_group", ""), ("wait_group", " 0")))  # fmt: skip
MADE = "mbarrier.init.shared::cta.b64 [%r3], 1;"
COPY = "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
# a thread's way through the kernel and what is said of it; %r2: its number, %rd3: rows for the tensor cores at 0,
# %r3: where barriers are, %rd1: an address in global memory
FAULTS = [
    (f"{products(1)} {COMMIT} {WAIT}", "without wgmma.fence"),
    (f"{FENCE} {products(1)} {COMMIT} add.f32 %f100, %f100, %f101;", "an accumulator is read before"),
    (f"{FENCE} {products(1)} mov.f32 %f100, 0f00000000; {products(1)}", "an accumulator in flight is overwritten"),
    (f"{FENCE} {products(1)} {COMMIT}", "products of a warpgroup that nobody waited for"),
    (f"{FENCE} {products(1)} {WAIT}", "products of a warpgroup that nobody waited for"),
    (f"{FENCE} mov.u32 %r5, %r2; {columns(1)}", "written after wgmma.fence"),
    (f"mov.u32 %r5, %r2; {FENCE} {columns(1)} {COMMIT} add.u32 %r5, %r5, 1; {WAIT}", "a factor in flight is overwritten"),
    (f"mov.u32 %r5, %r2; st.shared.u32 [1040], %r2; {FENCE} {columns(1)}", "tensor cores read what no fence has shown"),
    (f"st.shared.u32 [16], %r2; {FENCE} {products(1)}", "tensor cores read what no fence has shown"),
    (f"{FENCE} add.s64 %rd5, %rd3, 32; {products(1, '%rd5')}", "do not begin at 1,024 bytes"),
    (f"{FENCE} shl.b64 %rd5, %rd3, 1; {products(1, '%rd5')}", "without the 128-byte swizzle"),
    (f"{FENCE} cvt.u64.u32 %rd5, %r2; shl.b64 %rd5, %rd5, 6; add.s64 %rd5, %rd5, %rd3; {products(1, '%rd5')}",
     "threads of a warpgroup multiply different rows"),
    (f"{FENCE} add.s64 %rd5, %rd3, 16320; {products(1, '%rd5')}", "beyond the block's shared memory"),
    ("mbarrier.arrive.shared::cta.b64 _, [%r3];", "before it is initialised"),
    (f"{MADE} mbarrier.arrive.shared::cta.b64 _, [%r3]; mbarrier.try_wait.parity.shared::cta.b64 %p3, [%r3], 1;",
     "that the others never reach"),
    ("mbarrier.init.shared::cta.b64 [4], 1;", "a misaligned access to shared memory"),
    (f"{MADE} {COPY} [0], [%rd1], 16, [%r3];", "a barrier that no fence has shown"),
    (f"{MADE} fence.mbarrier_init.release.cluster; {COPY} [8], [%rd1], 16, [%r3];", "not in whole 16 bytes"),
    (f"{MADE} fence.mbarrier_init.release.cluster; {COPY} [0], [%rd1], 16, [%r3];",
     "a copy in bulk that nobody waited for"),
]  # fmt: skip
ROWS = 1 << 62 | 64 << 32 | 1 << 16  # swizzled_rows(0) of device/hopper.h


@pytest.mark.slow
def test_planted_faults_are_named(core: Any, tmp_path: Path) -> None:
    """Queries of a call choose the fault, in one kernel in place of the true one; each ends its process."""
    from ptx.build import compiled
    from ptx.translate import kernels

    ways = "".join(
        f"setp.ne.u32 %p1, %r1, {i + 1};\n@%p1 bra $L{i};\n{way}\nret;\n$L{i}:\n"
        for i, (way, _) in enumerate(FAULTS)
    )
    name = "_ZN3cpr18score_wgmma_kernelILb1ELi1EEEvNS_4ArgsE"
    text = f""".visible .entry {name}(
.param .b8 {name}_param_0[920]
)
{{
ld.param.u32 %r1, [{name}_param_0+836];
ld.param.u64 %rd1, [{name}_param_0];
mov.u32 %r2, %tid.x;
mov.u32 %r3, 65536;
mov.u64 %rd3, {ROWS};
mov.u64 %rd4, {ROWS};
mov.pred %p2, -1;
{ways}ret;

}}
"""
    (kernel,) = compiled(kernels(text))
    core.replace_kernel(kernel.kernel.name, kernel.address, kernel.stack)
    core.cuda_tune(wgmma_parts=1)
    core.set_seed(0)
    try:
        for i, (way, expected) in enumerate(FAULTS):
            call = CascadeCall([torch.ones(i + 1, 192).bfloat16()], [torch.ones(8, 192).bfloat16()], [1.0], [2], None, None, None)  # fmt: skip
            said = last_words(partial(native.run_on_stream, call, core, 0), tmp_path / "said")
            assert expected in said, way
    finally:
        core.restore_kernels()
