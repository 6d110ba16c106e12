"""bench/gpu.sh with stand-ins for the tools of a GPU machine: what it runs, in which order, and what it ends with."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
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
    "cmake": 'case "$1" in --build) echo compiled; touch "$2/_core.x.so";; -S) mkdir -p "$4";; esac',
    # what takes too long is cut at once
    "timeout": """
shift 3
[ -n "$SLOW" ] && case "$*" in *"$SLOW"*) exit 124;; esac
exec "$@"
""",
    "compute-sanitizer": """
[ "$BAD" = "blind $2" ] && exit 0
[ "$BAD" = "wrong under $2" ] && exit 1
where=
[ "$BAD" = "torch's $2" ] && where="void at::native::sort_kernel<int>(int *)"
[ "$BAD" = "our $2" ] && where="void cpr::select_kernel<(int)2>(cpr::SelectArgs)"
[ -n "$where" ] && case $2 in
  racecheck) echo "========= Error: Race reported between Write access at $where+0x5b0"
    echo "=========     and Read access at $where+0x7f0 [16 hazards]"
    echo "========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)"; exit;;
  *) echo "========= Invalid __global__ read of size 4 bytes"
    echo "=========     at $where+0x160"
    echo "=========         Host Frame: cpr::launch<cpr::SelectArgs> in _core.so"
    echo "========= ERROR SUMMARY: 1 error"; exit;;
esac
echo "========= ERROR SUMMARY: 0 errors\"""",
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
    [ "$BAD" = "$name" ] && { echo "FAILED x"; echo "1 failed, 3 passed"; exit 1; }
    [ "$BAD" = "skipped $name" ] && { echo "3 passed, 1 skipped"; exit 0; }
    echo "$PYTHONPATH" "$@" "wgmma=$CPR_CUDA_WGMMA"
    echo "4 passed";;
  *"gpu_small.py quick"*) [ "$BAD" != smoke_wgmma ] && echo "0 wrong";;
  *gpu_small*) [ "$BAD" != smoke ] && echo "0 wrong";;
  *"-m bench gpu-tune"*) [ "$BAD" != tune ];;
  *"-m bench"*)
    folder=$(echo "$*" | sed 's/.*--out \\([^ ]*\\).*/\\1/')
    mkdir -p "$folder/deep/er"; echo figures > "$folder/report.md"; echo curve > "$folder/deep/er/curve (N).png"
    [ "$BAD" = "a peer" ] && { echo "REFUSED liger-kernel: off"; echo "1 wrong answers were refused"; exit 1; }
    [ "$BAD" = ours ] && { echo "REFUSED cpr_kernels: off"; echo "1 wrong answers were refused"; exit 1; }
    [ "$BAD" != bench ];;
  *) exit 3;;
esac""",
}


def call(tmp_path: Path, *arguments: str | Path, **settings: str) -> tuple[int, str]:
    """The script's exit status and what it printed, run with the stand-ins."""
    tools = tmp_path / "tools"
    tools.mkdir(exist_ok=True)
    for name, text in TOOLS.items():
        (tools / name).write_text(f"#!/bin/bash\n{text}\n")
        (tools / name).chmod(0o755)
    env = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "PYTHON": str(tools / "python")}
    env |= {"BAD": "", "SLOW": "", "PYTHONPATH": "/brought/along", "CORE": str(tmp_path / "core"), **settings}
    done = subprocess.run(["bash", SCRIPT, *arguments], env=env, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def run(tmp_path: Path, bad: str = "", **settings: str) -> tuple[int, str, Path]:
    """The same of a run into a folder, and the folder; one tool goes wrong."""
    out = tmp_path / "out"
    return (*call(tmp_path, out, BAD=bad, **settings), out)


def steps_of(out: Path) -> list[str]:
    """The steps of a run's table, in their order."""
    return re.findall(
        r"^(\w+) +(?:ok|FAILED|TIMED OUT|NOT RUN) ", (out / "summary.txt").read_text(), re.MULTILINE
    )


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
    steps = steps_of(out)
    beside = {
        "triton_cases",
        "triton_rerank",
        "triton_rest",
        "memcheck",
        "racecheck",
        "synccheck",
        "initcheck",
    }
    ordered = [
        "machine",
        "build",
        "smoke",
        "smoke_wgmma",
        "native",
        "graphs_and_streams",
        "bench_cascade",
        "bench_loss",
        "tune",
        "profile",
        "torch_tools",
    ]
    last = ["bench_cascade_all", "bench_loss_all", "bench_train_step"]
    assert (steps[:11], set(steps[11:18]), steps[18:]) == (ordered, beside, last)
    assert (
        len(re.findall(r"^\w+ +ok ", (out / "summary.txt").read_text(), re.MULTILINE)) == len(steps) - 1
    )  # ncu is none
    logs = (out / "logs.txt").read_text()
    assert re.search(r"^\S+/site:\S+/python_tests/support:/brought/along -m pytest", logs, re.MULTILINE)
    assert all(f"===== {name}" in logs for name in steps)


def test_a_few_plain_files_hold_everything(good: tuple[int, str, Path]) -> None:
    """What a remote runner brings back: at most eight files, two folders down, names without spaces."""
    _, _, out = good
    found = sorted(str(path.relative_to(out)) for path in out.rglob("*"))
    assert found == ["cascade.md", "faults.txt", "logs.txt", "loss.md", "results.tar.gz", "summary.txt"]
    assert (out / "cascade.md").read_text() == "figures\n"
    with tarfile.open(out / "results.tar.gz") as archive:
        names = archive.getnames()
    assert {"results/bench_cascade/report.md", "results/bench_train_step/deep/er/curve (N).png"} <= set(names)


def test_a_prebuilt_core_is_used_while_its_sources_are_these(tmp_path: Path) -> None:
    core = tmp_path / "core"
    code, said = call(tmp_path, "--core", core, "80-real")
    assert code == 0 and {path.name for path in core.iterdir()} == {"_core.x.so", "sources"}, said
    _, _, out = run(tmp_path, PARTS="")
    logs = (out / "logs.txt").read_text()
    assert f"the prebuilt core of {core} is used" in logs and "compiled" not in logs
    (core / "sources").write_text("of another state\n")
    _, _, out = run(tmp_path, PARTS="")
    assert "compiled" in (out / "logs.txt").read_text() and steps_of(out) == ["machine", "build"]


def test_a_second_run_takes_the_parts_that_are_left(tmp_path: Path) -> None:
    code, said, out = run(tmp_path, PARTS="figures")
    assert code == 0, said
    assert steps_of(out) == ["machine", "build", "bench_cascade", "bench_loss", "tune", "profile"]


@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_faults_of_other_kernels_are_said_and_do_not_count(tmp_path: Path, tool: str) -> None:
    code, said, _ = run(tmp_path, f"torch's {tool}", PARTS="tools")
    assert code == 0 and f"{tool}: faults in kernels of others only" in said


def test_a_wrong_answer_of_another_library_is_said_and_does_not_count(tmp_path: Path) -> None:
    code, said, _ = run(tmp_path, "a peer")
    assert code == 0 and "REFUSED liger-kernel" in said


def test_the_selections_are_all_tests_of_the_gpu_once() -> None:
    """Every test of test_gpu.py runs in one step, and none in two."""
    selections = re.findall(r'^ *tests \w+ \d+ -k "([^"]+)"', SCRIPT.read_text(), re.MULTILINE)
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
    ("bad", "parts"),
    [
        ("machine", "native"),
        ("build", "native"),
        ("smoke", "native figures"),
        ("native", "native figures"),
        ("bench", "figures"),
        ("ours", "figures"),
        ("tune", "figures"),
        ("triton_cases", "tools"),
        ("skipped triton_rest", "tools"),
        ("our racecheck", "tools"),
        ("our initcheck", "tools"),
        ("wrong under synccheck", "tools"),
        ("blind memcheck", "tools"),
    ],
)
def test_a_fault_is_named_and_ends_with_1(tmp_path: Path, bad: str, parts: str) -> None:
    code, said, out = run(tmp_path, bad, PARTS=parts)
    named = {"ours": "bench_cascade"}.get(bad, bad.split()[-1])
    assert code == 1 and re.search(rf"{named}\S*:? +(FAILED|skipped|ended without|no summary)", said), said
    assert ("bench_cascade" in said) == (parts == "figures")  # none beside wrong answers
    assert (out / "summary.txt").read_text() in said


def test_kernels_of_9_0_that_are_wrong_are_left_out_of_the_rest(tmp_path: Path) -> None:
    code, said, out = run(tmp_path, "smoke_wgmma", PARTS="native figures")
    assert code == 1 and re.search(r"^smoke_wgmma +FAILED", said, re.MULTILINE)
    assert steps_of(out)[-1] == "profile"  # figures all the same
    ran = re.findall(r"-m pytest.* wgmma=(.*)$", (out / "logs.txt").read_text(), re.MULTILINE)
    assert ran and set(ran) == {"0"}


def test_slow_tests_are_wrong_and_slow_figures_are_only_missing(tmp_path: Path) -> None:
    code, said, _ = run(tmp_path, PARTS="native", SLOW="native and not graph")
    assert code == 1 and re.search(r"^native +TIMED OUT", said, re.MULTILINE)
    code, said, _ = run(tmp_path, PARTS="figures", SLOW="-m bench measure")
    assert code == 0 and re.search(r"^bench_cascade +TIMED OUT", said, re.MULTILINE)


def test_what_no_time_is_left_for_is_not_run_and_wrong(tmp_path: Path) -> None:
    code, said, out = run(tmp_path, SECONDS_ALLOWED="9")
    assert code == 1 and "no time left" in said and steps_of(out) == ["machine"]


def test_a_missing_folder_is_said(tmp_path: Path) -> None:
    for arguments in ((), ("--core",), ("a", "b"), ("--other",)):
        code, said = call(tmp_path, *arguments)
        assert code == 2 and said.startswith("usage: ")
