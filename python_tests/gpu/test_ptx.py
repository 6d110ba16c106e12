"""The code that nvcc makes of the CUDA kernels, run on a CPU from its PTX (python_tests/support/ptx), against the reference.

By default the kernels of sm_90a run, and those of sm_80 that differ from them only where CPR_PTX=all is set: compiling
is what takes time, and is kept in build/ptx by contents.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gpu_small
import pytest
import torch
from cases import LARGE_CASES, SMALL_CASES, CascadeCase, LossCase, listed, name_of
from cuda_tools import last_words, nvcc
from emulation_fixtures import A100, H200, H200_SLICE, RTX, check_loss
from oracles import same
from test_cuda_build import REGISTERS
from test_select_codes import BY_SCORES, CALLS
from test_tiny import CALLS as TINY_CALLS
from test_tiny import odd_call
from test_wgmma import odd_features

from cpr_kernels.losses import native as losses
from cpr_kernels.losses import reference as loss_reference
from cpr_kernels.memory import enqueue
from cpr_kernels.mining import native, reference

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        sys.platform != "linux" or shutil.which("g++") is None or nvcc() is None,
        reason="running the kernels' PTX needs nvcc and g++ on Linux",
    ),
]
KIND = {torch.float32: "false, 2", torch.bfloat16: "true, 1", torch.float16: "false, 1"}
ARCHES = ("90a", "80") if os.environ.get("CPR_PTX") == "all" else ("90a",)


@pytest.fixture(scope="module", params=ARCHES)
def kernels(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """All kernels of an architecture, compiled from PTX, in place of the emulated sources."""
    from cuda_tools import emulated
    from ptx.build import compiled, kernels_of

    core = emulated()
    found = {one.kernel.name: one for one in compiled(kernels_of(request.param).values())}
    for name, one in found.items():
        core.replace_kernel(name, one.address, one.stack)
    yield found
    core.restore_kernels()


@pytest.fixture
def core(kernels: dict[str, Any]) -> Any:
    """Threads shuffled between barriers."""
    from cuda_tools import emulated

    module = emulated()
    module.set_seed(7)
    module.set_limits(*H200 if has_clusters(kernels) else A100)
    return module


def has_clusters(kernels: dict[str, Any]) -> bool:
    """Is it sm_90a? Elsewhere the kernels for tiny calls are empty."""
    return kernels["tiny_kernel<false, 2>"].kernel.instructions > 100


def test_every_kernel_is_there(kernels: dict[str, Any]) -> None:
    written = {name.replace(", ", ",").replace("false", "0").replace("true", "1") for name in kernels}
    assert written == set(REGISTERS)


SMALL = [case for case in SMALL_CASES if case.name in (*gpu_small.SMALL, "bias")] + gpu_small.TILES


@pytest.mark.parametrize("case", SMALL, ids=name_of)
def test_cascades(core: Any, kernels: dict[str, Any], case: CascadeCase) -> None:
    call = case.call()
    for one in kernels.values():
        one.take_tally()
    same(native.run_on_stream(call, core, 0), reference.run(call))
    assert any(one.take_tally().instructions for one in kernels.values())
    if case in gpu_small.TILES:
        call = listed(call, 45)
        same(native.rerank_on_stream(call, core, 0), reference.rerank(call))


@pytest.mark.parametrize("dtype", gpu_small.DTYPES, ids=str)
def test_scores_by_wgmma(core: Any, kernels: dict[str, Any], dtype: torch.dtype) -> None:
    """Bit for bit those of the other kernels, of real features in two and in one block of 64."""
    if not has_clusters(kernels):
        pytest.skip("wgmma is of sm_90a")
    kernel = kernels[f"score_wgmma_kernel<{KIND[dtype]}>"]
    call, kernel_ran = odd_features(dtype), []
    answers = []
    for parts, splits in ((0, 2), (1, 2), (1, 0)):
        core.cuda_tune(wgmma_parts=parts, key_splits=splits)
        kernel.take_tally()
        answers.append(native.run_on_stream(call, core, 0))
        kernel_ran.append(kernel.take_tally().instructions > 0)
    core.cuda_tune()
    assert kernel_ran == [False, True, True]
    same(*answers[:2])
    same(*answers[1:])


@pytest.mark.parametrize(
    ("name", "kernel"),
    [
        ("both rows at once", "select_kernel<8>"),
        ("512 threads", "select_kernel<16>"),
        ("odd rows", None),
        ("ties", None),
    ],
)
def test_selection_by_codes(core: Any, kernels: dict[str, Any], name: str, kernel: str | None) -> None:
    """Bit for bit that by scores; in ring calls, and in tiny ones where the architecture has them."""
    call = CALLS[name]
    core.cuda_tune(**BY_SCORES)
    expected = native.run_on_stream(call, core, 0)
    core.cuda_tune()
    for one in kernels.values():
        one.take_tally()
    same(native.run_on_stream(call, core, 0), expected)
    assert kernel is None or kernels[kernel].take_tally().instructions > 0


@pytest.mark.parametrize(("dtype", "queries", "keys", "dims"), TINY_CALLS)
def test_tiny_calls(
    core: Any, kernels: dict[str, Any], dtype: torch.dtype, queries: int, keys: int, dims: tuple[int, ...]
) -> None:
    """Bit for bit those of ring calls."""
    if not has_clusters(kernels):
        pytest.skip("clusters are of sm_90a")
    call, kernel = odd_call(dtype, queries, keys, dims), kernels[f"tiny_kernel<{KIND[dtype]}>"]
    kernel.take_tally()
    got = native.run_on_stream(call, core, 0)
    assert kernel.take_tally().instructions > 0
    core.set_limits(*H200_SLICE)
    same(got, native.run_on_stream(call, core, 0))


LARGE = {"paper, UCF101": H200, "infinities, long": RTX, "bias, wide, long": H200_SLICE}


@pytest.mark.parametrize("case", [case for case in LARGE_CASES if case.name in LARGE], ids=name_of)
def test_large_cascades(kernels: dict[str, Any], case: CascadeCase) -> None:
    from cuda_tools import emulated

    core = emulated()
    core.set_seed(3)
    core.set_limits(*LARGE[case.name] if has_clusters(kernels) else A100)
    call = case.call()
    same(native.run_on_stream(call, core, 0), reference.run(call))


@pytest.mark.parametrize("case", gpu_small.DIMS, ids=name_of)
def test_losses(core: Any, kernels: dict[str, Any], case: LossCase) -> None:
    check_loss(core, case)
    if not has_clusters(kernels) or case.dim != 100:
        return
    planes = 2 if case.dtype == torch.float32 else 1
    with_and_without = [kernels[f"attend_wgmma_kernel<{planes}, {mode}>"] for mode in (2, 0)]
    for kernel in with_and_without:
        kernel.take_tally()
    core.cuda_tune(wgmma_parts=1)
    try:
        check_loss(core, case)
        ranked = losses.sweep_on_stream(case.call(), True, core, 0, True)
    finally:
        core.cuda_tune()
    assert torch.equal(ranked.stats, loss_reference.sweep(case.call(dtype=torch.float64), False, True).stats)
    assert all(kernel.take_tally().instructions > 0 for kernel in with_and_without)


def test_enqueue(core: Any) -> None:
    buffers, rows = (
        [torch.zeros(8, 5), torch.zeros(8, dtype=torch.int64)],
        [torch.ones(11, 5), torch.arange(11)],
    )
    pointer, count = torch.tensor(3), torch.tensor(3)
    enqueue.on_stream(buffers, pointer, count, rows, core, 0)
    assert buffers[1].tolist() == [5, 6, 7, 8, 9, 10, 3, 4] and (pointer.item(), count.item()) == (6, 8)


# Warp-instructions of PTX for a unit of work (ptx/counts.py), some percent above what is executed: a change that needs
# more says so here. python_tests/support/ptx_counts.py prints the counts.
BUDGETS = {
    ("score_kernel<false, 2, 64>", "tile"): 12_600,
    ("score_kernel<false, 2, 64>", "tile with ids"): 13_500,
    ("score_kernel<false, 2, 128>", "tile"): 20_000,
    ("score_kernel<false, 2, 128>", "tile with ids"): 21_500,
    ("score_kernel<true, 1, 64>", "tile"): 6_170,
    ("score_kernel<true, 1, 64>", "tile with ids"): 7_150,
    ("score_kernel<true, 1, 128>", "tile"): 10_350,
    ("score_kernel<true, 1, 128>", "tile with ids"): 11_900,
    ("score_wgmma_kernel<false, 2>", "tile of 64 x 256"): 6_350,
    ("score_wgmma_kernel<false, 2>", "tile of 64 x 256 with ids"): 9_060,
    ("score_wgmma_kernel<false, 2>", "256 keys and a first tile"): 26_350,
    ("score_wgmma_kernel<true, 1>", "tile of 64 x 256"): 2_600,
    ("score_wgmma_kernel<true, 1>", "tile of 64 x 256 with ids"): 5_530,
    ("score_wgmma_kernel<true, 1>", "256 keys and a first tile"): 6_390,
    ("prepare_kernel", "row of 128 numbers"): 80,
    ("prepare_kernel", "packed row of 128 numbers"): 99,
    ("prepare_kernel", "packed row of 128 16-bit numbers"): 94,
    ("select_kernel<8>", "query, N = 2,048"): 11_750,
    ("select_kernel<8>", "query, N = 4,096"): 12_750,
    ("select_kernel<16>", "query, N = 16,384"): 28_900,
    ("select_kernel<0>", "query, N = 16,384"): 70_200,
    ("tiny_kernel<false, 2>", "block of 16, 16 x 2,048"): 26_900,
    ("tiny_kernel<true, 1>", "block of 16, 16 x 2,048"): 16_300,
    ("attend_kernel<128, 0>", "warp and step of 32 keys"): 2_060,
    ("attend_kernel<128, 0>", "warp beside its steps"): 2_990,
    ("attend_wgmma_kernel<2, 0>", "step of 64 x 128"): 4_590,
    ("attend_wgmma_kernel<2, 0>", "64 queries and a first step"): 7_670,
    ("attend_wgmma_kernel<1, 0>", "step of 64 x 128"): 4_290,
    ("attend_wgmma_kernel<1, 0>", "64 queries and a first step"): 7_370,
    ("attend_kernel<128, 2>", "warp and step of 32 keys"): 2_480,
    ("attend_kernel<128, 2>", "warp beside its steps"): 3_520,
    ("attend_wgmma_kernel<2, 2>", "step of 64 x 128"): 10_500,
    ("attend_wgmma_kernel<2, 2>", "64 queries and a first step"): 16_000,
    ("attend_wgmma_kernel<1, 2>", "step of 64 x 128"): 10_200,
    ("attend_wgmma_kernel<1, 2>", "64 queries and a first step"): 15_700,
    ("finish_kernel", "query, 1,024 keys with ids"): 6_430,
    ("finish_kernel", "query, 32 parts, statistics"): 6_990,
    ("own_kernel", "query"): 133,
}

LENGTH = 3_300  # instructions of a kernel, whether executed or not
LONGER = {
    "attend_wgmma_kernel<2, 2>": 5_700, "attend_wgmma_kernel<1, 2>": 5_650, "attend_wide_kernel<1>": 4_250,
    "tiny_kernel<false, 2>": 4_200, "attend_wide_kernel<2>": 4_000, "attend_wide_kernel<0>": 3_450,
    "attend_kernel<64, 1>": 3_400, "attend_kernel<128, 1>": 3_800, "attend_kernel<256, 1>": 3_800,
    "attend_kernel<128, 2>": 3_650, "attend_kernel<256, 2>": 3_650,
}  # fmt: skip


def test_kernels_are_short(kernels: dict[str, Any]) -> None:
    """What does not fit the cache of instructions is fetched again and again, and takes long to compile."""
    for name, one in kernels.items():
        assert one.kernel.instructions <= LONGER.get(name, LENGTH), name
    assert kernels.keys() >= LONGER.keys() or not has_clusters(kernels)


def test_budgets(kernels: dict[str, Any]) -> None:
    from cuda_tools import emulated
    from ptx.counts import counts
    from ptx.predict import NOTES

    if not has_clusters(kernels):
        pytest.skip("budgets are of sm_90a")
    found = {(kernel, unit): of for kernel, unit, of in counts(emulated(), kernels)}
    assert found.keys() == BUDGETS.keys()
    notes = NOTES.read_text()
    for name, budget in BUDGETS.items():
        assert f"| `{name[0]}` | {name[1]} |" in notes, f"{NOTES} lacks {name}: ptx_counts.py --write"
        assert 0.8 * budget < found[name]["instructions"] <= budget, (name, found[name])


FAULTS = {  # what a kernel's body does, and the fault that is named; %rd1 is the address of a whole number
    "ld.global.u32 %r1, [%rd1+2];": "a misaligned access to global memory",
    "mov.u32 %r1, 4; ld.shared.u64 %rd2, [%r1];": "a misaligned access to shared memory",
    "mov.u32 %r1, 4096; st.shared.u32 [%r1], %r1;": "an access beyond the block's shared memory",
    "mov.u32 %r1, 4; st.shared::cluster.u32 [%r1], %r1;": "an address that is mapped to no block",
    "ld.global.u32 %r1, [96];": "an offset in shared memory",
    "bar.warp.sync 15;": "a warp-wide instruction without the whole warp",
}


def test_faults_are_seen(tmp_path: Path) -> None:
    """One kernel each in place of advance_kernel, in a forked process, for a fault ends it."""
    from cuda_tools import emulated
    from ptx.build import compiled
    from ptx.translate import kernels as translated

    core = emulated()
    names = [f"_ZN3cpr14advance_kernelE{i}" for i in range(len(FAULTS))]
    text = "".join(
        f".visible .entry {name}(\n.param .b8 {name}_param_0[672]\n)\n{{\n"
        f"ld.param.u64 %rd1, [{name}_param_0+656];\n{fault}\nret;\n}}\n"
        for name, fault in zip(names, FAULTS)
    )
    given = [torch.zeros(8, 5)], torch.tensor(3), torch.tensor(3), [torch.ones(2, 5)]
    made = [compiled([kernel])[0] for kernel in translated(text)]

    def planted(one: Any) -> None:
        core.restore_kernels()
        core.replace_kernel("advance_kernel", one.address, one.stack)
        enqueue.on_stream(*given, core, 0)

    for one, (body, expected) in zip(made, FAULTS.items()):
        said = last_words(partial(planted, one), tmp_path / "said")
        assert f"PTX fault: {expected}" in said, body
