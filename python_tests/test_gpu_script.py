"""bench/gpu.sh with stand-ins for the tools of a GPU machine: what it runs, what it ends with, that it ends in time."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "bench" / "gpu.sh"
pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("bash") is None, reason="the script is for bash on Linux"
)
TOOLS = {
    "nvidia-smi": 'case "$*" in *noheader*) echo 9.0;; *) echo name;; esac',
    "nvcc": "echo release",
    "cmake": 'case "$1" in --build) touch "$2/_core.x.so";; -S) mkdir -p "$4";; esac',
    "compute-sanitizer": 'if [ "$2" = "$BAD" ]; then echo "===== ERROR SUMMARY: 1 error"; exit 9; fi',
    "python": """
case "$*" in
  -) cat > /dev/null; [ "$BAD" != machine ];;
  *"-m pybind11"* | *sys.executable*) echo x;;
  *"import torch"*) [ "$BAD" != build ];;
  *pytest_timeout*) exit 1;;
  *"-m pytest"*)
    name=$(echo "$*" | sed 's/.*\\/\\([a-z_]*\\).xml.*/\\1/')
    [ "$SLOW" = "$name" ] && sleep 60
    [ "$BAD" = "$name" ] && { echo "FAILED x"; echo "1 failed, 3 passed"; exit 1; }
    [ "$BAD" = "skipped $name" ] && { echo "3 passed, 1 skipped"; exit 0; }
    echo "4 passed";;
  *gpu_small*) [ "$BAD" != smoke ] && echo "0 wrong";;
  *"-m bench.gpu_tune"*) [ "$BAD" != tune ];;
  *"-m bench"*) [ "$SLOW" = bench ] && sleep 60; [ "$BAD" != bench ];;
  *) exit 3;;
esac""",
}


def run(tmp_path: Path, bad: str = "", slow: str = "", seconds: int = 60) -> tuple[int, str, Path]:
    """The script's exit status, what it printed and its output folder; one tool goes wrong or takes a minute."""
    tools, out = tmp_path / "tools", tmp_path / "out"
    tools.mkdir(exist_ok=True)
    for name, text in TOOLS.items():
        (tools / name).write_text(f"#!/bin/bash\n{text}\n")
        (tools / name).chmod(0o755)
    env = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "PYTHON": str(tools / "python")}
    env |= {"BAD": bad, "SLOW": slow, "SECONDS_ALLOWED": str(seconds)}
    done = subprocess.run(
        ["bash", SCRIPT, out], env=env, capture_output=True, text=True, timeout=120, check=False
    )
    return done.returncode, done.stdout + done.stderr, out


def test_all_right(tmp_path: Path) -> None:
    code, said, out = run(tmp_path)
    assert code == 0, said
    assert said.rstrip().endswith("all right") and "NOT" not in said
    steps = [line.split()[:2] for line in (out / "summary.txt").read_text().splitlines()]
    assert all(verdict == "ok" for _, verdict in steps)
    assert {"native", "triton_cases", "triton_rest", "graphs_and_streams", "torch_tools"} < {
        n for n, _ in steps
    }
    assert {"memcheck", "racecheck", "synccheck", "initcheck", "bench_cascade", "bench_loss"} < {
        n for n, _ in steps
    }


@pytest.mark.parametrize(
    "bad",
    [
        "machine",
        "build",
        "smoke",
        "native",
        "skipped triton_rest",
        "triton_cases",
        "racecheck",
        "bench",
        "tune",
    ],
)
def test_a_fault_is_named_and_ends_with_1(tmp_path: Path, bad: str) -> None:
    code, said, out = run(tmp_path, bad)
    assert code == 1 and re.search(rf"{bad.split()[-1]}\S*:? +(FAILED|skipped)", said), said
    assert ("bench_cascade" in said) == (bad not in ("machine", "build", "smoke", "native"))
    assert (out / "summary.txt").read_text() in said


def test_slow_tests_are_cut_and_slow_figures_are_only_missing(tmp_path: Path) -> None:
    folders = [tmp_path / slow for slow in ("native", "bench")]
    for folder in folders:
        folder.mkdir()
    began = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        ended = list(pool.map(lambda folder: run(folder, slow=folder.name, seconds=13), folders))
    assert [code for code, _, _ in ended] == [1, 0], ended
    assert all("TIMED OUT" in said and "NOT RUN" in said for _, said, _ in ended)
    assert time.monotonic() - began < 50  # not the minute that the slow step wants


def test_a_missing_folder_is_said(tmp_path: Path) -> None:
    done = subprocess.run(["bash", SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith("usage: ")
