"""Describes the machine, the versions and the commit of a result, and the ceilings that floors are taken from."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch

from cpr_kernels import _core

from .. import CHECKOUT
from .peer import Settings

PACKAGES = ("cpr_kernels", "torch", "numpy", "faiss-cpu", "pytorch-metric-learning", "lightly", "triton")


def configure(settings: Settings) -> None:
    """Sets threads and instruction set for this process.

    Raises:
        ValueError: an instruction set that this machine cannot run, or a device that is not there.
    """
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch sees no CUDA device here; use --device cpu")
    torch.set_num_threads(settings.threads)
    if settings.isa and not _core.use_cpu_isa(settings.isa):
        able = ", ".join(_core.cpu_isas())
        raise ValueError(f"--isa {settings.isa}: this machine's native core can run {able}")


def cpu_model() -> str:
    """Returns the processor's name."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def usable_cores() -> int:
    """Returns the number of cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe(settings: Settings) -> dict[str, Any]:
    """Returns the machine, in the words of the tables."""
    described: dict[str, Any] = {
        "cpu": cpu_model(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "isa": _core.cpu_isa(),
        "system": f"{platform.system()} {platform.machine()}",
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "default"),
    }
    if settings.device == "cuda":
        described["gpu"] = torch.cuda.get_device_name()
    return described


def slug(machine: dict[str, Any]) -> str:
    """Returns a short name of the machine for file names: processor, threads and instruction set, or the GPU."""
    text = machine.get("gpu") or f"{machine['cpu']} {machine['threads']}t {machine['isa']}"
    text = re.sub(r"\((R|TM)\)|\d+-Core Processor|CPU|@.*?GHz", " ", str(text), flags=re.IGNORECASE)
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def versions() -> dict[str, str]:
    """Returns the versions of Python and of every package that takes part and is installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    found.setdefault("cpr_kernels", _own_version())
    found["torch"] = torch.__version__
    return found


def _own_version() -> str:
    import cpr_kernels

    return cpr_kernels.__version__


def commit() -> str:
    """Returns the checkout's commit, "+" appended when tracked files differ from it; "unknown" outside git."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", ":!bench/results")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+" if changed else "")


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=CHECKOUT, capture_output=True, text=True, check=True, timeout=30
    )
    return done.stdout.strip()


class Ceilings(NamedTuple):
    """What this machine reached, best of several tries: the floors of every shape follow from it."""

    flops_per_s: float
    flops_per_s_alone: float  # of one thread; 0 for a GPU
    bytes_per_s: float  # from memory
    cached_bytes_per_s: float  # from caches
    cache_bytes: int  # the last-level cache; 0 where unknown

    def or_better(self, other: Ceilings) -> Ceilings:
        """Returns the better of two measurements, each figure for itself."""
        return Ceilings(
            max(self.flops_per_s, other.flops_per_s),
            max(self.flops_per_s_alone, other.flops_per_s_alone),
            max(self.bytes_per_s, other.bytes_per_s),
            max(self.cached_bytes_per_s, other.cached_bytes_per_s),
            max(self.cache_bytes, other.cache_bytes),
        )

    def floor_s(self, flops: float, least_bytes: float) -> float:
        """Returns the seconds below which no exact method can come: arithmetic or bytes, whichever takes longer."""
        fits = least_bytes <= self.cache_bytes
        rate = self.cached_bytes_per_s if fits else self.bytes_per_s
        return max(flops / self.flops_per_s, least_bytes / rate)


def _best(call: Callable[[], Any], tries: int, device: str) -> float:
    best = float("inf")
    for _ in range(tries):
        begin = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - begin)
    return best


def cache_bytes(device: str) -> int:
    """Returns the size of the last-level cache, the largest that the system names; 0 where it names none."""
    if device == "cuda":
        return int(torch.cuda.get_device_properties(0).L2_cache_size)
    sizes = [0]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        number, unit = re.fullmatch(r"(\d+)([KMG]?)", path.read_text().strip()).groups()  # type: ignore[union-attr]
        sizes.append(int(number) << {"": 0, "K": 10, "M": 20, "G": 30}[unit])
    return max(sizes)


def _copy_rate(floats: int, tries: int, device: str) -> float:
    """Returns the bytes read and written per second by torch's copy of so many float32."""
    source, target = (torch.rand(floats, device=device) for _ in range(2))
    target.copy_(source)
    return 2.0 * 4 * floats / _best(lambda: target.copy_(source), tries, device)


def ceilings(settings: Settings) -> Ceilings:
    """Measured at the thread count in use.

    Arithmetic: the fastest square float32 matmul (never TF32) or, on a CPU, multiplying and adding in registers, which
    is faster. Bytes: the fastest copy, read and write both counted, of a buffer that no cache holds and of buffers
    that one does.
    """
    device, tries = settings.device, 3 if settings.quick else 12
    sizes = (512,) if settings.quick else (1024, 2048) if device == "cpu" else (8192,)
    fastest = 0.0
    for size in sizes:
        left, right, out = (torch.randn(size, size, device=device) for _ in range(3))
        torch.mm(left, right, out=out)
        fastest = max(fastest, 2.0 * size**3 / _best(lambda: torch.mm(left, right, out=out), tries, device))  # noqa: B023
    from_memory = _copy_rate((8 if settings.quick else 64) << 20, tries, device)
    from_caches = max(_copy_rate(floats, 8 * tries, device) for floats in (1 << 16, 1 << 18, 1 << 20))
    alone = 0.0
    if device == "cpu":
        alone = _core.cpu_flops_per_second(1)
        fastest = max(fastest, _core.cpu_flops_per_second(torch.get_num_threads()))
    return Ceilings(fastest, alone, from_memory, max(from_caches, from_memory), cache_bytes(device))
