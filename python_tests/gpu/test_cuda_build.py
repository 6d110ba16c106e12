"""The CUDA part compiles and links for GPUs that are not here, within a budget of registers and memory."""

from __future__ import annotations

import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from cuda_tools import CUDA_SOURCES, Kernel, nvcc, report
from places import ROOT
from torch._subclasses.fake_tensor import FakeTensorMode

from cpr_kernels import _core, cascade_topk, coclr_schedule, explain, mil_nce
from cpr_kernels.dispatch.native import why_not_cuda

ARCHES = ("80", "90a")
# registers a thread may use, so that a multiprocessor's 65,536 serve the blocks that the kernel is written for
REGISTERS = {
    "score_kernel<0,2,128>": 255, "score_kernel<0,2,64>": 128, "score_kernel<0,2,16>": 128,
    "score_kernel<0,1,128>": 128, "score_kernel<0,1,64>": 128, "score_kernel<0,1,16>": 128,
    "score_kernel<1,1,128>": 128, "score_kernel<1,1,64>": 128, "score_kernel<1,1,16>": 128,
    "score_wgmma_kernel<0,2>": 224, "score_wgmma_kernel<1,1>": 224, "score_wgmma_kernel<0,1>": 224,
    "tiny_kernel<0,2>": 128, "tiny_kernel<0,1>": 128, "tiny_kernel<1,1>": 128, "select_kernel<0>": 64, "select_kernel<8>": 64,
    "select_kernel<16>": 64,
    "prepare_kernel": 64, "attend_kernel<64,0>": 168, "attend_kernel<128,0>": 255, "attend_kernel<256,0>": 255,
    "attend_kernel<64,1>": 168, "attend_kernel<128,1>": 255, "attend_kernel<256,1>": 255, "finish_kernel": 96,
    "attend_wide_kernel<0>": 255, "attend_wide_kernel<1>": 255, "attend_wide_kernel<2>": 255, "own_kernel": 64,
    "attend_wgmma_kernel<2,0>": 168, "attend_wgmma_kernel<1,0>": 168,  # of which the copying warps leave theirs to the others
    "attend_wgmma_kernel<2,2>": 168, "attend_wgmma_kernel<1,2>": 168,
    "attend_kernel<64,2>": 255, "attend_kernel<128,2>": 255, "attend_kernel<256,2>": 255,
    "gather_kernel<0>": 64, "gather_kernel<1>": 64, "gather_kernel<2>": 64, "copy_rows_kernel": 64, "advance_kernel": 64,
}  # fmt: skip

pytestmark = pytest.mark.timeout(900)  # compiling takes its time on a busy machine
needs_nvcc = pytest.mark.skipif(
    nvcc() is None, reason="nvcc is not on PATH: the CUDA part cannot be compiled here"
)


def installed() -> dict[str, list[Kernel]] | None:
    """ptxas's report from the log of `make .venv/.dev`, by architecture; None unless it built all files as they are."""
    log = ROOT / "build" / "install.log"
    newest = max(path.stat().st_mtime for path in CUDA_SOURCES.rglob("*") if path.is_file())
    if not log.is_file() or log.stat().st_mtime < newest:
        return None
    reports = {arch: report(log.read_text(errors="replace"), arch) for arch in ARCHES}
    complete = all({kernel.name for kernel in found} == set(REGISTERS) for found in reports.values())
    return reports if complete else None


def compiled(folder: Path) -> dict[str, list[Kernel]]:
    """The same after compiling all files and linking them."""

    def compile_one(arch: str, source: Path) -> tuple[str, str]:
        to = folder / f"{source.stem}_{arch}.o"
        command = [nvcc(), "-std=c++17", "-O3", f"-gencode=arch=compute_{arch},code=sm_{arch}", "-Xptxas=-v"]
        done = subprocess.run(
            [*command, "-Xcompiler=-fPIC", "-c", source, "-o", to], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return arch, done.stdout + done.stderr

    jobs = [(arch, source) for arch in ARCHES for source in sorted(CUDA_SOURCES.rglob("*.cu"))]
    with ThreadPoolExecutor(2) as pool:
        outputs = list(pool.map(lambda job: compile_one(*job), jobs))
    for arch in ARCHES:
        objects = sorted(folder.glob(f"*_{arch}.o"))
        library = folder / f"lib_{arch}.so"
        subprocess.run([nvcc(), "-shared", "-cudart", "static", "-o", library, *objects], check=True)
    return {
        arch: [kernel for of, text in outputs if of == arch for kernel in report(text, arch)]
        for arch in ARCHES
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Kernel]]:
    """ptxas's report of every kernel by architecture: of the installed core, else of a build of its own."""
    return installed() or compiled(tmp_path_factory.mktemp("cuda"))


@needs_nvcc
@pytest.mark.parametrize("arch", ARCHES)
def test_every_kernel_keeps_to_its_budget(built: dict[str, list[Kernel]], arch: str) -> None:
    assert {kernel.name for kernel in built[arch]} == set(REGISTERS)
    for kernel in built[arch]:
        assert kernel.spill_bytes == 0 and kernel.stack_bytes == 0, kernel
        assert kernel.registers <= REGISTERS[kernel.name], kernel


@needs_nvcc
def test_the_report_is_read_right() -> None:
    text = (
        "ptxas info    : Compiling entry function '_ZN3cpr12_score_kernelILb0ELi2ELi64EEEvNS_9ScoreArgsE' for 'sm_80'\n"
        "ptxas info    : Function properties for x\n"
        "    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads\n"
        "ptxas info    : Used 128 registers, used 1 barriers\n"
    )
    assert report(text.replace("12_score", "12score"), "80") == [Kernel("score_kernel<0,2,64>", 128, 8, 16)]


def test_files_are_short_and_say_what_they_are() -> None:
    for path in sorted(path for path in CUDA_SOURCES.rglob("*") if path.is_file()):
        lines = path.read_text().splitlines()
        assert len(lines) <= 500, path
        assert lines[0].startswith("// "), path
        assert max(map(len, lines)) <= 110, path


def test_the_core_imports_without_a_driver_and_says_what_is_missing() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    reason = why_not_cuda(torch.device("cuda", 0))
    assert reason is not None
    if hasattr(_core, "cuda_unavailable"):
        assert "CUDA runtime finds no device" in reason
    else:
        assert "no CUDA kernels" in reason and "nvcc" in reason


def test_explain_names_the_reason_for_cuda_tensors(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with FakeTensorMode():
        query, keys = torch.empty(3, 8, device="cuda"), torch.empty(20, 8, device="cuda")
        explain(cascade_topk, {"rgb": query}, {"rgb": keys}, coclr_schedule("rgb"))
        explain(mil_nce, query, query, keys)
    printed = capsys.readouterr().out
    assert len(re.findall(r"^    native +\S", printed, flags=re.MULTILINE)) == 2
    assert len(re.findall(r"^ -> ", printed, flags=re.MULTILINE)) == 2
