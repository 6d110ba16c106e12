"""Peak memory of one call, measured in a process of its own: ``python -m bench.harness.memory JSON``.

On the CPU: the process runs the peer on a small shape first (so that code and thread pools are there), then
hands free memory back to the system, resets the kernel's high-water mark of resident memory
(``/proc/self/clear_refs``), makes one call and reads the mark. Pages of libraries that the call itself loads are
taken off. Freed blocks above 64 KB go back to the system at once (``MALLOC_MMAP_THRESHOLD_``), so what an
earlier call left cannot hide a later one's need. Results count; inputs do not. The kernel counts pages in
batches: the figure is good to about a quarter of a megabyte. On CUDA: the peak of torch's allocator.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cpr_kernels import _core

from .. import CHECKOUT
from .peer import Peer, Settings
from .workloads import Workload, by_name

_ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": str(64 << 10), "MALLOC_TRIM_THRESHOLD_": str(128 << 10)}
_TIME_LIMIT_S = 600


def _status(field: str) -> int:
    """A size of /proc/self/status, in bytes; 0 where the system does not say."""
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    found = re.search(rf"^{field}:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def _reset_high_water() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def cannot_measure(device: str) -> str | None:
    """Why this system cannot say what a call's peak is, or None."""
    if device == "cuda":
        return None
    try:
        _reset_high_water()
    except OSError as error:
        return f"peak memory not measured: this system does not reset its high-water mark ({error})"
    return None


def _hand_back_free_memory() -> None:
    gc.collect()
    _core.release_workspace()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def peak_of(call: Callable[[], Any], device: str) -> int:
    """Bytes that one call needs at its peak, its results included."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        kept = call()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
        del kept
        return peak
    _hand_back_free_memory()
    _reset_high_water()
    before, files = _status("VmRSS"), _status("RssFile")
    kept = call()
    peak = _status("VmHWM") - before - max(_status("RssFile") - files, 0)
    del kept
    return max(peak, 0)


def _measure(op: Any, peer: Peer, workload: Workload, inputs: Any, settings: Settings) -> int:
    if peer.warms_itself:
        peer.prepare(inputs)()
    else:
        small = workload.small()
        if peer.why_not(small) is None:
            peer.prepare(op.make_inputs(small, settings))()
    call = peer.prepare(inputs)
    if peer.warms_itself:
        call()
    return peak_of(call, settings.device)


def peaks(op_name: str, workload: Workload, names: list[str], settings: Settings) -> dict[str, int]:
    """Peak bytes of a call of each named peer, measured in a fresh process.

    Raises:
        RuntimeError: the process failed; its last lines are in the message.
    """
    request = {"op": op_name, "workload": workload.name, "peers": names, "settings": settings.to_dict()}
    done = subprocess.run(
        [sys.executable, "-m", "bench.harness.memory", json.dumps(request)],
        cwd=CHECKOUT,
        env={**os.environ, **_ENVIRONMENT},
        capture_output=True,
        text=True,
        timeout=_TIME_LIMIT_S,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"measuring memory of {workload.name} failed:\n{done.stderr[-2000:]}")
    return {name: int(size) for name, size in json.loads(done.stdout.splitlines()[-1]).items()}


def main(request: str) -> None:
    """Measure what the request names and print ``{peer: bytes}``."""
    from ..ops.runner import OPS
    from .machine import configure

    wanted = json.loads(request)
    settings = Settings(**wanted["settings"])
    configure(settings)
    op, workload = OPS[wanted["op"]], by_name(wanted["op"], wanted["workload"])
    inputs = op.make_inputs(workload, settings)
    found = {}
    for peer in op.peers(settings):
        if peer.name in wanted["peers"]:
            found[peer.name] = _measure(op, peer, workload, inputs, settings)
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
