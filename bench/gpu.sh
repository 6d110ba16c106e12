#!/usr/bin/env bash
# Everything that needs a GPU, in one run of at most nine minutes and without a network:
#   bash bench/gpu.sh OUT_FOLDER
# builds the core for the GPU at hand, tests both backends against the reference, runs compute-sanitizer, measures, and
# ends with a short table. Results are written as they come, so a run that is cut short still tells what it saw.
# Leaves with 1 when any answer was wrong, a tool found a fault, or something could not run; 2 when it cannot begin.
# Needs: an NVIDIA driver, nvcc, g++, cmake, ninja, and a Python with torch (CUDA), triton, pybind11, numpy, pytest.
# Takes what else is there: compute-sanitizer, pytest-timeout, and the libraries that `python -m bench` knows.
# Settings: PYTHON (python3), SECONDS_ALLOWED (530).
set -u -o pipefail

if [ $# -ne 1 ]; then
  echo "usage: bash bench/gpu.sh OUT_FOLDER" >&2
  exit 2
fi
REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd) || exit 2
mkdir -p "$1" || exit 2
OUT=$(cd "$1" && pwd) || exit 2
PY=${PYTHON:-python3}
ALLOWED=${SECONDS_ALLOWED:-530}
TABLE=$OUT/summary.txt
SCRATCH=$(mktemp -d) || exit 2  # what is built and compiled; OUT holds results only
trap 'rm -rf "$SCRATCH"' EXIT
SITE=$SCRATCH/site  # the package as it would be installed: sources and the core built here
IN_SITE=(env -C "$SITE" "PYTHONPATH=$SITE:$REPO/python_tests")
FAULTS=$OUT/faults.txt  # a line for everything that was not right; a file, since steps may run side by side
: > "$TABLE"
: > "$FAULTS"
rm -f "$OUT"/*.log "$OUT"/*.xml  # of an earlier run
command -v nvcc > /dev/null || PATH=$PATH:${CUDA_HOME:-/usr/local/cuda}/bin
command -v compute-sanitizer > /dev/null || PATH=$PATH:${CUDA_HOME:-/usr/local/cuda}/bin
export OMP_WAIT_POLICY=passive TRITON_CACHE_DIR="$SCRATCH/triton" TORCHINDUCTOR_CACHE_DIR="$SCRATCH/inductor" PYTHONDONTWRITEBYTECODE=1

left() { echo $((ALLOWED - SECONDS)); }

# step NAME MOST_SECONDS COMMAND...: run within the time that is left, log to NAME.log, add a line to the table.
# A step that cannot be given 10 seconds is not begun, and counts as wrong: what was not run was not shown.
step() {
  local name=$1 most=$2 began=$SECONDS code verdict note
  shift 2
  if [ "$(left)" -lt 10 ]; then
    code=125 verdict="NOT RUN" note="no time left"
  else
    [ "$(left)" -lt "$most" ] && most=$(left)
    timeout -k 5 "$most" "$@" > "$OUT/$name.log" 2>&1
    code=$?
    case $code in
      0) verdict=ok ;;
      124 | 137) verdict="TIMED OUT" ;;
      *) verdict=FAILED ;;
    esac
    note=$(grep -E "passed|failed|skipped|ERROR SUMMARY|RACECHECK SUMMARY|wrong$|rror:" "$OUT/$name.log" |
      tail -1 | cut -c1-100)
  fi
  [ "$code" -eq 0 ] || [ "${FORGIVEN:-}" = "$name" ] || echo "$name: $verdict" >> "$FAULTS"
  printf '%-24s %-9s %4ds  %s\n' "$name" "$verdict" $((SECONDS - began)) "$note" | tee -a "$TABLE"
  if [ "$code" -ne 0 ] && [ -f "$OUT/$name.log" ]; then
    grep -E "^FAILED|^ERROR|^bench:|WRONG|rror:|=========" "$OUT/$name.log" | head -12 | sed 's/^/    /' | tee -a "$TABLE"
  fi
  return "$code"
}

# What machine, what tools: the first thing to read when something is off.
machine() {
  nvidia-smi --query-gpu=name,driver_version,compute_cap,memory.total --format=csv || return 1
  nvcc --version | tail -2
  git -C "$REPO" log -1 --format='commit %H' 2> /dev/null
  "$PY" - << 'END'
import sys, torch
print("python", sys.version.split()[0], "torch", torch.__version__)
assert torch.cuda.is_available(), "torch sees no CUDA device"
p = torch.cuda.get_device_properties(0)
print(p.name, "capability", (p.major, p.minor), "multiprocessors", p.multi_processor_count, "L2", p.L2_cache_size)
try:
    import triton
    print("triton", triton.__version__)
except ImportError:
    print("no triton")
END
}

build() {
  local cap arch
  local -a IN_SITE=(env -C "$SITE" "PYTHONPATH=$SITE:$REPO/python_tests")  # arrays are not exported
  cap=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -1 | tr -d '. ') || return 1
  arch=$cap-real
  [ "$cap" = 90 ] && arch=90a-real
  mkdir -p "$SITE" || return 1
  cp -r "$REPO/cpr_kernels" "$SITE/cpr_kernels" && rm -f "$SITE"/cpr_kernels/_core*.so
  ln -sfn "$REPO/bench" "$SITE/bench"
  cmake -S "$REPO" -B "$SCRATCH/build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DCPR_CUDA=ON -DCPR_CUDA_ARCHITECTURES="$arch" \
    -DPython_EXECUTABLE="$("$PY" -c 'import sys; print(sys.executable)')" \
    -Dpybind11_DIR="$("$PY" -m pybind11 --cmakedir)" || return 1
  cmake --build "$SCRATCH/build" || return 1
  cp "$SCRATCH"/build/_core*.so "$SITE/cpr_kernels/" || return 1
  "${IN_SITE[@]}" "$PY" -c "
import torch
from cpr_kernels import _core
reason = _core.cuda_unavailable()
assert not reason, reason
print('limits (capability, shared memory, L2):', _core.cuda_limits())"
}

# tests NAME MOST_SECONDS SELECTION...: the GPU tests that the selection names. The options of pyproject.toml are left
# out: they ask for plugins that a GPU machine may not have.
tests() {
  local name=$1 most=$2
  shift 2
  step "$name" "$most" "${IN_SITE[@]}" "$PY" -m pytest -q -ra -p no:cacheprovider -c "$REPO/pyproject.toml" -o addopts= \
    --rootdir "$REPO" "${PLUGINS[@]}" --maxfail 40 --junitxml "$OUT/$name.xml" "$REPO/python_tests/test_gpu.py" "$@"
  if ! grep -q " passed" "$OUT/$name.log" 2> /dev/null || grep -q " skipped" "$OUT/$name.log"; then
    echo "    $name: tests were skipped or none passed, see $name.log" | tee -a "$TABLE"
    echo "$name: skipped or none passed" >> "$FAULTS"
  fi
}

# sanitize TOOL MOST_SECONDS: small shapes through every native kernel; every allocation its own, so that a step beyond
# one is seen
sanitize() {
  step "$1" "$2" "${IN_SITE[@]}" PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$1" --error-exitcode 9 \
    "$PY" "$REPO/python_tests/gpu_small.py" quick
}

# figures NAME MOST_SECONDS COMMAND...: a step that measures; what takes too long is missing, not wrong
figures() {
  FORGIVEN=$1 step "$@"
  case $? in 0 | 124 | 125 | 137) ;; *) echo "$1: FAILED" >> "$FAULTS" ;; esac
}

# measure NAME MOST_SECONDS ARGUMENTS...: the benchmarks; the workloads that were done are in results/NAME all the same
measure() {
  local name=bench_$1 most=$2
  shift 2
  figures "$name" "$most" "${IN_SITE[@]}" "$PY" -m bench --device cuda --out "$OUT/results/$name" "$@"
}

# `timeout` runs commands, not functions: these two go through a shell that knows them
export REPO OUT PY SITE SCRATCH
export -f machine build
step machine 60 bash -c machine || { echo "no usable GPU: nothing else can be shown" | tee -a "$TABLE"; exit 1; }
step build 150 bash -c build || { echo "the core does not build here: see build.log" | tee -a "$TABLE"; exit 1; }

PLUGINS=()
"$PY" -c "import pytest_timeout" 2> /dev/null && PLUGINS+=(--timeout 120)

# Triton's tests spend their time compiling, a kernel for every schedule of the table: beside the steps that follow, and
# before anything is timed
tests triton_cases 240 -k "triton and cascade_equals" > /dev/null &
TRITON_CASES=$!
tests triton_rest 240 -k "triton and not cascade_equals and not graph and not waits and not can_run" > /dev/null &
TRITON_REST=$!

# answers first, from the simplest: a failure in an early line explains those in later ones
step smoke 60 "${IN_SITE[@]}" "$PY" "$REPO/python_tests/gpu_small.py"
tests native 120 -k "native and not graph and not waits"
NATIVE_FAULTS=$(grep -c -E "^(smoke|native):" "$FAULTS")
tests graphs_and_streams 60 -k "graph or waits or memory or enqueue"
if command -v compute-sanitizer > /dev/null; then
  sanitize memcheck 60
  sanitize racecheck 60
  sanitize synccheck 40
  sanitize initcheck 40
else
  echo "compute-sanitizer          MISSING: memory errors and races were not looked for" | tee -a "$TABLE"
  echo "compute-sanitizer: missing" >> "$FAULTS"
fi
wait "$TRITON_CASES" "$TRITON_REST"
tests torch_tools 60 -k "opcheck or compile or can_run"
# figures last, where the native answers were right; the harness checks every peer's answer again before it is timed.
# The shapes with a goal first: eager and graphed, warm and cold L2, beside strong torch and the matmuls alone
if [ "$NATIVE_FAULTS" -eq 0 ]; then
  GOALS=(--workload ucf-b16 --workload k400-b64 --workload k400-b512)
  measure cascade 60 --op cascade --no-compile --budget 3 "${GOALS[@]}"
  measure loss 60 --op loss --no-compile --budget 3 "${GOALS[@]}"
  figures tune 50 "${IN_SITE[@]}" "$PY" -m bench.gpu_tune --out "$OUT/results/tune.md"
  measure cascade_all 120 --op cascade --no-growth --budget 2
  measure loss_all 90 --op loss --no-growth --budget 2
  measure train_step 40 --op train_step --no-growth --budget 2
else
  echo "bench                      NOT RUN: no figures beside wrong answers" | tee -a "$TABLE"
fi

echo
echo "== $OUT/summary.txt, after $SECONDS s"
cat "$TABLE"
for report in "$OUT"/results/bench_cascade/report.md "$OUT"/results/bench_loss/report.md "$OUT"/results/tune.md; do
  [ -f "$report" ] && head -30 "$report"
done
if [ -s "$FAULTS" ]; then
  echo "NOT all right:"
  sed 's/^/    /' "$FAULTS"
  exit 1
fi
echo "all right"
