"""Runs `cpr doctor`: shows what was built, what can run here and why the rest cannot, and tests what can."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from tyro.conf import Positional, arg

from .. import __version__, losses, mining
from ..dispatch import native
from ..dispatch.backends import reasons
from ..progress import result
from .arguments import parse
from .loose_ends import report_loose_ends
from .self_test import loss_call, mining_call, self_test

# extra: (what it is for, {distribution: module})
EXTRAS: dict[str, tuple[str, dict[str, str]]] = {
    "train": (
        "cpr prepare, pretrain, evaluate, report, demo, export, explore",
        {
            "av": "av", "opencv-contrib-python-headless": "cv2", "lmdb": "lmdb",
            "torchmetrics": "torchmetrics", "tensorboard": "tensorboard",
            "matplotlib": "matplotlib", "jinja2": "jinja2", "safetensors": "safetensors",
        },
    ),
    "deploy": (
        "cpr predict, index, search",
        {
            "av": "av", "opencv-contrib-python-headless": "cv2", "safetensors": "safetensors", "faiss-cpu": "faiss",
        },
    ),
    "triton": ("the triton backend", {"triton": "triton"}),
    "metrics": ("streaming metrics", {"torchmetrics": "torchmetrics"}),
}  # fmt: skip


@dataclass(frozen=True)
class Doctor:
    """Print what was built, which backends can run here and why the others cannot, which versions are installed, and
    test every backend that can run against the plain torch reference. Takes a few seconds; changes nothing.

    Exit status 0: everything that can run gives the right answers. 1: something does not; the line names it.
    Paste the output into a bug report.

    With FOLDER, of runs, data sets or indexes: list instead what stopped or killed jobs left in them and nothing needs
    (exit status 1 where there is something); --fix removes it.
    """

    folders: Positional[Annotated[tuple[Path, ...], arg(metavar="[FOLDER ...]")]] = ()
    """Folders to look through, with all below them."""
    fix: bool = False
    """Remove what is listed."""
    test: bool = True
    """Run the self-test."""


def main(argv: Sequence[str]) -> int:
    """Runs `cpr doctor`; returns 0 when every test passed, else 1."""
    args: Doctor = parse(Doctor, argv, "doctor")
    if args.fix and not args.folders:
        raise ValueError("--fix: give the folders to look through, as in cpr doctor runs/ --fix")
    if args.folders:
        return report_loose_ends(args.folders, args.fix)
    found = examine(test=args.test)
    result(found, as_text(found))
    return 1 if any(test["error"] for test in found["tests"]) else 0


def examine(test: bool = True) -> dict[str, Any]:
    """Returns everything that the command prints, as plain values.

    Args:
        test: also run the self-test.
    """
    return {
        "versions": versions(),
        "core": core(),
        "machine": machine(),
        "backends": {str(device): backends(device) for device in devices()},
        "extras": {name: missing(packages) for name, (_, packages) in EXTRAS.items()},
        "tests": [result for device in devices() for result in self_test(device)] if test else [],
    }


def versions() -> dict[str, str]:
    """Returns {name: version} of what matters to a bug report."""
    found = {
        "cpr_kernels": __version__,
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "torch": str(torch.__version__),
        "numpy": np.__version__,
    }
    for package in ("triton", "faiss-cpu", "faiss-gpu"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def core() -> dict[str, Any]:
    """Returns the path of the compiled core, and what was built into it."""
    return {
        "file": str(native.core.__file__),
        "instruction_sets": native.core.cpu_isas(),
        "in_use": native.core.cpu_isa(),
        "cuda": hasattr(native.core, "cuda_unavailable"),
    }


def machine() -> dict[str, Any]:
    """Returns the processor, threads, OpenMP runtimes of this process, and GPUs."""
    gpus = []
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            capability = ".".join(map(str, torch.cuda.get_device_capability(i)))
            gpus.append(f"{torch.cuda.get_device_name(i)} (compute capability {capability})")
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "openmp": openmp_runtimes(),
        "gpus": gpus,
        "torch_cuda": torch.version.cuda,
    }


def openmp_runtimes(maps: Path = Path("/proc/self/maps")) -> list[str]:
    """Returns the OpenMP libraries mapped into this process, empty where unknown; two of them compete for the cores."""
    if not maps.is_file():
        return []
    mapped = {line.split()[-1] for line in maps.read_text().splitlines() if "/" in line}
    return sorted(path for path in mapped if re.search(r"/lib(gomp|iomp5|omp)\b[^/]*\.so", path))


def devices() -> list[torch.device]:
    """Returns the CPU, and the first GPU where there is one."""
    return [torch.device("cpu"), *([torch.device("cuda")] if torch.cuda.is_available() else [])]


def backends(device: torch.device) -> dict[str, dict[str, str | None]]:
    """Returns {op: {backend: reason it cannot run, None where it can}} for tensors on `device`."""
    tables = (
        ("cascade_topk", mining.BACKENDS, mining_call(device)),
        ("mil_nce", losses.BACKENDS, loss_call(device)),
    )
    return {op: {c.backend: c.reason for c in reasons(table, call)} for op, table, call in tables}


def missing(packages: dict[str, str]) -> list[str]:
    """Returns the distributions of an extra whose modules cannot be found."""
    return [name for name, module in packages.items() if util.find_spec(module) is None]


def as_text(found: dict[str, Any]) -> str:
    """Returns the findings as text for a person."""
    core, machine = found["core"], found["machine"]
    lines = ["versions   " + ", ".join(f"{k} {v}" for k, v in found["versions"].items())]
    others = [isa for isa in core["instruction_sets"] if isa != core["in_use"]]
    lines.append(f"core       {core['file']}")
    lines.append(
        f"           CPU kernels: {core['in_use']} in use, {', '.join(others) or 'no other'} can run"
    )
    if core["in_use"] == "generic":
        lines.append(
            f"           no kernels of its own for {platform.machine()}: vectors of 4 by the compiler, right but slower"
        )
    lines.append(
        f"           CUDA kernels: {'built in' if core['cuda'] else 'not built (install where nvcc is on PATH)'}"
    )
    gpus = ", ".join(machine["gpus"]) or (
        "no GPU that torch can use" if machine["torch_cuda"] else "this torch is built without CUDA"
    )
    lines.append(
        f"machine    {machine['system']}, {machine['cores']} cores, torch uses {machine['torch_threads']} "
        f"threads; {gpus}"
    )
    if len(machine["openmp"]) > 1:
        lines.append(
            f"warning    {len(machine['openmp'])} OpenMP runtimes share this process and slow each other down: "
            + ", ".join(machine["openmp"])
        )
    for device, ops in found["backends"].items():
        for op, table in ops.items():
            taken = next(name for name, reason in table.items() if reason is None)
            lines.append(f"{op} on {device}")
            width = max(map(len, table))
            for name, reason in table.items():
                lines.append(f"  {'->' if name == taken else '  '} {name:<{width}}  {reason or 'can run'}")
    lines.append("extras")
    for name, absent in found["extras"].items():
        state = f"lacks {', '.join(absent)}: pip install 'cpr_kernels[{name}]'" if absent else "installed"
        lines.append(f"     {name:<8} {state}  ({EXTRAS[name][0]})")
    lines += _tests_as_text(found["tests"])
    return "\n".join(lines)


def _tests_as_text(tests: Sequence[dict[str, Any]]) -> list[str]:
    if not tests:
        return []
    lines = ["self-test"]
    for test in tests:
        state = f"WRONG: {test['error']}" if test["error"] else f"right, {1000 * test['seconds']:.0f} ms"
        lines.append(f"     {test['name']:<34} {state}")
    wrong = sum(test["error"] is not None for test in tests)
    lines.append(f"{wrong} of {len(tests)} tests failed" if wrong else f"all {len(tests)} tests passed")
    return lines


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
