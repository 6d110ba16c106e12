"""Faults planted in the CUDA kernels of the cascade, each of which the emulation must show as another answer."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cuda_tools import CUDA_SOURCES
from places import SUPPORT

import cpr_kernels

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("g++") is None, reason="the emulation needs g++ on Linux"
)
FAULTS = {
    "a copy not waited for": ("score.h", "copy_wait<STEPS - 2>();", "copy_wait<STEPS - 1>();"),
    "no barrier between two halves of a launch": ("tiny/tiny.h", "  arrive_at_cluster();\n  wait_for_cluster();  // all", "  // all"),
    "scores written to blocks that may not be there": ("tiny/tiny.h", "      wait_for_cluster();  // scores", "      // scores"),
    "queries read before all are split": ("tiny/tiny.h", "  sync_block();\n}", "}"),
    "the later of two ties first": ("select/bins.h", "indices[i] < indices[own]", "indices[i] > indices[own]"),
    "entries beyond the last key": ("select/ring.h", "+ n + thread] = float_of(ABSENT)", "+ n + thread] = 1e30f"),
    "entries that are absent by the other row alone": ("select/stages.h", "n < keep && !careful", "n > keep"),
    "the same, by codes": ("select/by_codes.h", "unordered(a.of[i], b.of[i])", "unordered(a.of[i], a.of[i])"),
    "a dropped entry that the next stage counts": ("select/by_codes.h", "ring, second);", "ring, false);"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_the_emulation_sees_a_planted_fault(fault: str, tmp_path: Path) -> None:
    """In a process of its own, for a faulty kernel may write anywhere."""
    shutil.copytree(CUDA_SOURCES.parent, tmp_path / "csrc")
    name, old, new = FAULTS[fault]
    source = tmp_path / "csrc" / "cuda" / name
    assert source.read_text().count(old) == 1
    source.write_text(source.read_text().replace(old, new))
    shared_by_tiny = ("tiny/tiny.h", "select/ring.h", "select/by_codes.h")
    unit = {"score.h": "cascade/cascade_topk.cu"}.get(name, "select/select.cu")
    if name in shared_by_tiny:
        unit = "tiny/tiny.cu"  # which serves small calls
    changed, built = tmp_path / "csrc" / "cuda" / unit, tmp_path / "built"
    built.mkdir()
    script = (
        "import cuda_tools, torch; from pathlib import Path\n"
        "from test_select_codes import CALLS\n"
        "from cases import ABSENT_BY_ANOTHER, ABSENT_IN_RING, SMALL_CASES; from cpr_kernels.mining import native, reference\n"
        f"core = cuda_tools.emulated_changed(Path({str(changed)!r}), Path({str(built)!r})); core.set_seed(7)\n"
        "def by(call, threads):\n"
        "    core.cuda_tune(select_threads=threads)\n"
        "    return native.run_on_stream(call, core, 0)\n"
        "calls = [case.call() for case in (ABSENT_BY_ANOTHER, ABSENT_IN_RING, *SMALL_CASES)]\n"
        "pairs = [(by(call, threads), reference.run(call)) for call in calls for threads in (1024, 0)]\n"
        "pairs += [(by(CALLS[name], 1024), by(CALLS[name], 0)) for name in ('both rows at once', 'odd rows')]\n"
        "raise SystemExit(0 if all(torch.equal(a[0], b[0]) for a, b in pairs) else 7)"
    )
    path = os.pathsep.join(map(str, (SUPPORT, Path(__file__).parent, Path(cpr_kernels.__file__).parents[1])))
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": path}, capture_output=True
    )
    assert done.returncode == 7 or done.returncode < 0, done.stderr.decode()
