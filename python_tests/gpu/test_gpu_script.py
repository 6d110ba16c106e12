"""bench/gpu.sh with stand-ins for the tools of a GPU machine: what it runs, what it ends with, that it ends in time."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from places import ROOT

SCRIPT = ROOT / "bench" / "gpu.sh"
pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("bash") is None, reason="the script is for bash on Linux"
)
TOOLS = {
    "nvidia-smi": 'case "$*" in *noheader*) echo 9.0;; *) echo name;; esac',
    "nvcc": "echo release",
    "cmake": 'case "$1" in --build) touch "$2/_core.x.so";; -S) mkdir -p "$4";; esac',
    "compute-sanitizer": """
[ "$BAD" = "blind $2" ] && exit 0
[ "$BAD" = "$2" ] && { echo "===== ERROR SUMMARY: 1 error"; exit 9; }
echo "===== ERROR SUMMARY: 0 errors\"""",
    "ncu": "echo profiled; exit 1",
    "python": """
case "$*" in
  -) cat > /dev/null; [ "$BAD" != machine ];;
  *"-m pybind11"* | *sys.executable*) echo x;;
  *"import torch"*) [ "$BAD" != build ];;
  *pytest_timeout*) exit 1;;
  *xdist*) [ "$BAD" = "" ];;
  *sysconfig*) echo /nowhere;;
  *"-m pytest"*)
    name=$(echo "$*" | sed 's/.*\\/\\([a-z_]*\\).xml.*/\\1/')
    [ "$SLOW" = "$name" ] && sleep 60
    [ "$BAD" = "$name" ] && { echo "FAILED x"; echo "1 failed, 3 passed"; exit 1; }
    [ "$BAD" = "skipped $name" ] && { echo "3 passed, 1 skipped"; exit 0; }
    echo "$PYTHONPATH" "$@"
    echo "4 passed";;
  *gpu_small*) [ "$BAD" != smoke ] && echo "0 wrong";;
  *"-m bench gpu-tune"*) [ "$BAD" != tune ];;
  *"-m bench"*)
    [ "$SLOW" = bench ] && sleep 60
    folder=$(echo "$*" | sed 's/.*--out \\([^ ]*\\).*/\\1/')
    mkdir -p "$folder/deep/er"; echo figures > "$folder/report.md"; echo curve > "$folder/deep/er/curve (N).png"
    [ "$BAD" = "a peer" ] && { echo "REFUSED liger-kernel: off"; echo "1 wrong answers were refused"; exit 1; }
    [ "$BAD" = ours ] && { echo "REFUSED cpr_kernels: off"; echo "1 wrong answers were refused"; exit 1; }
    [ "$BAD" != bench ];;
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
    env |= {"BAD": bad, "SLOW": slow, "SECONDS_ALLOWED": str(seconds), "PYTHONPATH": "/brought/along"}
    done = subprocess.run(
        ["bash", SCRIPT, out], env=env, capture_output=True, text=True, timeout=120, check=False
    )
    return done.returncode, done.stdout + done.stderr, out


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, str, Path]:
    """A run in which all is well, after an earlier one into the same folder."""
    folder = tmp_path_factory.mktemp("good")
    (folder / "out").mkdir()
    (folder / "out" / "tune.md").write_text("of an earlier run")
    return run(folder)


def test_all_right(good: tuple[int, str, Path]) -> None:
    code, said, out = good
    assert code == 0, said
    assert said.rstrip().endswith("all right") and "NOT" not in said
    steps = [line.split()[:2] for line in (out / "summary.txt").read_text().splitlines()]
    assert all(verdict == "ok" for name, verdict in steps if name != "profile")
    assert {"native", "triton_cases", "triton_rest", "graphs_and_streams", "torch_tools"} < {
        n for n, _ in steps
    }
    assert {"memcheck", "racecheck", "synccheck", "initcheck", "bench_cascade", "bench_loss"} < {
        n for n, _ in steps
    }
    logs = (out / "logs.txt").read_text()
    assert re.search(r"^\S+/site:\S+/python_tests/support:/brought/along -m pytest", logs, re.MULTILINE)
    assert all(f"===== {name}" in logs for name, _ in steps)


def test_a_few_plain_files_hold_everything(good: tuple[int, str, Path]) -> None:
    """What a remote runner brings back: at most eight files, two folders down, names without spaces."""
    _, _, out = good
    found = sorted(str(path.relative_to(out)) for path in out.rglob("*"))
    assert found == ["cascade.md", "faults.txt", "logs.txt", "loss.md", "results.tar.gz", "summary.txt"]
    assert (out / "cascade.md").read_text() == "figures\n"
    with tarfile.open(out / "results.tar.gz") as archive:
        names = archive.getnames()
    assert {"results/bench_cascade/report.md", "results/bench_train_step/deep/er/curve (N).png"} <= set(names)


def test_a_wrong_answer_of_another_library_is_said_and_does_not_count(tmp_path: Path) -> None:
    code, said, _ = run(tmp_path, "a peer")
    assert code == 0 and "REFUSED liger-kernel" in said


def test_the_selections_are_all_tests_of_the_gpu_once() -> None:
    """Every test of test_gpu.py runs in one step, and none in two."""
    selections = re.findall(r'^tests \w+ \d+ -k "([^"]+)"', SCRIPT.read_text(), re.MULTILINE)
    assert len(selections) == 6
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-o", "addopts=", str(ROOT / "python_tests" / "gpu" / "test_gpu.py")],
        capture_output=True,
        text=True,
        check=True,
    )  # fmt: skip
    tests = [line.split("::")[1] for line in done.stdout.splitlines() if "::" in line]
    assert len(tests) > 200

    def selected(expression: str, test: str) -> bool:
        words = re.sub(
            r"[a-z_]+",
            lambda word: word[0] if word[0] in ("and", "or", "not") else str(word[0] in test.lower()),
            expression,
        )
        return bool(eval(words))

    for test in tests:
        assert sum(selected(expression, test) for expression in selections) == 1, test


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
        "blind memcheck",
        "bench",
        "ours",
        "tune",
    ],
)
def test_a_fault_is_named_and_ends_with_1(tmp_path: Path, bad: str) -> None:
    code, said, out = run(tmp_path, bad)
    named = {"ours": "bench_cascade", "blind memcheck": "memcheck"}.get(bad, bad.split()[-1])
    assert code == 1 and re.search(rf"{named}\S*:? +(FAILED|skipped|ended without|no summary)", said), said
    assert ("bench_cascade" in said) == (bad not in ("machine", "build", "smoke", "native"))
    assert (out / "summary.txt").read_text() in said


def test_slow_tests_are_cut_and_slow_figures_are_only_missing(tmp_path: Path) -> None:
    folders = [tmp_path / slow for slow in ("native", "bench")]
    for folder in folders:
        folder.mkdir()
    with ThreadPoolExecutor(2) as pool:
        ended = list(pool.map(lambda folder: run(folder, slow=folder.name, seconds=20), folders))
    assert [code for code, _, _ in ended] == [1, 0], ended
    assert all("TIMED OUT" in said and "NOT RUN" in said for _, said, _ in ended)


def test_a_missing_folder_is_said(tmp_path: Path) -> None:
    done = subprocess.run(["bash", SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith("usage: ")
