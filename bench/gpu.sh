#!/usr/bin/env bash
# Everything that needs a GPU, in one run of at most nine minutes and without a network:
#   bash bench/gpu.sh OUT_FOLDER
# What is needed most comes first: the core for the GPU at hand (prebuilt where one fits, else compiled), its answers
# against the reference, times of the shapes with a goal, the planner's alternatives, executed instructions of every
# kernel; then, with the time that is left, Triton's tests, compute-sanitizer and all other shapes. Ends with a short
# table, and with 1 when any answer was wrong, a tool found a fault in our kernels, or something could not run; 2 when
# it cannot begin. In OUT_FOLDER, as they come, so a run that is cut short still says what it saw:
#   summary.txt (a line a step)  faults.txt (what was not right)  logs.txt (the end of every step's output)
#   cascade.md  loss.md  tune.md (tables)  results.tar.gz (all that the benchmarks and tests wrote, for bench/results)
# Needs: an NVIDIA driver, nvcc, g++, cmake, ninja, and a Python with torch (CUDA), triton, pybind11, numpy, pytest.
# Takes what else is there: compute-sanitizer, ncu, pytest-timeout, pytest-xdist, and the libraries that `python -m bench`
# knows (flashinfer, cuvs, faiss-gpu, cut-cross-entropy, liger-kernel, lightly, pytorch-metric-learning).
# Settings: PYTHON (python3), SECONDS_ALLOWED (530), PARTS (native figures tools more: those to run, after the core),
# CORE (build/gpu: the folder of a prebuilt core). To build it for $PYTHON where there is no GPU, nvcc enough:
#   bash bench/gpu.sh --core FOLDER [ARCHITECTURES, by default 90a-real]
set -u -o pipefail

usage() {
  echo "usage: bash bench/gpu.sh OUT_FOLDER, or bash bench/gpu.sh --core FOLDER [ARCHITECTURES]" >&2
  exit 2
}
case "${1:-}" in
  --core) [ $# -eq 2 ] || [ $# -eq 3 ] || usage ;;
  -* | "") usage ;;
  *) [ $# -eq 1 ] || usage ;;
esac
REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd) || exit 2
PY=${PYTHON:-python3}
ALLOWED=${SECONDS_ALLOWED:-530}
PARTS=${PARTS-native figures tools more}
CORE=${CORE:-$REPO/build/gpu}
SCRATCH=$(mktemp -d) || exit 2  # what is built and compiled, logs and results; OUT holds a few files only
trap 'rm -rf "$SCRATCH"' EXIT
SITE=$SCRATCH/site  # the package as it would be installed: sources and the core built here
# a PYTHONPATH that is there already holds packages brought along
IN_SITE=(env -C "$SITE" "PYTHONPATH=$SITE:$REPO/python_tests/support${PYTHONPATH:+:$PYTHONPATH}")
CUDA=${CUDA_HOME:-/usr/local/cuda}
PATH=$PATH:$CUDA/bin:$CUDA/compute-sanitizer
BESIDE_PYTHON=$("$PY" -c 'import sysconfig; print(sysconfig.get_path("scripts"))') && PATH=$PATH:$BESIDE_PYTHON  # cmake, ninja
export OMP_WAIT_POLICY=passive PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
export TRITON_CACHE_DIR="$SCRATCH/triton" TORCHINDUCTOR_CACHE_DIR="$SCRATCH/inductor" FLASHINFER_WORKSPACE_BASE="$SCRATCH"

# what a core is built from, as one number
sources() {
  (cd "$REPO" && find csrc CMakeLists.txt -type f | LC_ALL=C sort | xargs sha256sum | sha256sum | cut -d' ' -f1)
}

# core ARCHITECTURES FOLDER: compile the core and put it there, with the number of its sources beside it
core() {
  cmake -S "$REPO" -B "$SCRATCH/build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DCPR_CUDA=ON -DCPR_CUDA_ARCHITECTURES="$1" \
    -DPython_EXECUTABLE="$("$PY" -c 'import sys; print(sys.executable)')" \
    -Dpybind11_DIR="$("$PY" -m pybind11 --cmakedir)" || return 1
  cmake --build "$SCRATCH/build" || return 1
  mkdir -p "$2" && rm -f "$2"/_core*.so && cp "$SCRATCH"/build/_core*.so "$2/" && sources > "$2/sources"
}

if [ "$1" = --core ]; then
  core "${3:-90a-real}" "$2" && ls -l "$2"
  exit
fi
mkdir -p "$1" || exit 2
OUT=$(cd "$1" && pwd) || exit 2
TABLE=$OUT/summary.txt
FAULTS=$OUT/faults.txt  # a file, since steps may run side by side
LOGS=$SCRATCH/logs RESULTS=$SCRATCH/results
mkdir "$LOGS" "$RESULTS" || exit 2
(cd "$OUT" && rm -f logs.txt results.tar.gz cascade.md loss.md tune.md .new.*) # of an earlier run
: > "$TABLE"
: > "$FAULTS"
FEW=OMP_NUM_THREADS=4  # of every process, where many run side by side

wants() { [[ " $PARTS " == *" $1 "* ]]; }
left() { echo $((ALLOWED - SECONDS)); }

# Bring OUT up to date. Every file is replaced whole: steps that run side by side may all publish.
publish() {
  local new=$OUT/.new.$BASHPID log pair
  for log in "$LOGS"/*.log; do
    printf '\n===== %s\n' "$(basename "$log" .log)"
    tail -c 300000 "$log"
  done > "$new" 2> /dev/null
  mv -f "$new" "$OUT/logs.txt"
  tar -czf "$new" -C "$SCRATCH" results 2> /dev/null && mv -f "$new" "$OUT/results.tar.gz"
  for pair in bench_cascade/report.md:cascade.md bench_loss/report.md:loss.md tune.md:tune.md; do
    [ -f "$RESULTS/${pair%:*}" ] && cp "$RESULTS/${pair%:*}" "$new" && mv -f "$new" "$OUT/${pair#*:}"
  done
  rm -f "$new"
}

# step NAME MOST_SECONDS COMMAND...: run within the time that is left, keep its output, add a line to the table.
# A step that cannot be given 10 seconds is not begun, and counts as wrong: what was not run was not shown.
step() {
  local name=$1 most=$2 began=$SECONDS code verdict note
  shift 2
  if [ "$(left)" -lt 10 ]; then
    code=125 verdict="NOT RUN" note="no time left"
  else
    [ "$(left)" -lt "$most" ] && most=$(left)
    timeout -k 5 "$most" "$@" > "$LOGS/$name.log" 2>&1 < /dev/null
    code=$?
    case $code in
      0) verdict=ok ;;
      124 | 137) verdict="TIMED OUT" ;;
      *) verdict=FAILED ;;
    esac
    note=$(grep -E "passed|failed|skipped|ERROR SUMMARY|RACECHECK SUMMARY|wrong$|rror:|not supported" "$LOGS/$name.log" |
      tail -1 | cut -c1-100)
  fi
  [ "$code" -eq 0 ] || [ "${FORGIVEN:-}" = "$name" ] || echo "$name: $verdict" >> "$FAULTS"
  printf '%-24s %-9s %4ds  %s\n' "$name" "$verdict" $((SECONDS - began)) "$note" | tee -a "$TABLE"
  if [ "$code" -ne 0 ] && [ -f "$LOGS/$name.log" ]; then
    grep -E "^FAILED|^ERROR|^bench:|WRONG|REFUSED|rror:|=========" "$LOGS/$name.log" | head -12 | sed 's/^/    /' | tee -a "$TABLE"
  fi
  publish
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

# does the core in SITE import here, and find the device?
imports() {
  env -C "$SITE" "PYTHONPATH=$SITE${PYTHONPATH:+:$PYTHONPATH}" "$PY" -c "
import torch
from cpr_kernels import _core
reason = _core.cuda_unavailable()
assert not reason, reason
print('limits (capability, shared memory, L2, clusters of 16):', _core.cuda_limits())"
}

build() {
  local cap arch
  mkdir -p "$SITE" || return 1
  cp -r "$REPO/cpr_kernels" "$SITE/cpr_kernels" && rm -f "$SITE"/cpr_kernels/_core*.so
  ln -sfn "$REPO/bench" "$SITE/bench"
  if [ "$(cat "$CORE/sources" 2> /dev/null)" = "$(sources)" ]; then
    cp "$CORE"/_core*.so "$SITE/cpr_kernels/" && imports && echo "the prebuilt core of $CORE is used" && return
    rm -f "$SITE"/cpr_kernels/_core*.so
  fi
  cap=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -1 | tr -d '. ') || return 1
  arch=$cap-real
  [ "$cap" = 90 ] && arch=90a-real
  core "$arch" "$SITE/cpr_kernels" && imports
}

# tests NAME MOST_SECONDS SELECTION...: the GPU tests that the selection names. The options of pyproject.toml are left
# out: they ask for plugins that a GPU machine may not have.
tests() {
  local name=$1 most=$2
  shift 2
  step "$name" "$most" "${IN_SITE[@]}" "$FEW" "$PY" -m pytest -q -ra -p no:cacheprovider -c "$REPO/pyproject.toml" -o addopts= \
    --rootdir "$REPO" "${PLUGINS[@]}" --maxfail 40 --junitxml "$RESULTS/$name.xml" "$REPO/python_tests/gpu/test_gpu.py" "$@"
  if ! grep -q " passed" "$LOGS/$name.log" 2> /dev/null || grep -q " skipped" "$LOGS/$name.log"; then
    echo "    $name: tests were skipped or none passed, see logs.txt" | tee -a "$TABLE"
    echo "$name: skipped or none passed" >> "$FAULTS"
  fi
}

# sanitize TOOL MOST_SECONDS: small shapes through every native kernel; every allocation its own, so that a step beyond
# one is seen. Faults count where one of our kernels is named: torch's own have some that are known to be harmless. A
# tool that ends well without its summary has looked at nothing.
sanitize() {
  local log=$LOGS/$1.log ours
  step "$1" "$2" "${IN_SITE[@]}" "$FEW" PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$1" \
    --target-processes all "$PY" "$REPO/python_tests/support/gpu_small.py" quick || return
  ours=$(grep -c -E "^=+ +(at |and |(Error|Warning): Race reported between ).*cpr::" "$log")
  if [ "$ours" -gt 0 ]; then
    echo "    $1: FAILED, $ours faults in our kernels, see logs.txt" | tee -a "$TABLE"
    echo "$1: $ours faults in our kernels" >> "$FAULTS"
  elif ! grep -q "SUMMARY: [0-9]" "$log"; then
    echo "    $1: ended without a summary, see logs.txt" | tee -a "$TABLE"
    echo "$1: no summary" >> "$FAULTS"
  elif ! grep -q "SUMMARY: 0 " "$log"; then
    echo "    $1: faults in kernels of others only" | tee -a "$TABLE"
  fi
}

# figures NAME MOST_SECONDS COMMAND...: a step that measures; what takes too long is missing, not wrong. Answers of other
# libraries are refused where they are wrong, which is their fault, not one of this run; our own are one.
figures() {
  FORGIVEN=$1 step "$@"
  local code=$?
  case $code in 0 | 124 | 125 | 137) return ;; esac
  grep -q "wrong answers were refused" "$LOGS/$1.log" && ! grep -q "REFUSED cpr_kernels" "$LOGS/$1.log" && return
  echo "$1: FAILED" >> "$FAULTS"
}

# measure NAME MOST_SECONDS ARGUMENTS...: the benchmarks; the workloads that were done are in the results all the same
measure() {
  local name=bench_$1 most=$2
  shift 2
  figures "$name" "$most" "${IN_SITE[@]}" "$PY" -m bench measure --device cuda --out "$RESULTS/$name" "$@"
}

# `timeout` runs commands, not functions: these two go through a shell that knows them
export REPO PY SITE SCRATCH CORE
export -f machine build core imports sources
step machine 120 bash -c machine || { echo "no usable GPU: nothing else can be shown" | tee -a "$TABLE"; exit 1; }
step build 240 bash -c build || { echo "the core does not build here: see logs.txt" | tee -a "$TABLE"; exit 1; }

# a step that is cut by whoever runs this one, too, leaves what it had
(while sleep 20 && kill -0 $$; do publish; done) > /dev/null 2>&1 &
KEEPER=$!
trap 'kill $KEEPER; rm -rf "$SCRATCH"' EXIT

PLUGINS=()
"$PY" -c "import pytest_timeout" 2> /dev/null && PLUGINS+=(--timeout 120)

# answers first, from the simplest: a failure in an early line explains those in later ones
if wants native; then
  step smoke 60 "${IN_SITE[@]}" CPR_CUDA_WGMMA=0 "$PY" "$REPO/python_tests/support/gpu_small.py"
  # then the kernels of 9.0: where they are wrong or do not end, the rest is shown without them
  if ! step smoke_wgmma 60 "${IN_SITE[@]}" "$PY" "$REPO/python_tests/support/gpu_small.py" quick; then
    export CPR_CUDA_WGMMA=0
    echo "    smoke_wgmma: what follows runs with CPR_CUDA_WGMMA=0" | tee -a "$TABLE"
  fi
  tests native 120 -k "native and not graph and not waits"
  tests graphs_and_streams 60 -k "graph or waits or memory or enqueue"
fi

# figures where the native answers were right; the harness checks every answer again before it is timed. The shapes with
# a goal first, with ids, as training has them, and without: eager and graphed, warm and cold L2, beside strong torch and
# the matmuls alone
NATIVE_FAULTS=$(grep -c -E "^(smoke|native):" "$FAULTS")
if [ "$NATIVE_FAULTS" -ne 0 ]; then
  echo "bench                      NOT RUN: no figures beside wrong answers" | tee -a "$TABLE"
elif wants figures; then
  GOALS=(--workload ucf-b16 --workload k400-b64-ids --workload k400-b512-ids --workload k400-b64 --workload k400-b512)
  measure cascade 70 --op cascade --no-compile --budget 2 "${GOALS[@]}"
  measure loss 60 --op loss --no-compile --budget 2 "${GOALS[@]}"
  figures tune 50 "${IN_SITE[@]}" "$PY" -m bench gpu-tune --out "$RESULTS/tune.md"
  # executed instructions of every kernel of one step, and where its time goes; the clocks are left as they are
  command -v ncu > /dev/null && FORGIVEN=profile step profile 60 "${IN_SITE[@]}" ncu --clock-control none \
    --target-processes all --kernel-name "regex:^(prepare|score|score_wgmma|select|tiny|own|attend|attend_wgmma|attend_wide|finish)_kernel" \
    --launch-count 30 --section InstructionStats --section SpeedOfLight --section Occupancy --section WarpStateStats \
    --section MemoryWorkloadAnalysis --section LaunchStats "$PY" -m bench gpu-tune --once k400-b512-ids
fi

if wants tools; then
  tests torch_tools 60 -k "opcheck or compile or can_run"
  # Triton's tests spend their time compiling, a kernel for every schedule of the table: in several processes each where
  # pytest can, beside the sanitizers; nothing is timed meanwhile
  BESIDE=()
  "$PY" -c "import xdist" 2> /dev/null && PLUGINS+=(-n 4)
  tests triton_cases 240 -k "triton and cascade_equals" > /dev/null &
  BESIDE+=($!)
  tests triton_rerank 240 -k "triton and rerank_equals" > /dev/null &
  BESIDE+=($!)
  tests triton_rest 240 -k "triton and not cascade_equals and not rerank_equals and not graph and not waits" > /dev/null &
  BESIDE+=($!)
  if command -v compute-sanitizer > /dev/null; then
    for tool in memcheck racecheck synccheck initcheck; do
      sanitize "$tool" 240 > /dev/null &
      BESIDE+=($!)
    done
  else
    echo "compute-sanitizer          MISSING: memory errors and races were not looked for" | tee -a "$TABLE"
    echo "compute-sanitizer: missing" >> "$FAULTS"
  fi
  wait "${BESIDE[@]}"
fi

if [ "$NATIVE_FAULTS" -eq 0 ] && wants more; then
  measure cascade_all 120 --op cascade --no-growth --budget 2
  measure loss_all 90 --op loss --no-growth --budget 2
  measure train_step 40 --op train_step --no-growth --budget 2
fi
publish

echo
echo "== $OUT/summary.txt, after $SECONDS s"
cat "$TABLE"
for report in "$OUT"/cascade.md "$OUT"/loss.md "$OUT"/tune.md; do
  [ -f "$report" ] && head -30 "$report"
done
if [ -s "$FAULTS" ]; then
  echo "NOT all right:"
  sed 's/^/    /' "$FAULTS"
  exit 1
fi
echo "all right"
