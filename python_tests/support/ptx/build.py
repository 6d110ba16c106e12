"""Compiles the CUDA sources to PTX and the translated kernels to libraries; both kept in build/ptx by their contents."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import json
import os
import re
import subprocess
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from cuda_tools import CUDA_SOURCES, nvcc
from places import ROOT

from .translate import Kernel, kernels

KEPT = ROOT / "build" / "ptx"
HERE = Path(__file__).resolve().parent
FLAGS = (
    "-std=c++17",
    "-O0",
    "-w",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-mfma",
    "-mf16c",
    "-fwrapv",
    "-U_FORTIFY_SOURCE",
)
BYTES_AN_INSTRUCTION = (
    40  # of a thread's stack: registers, and what a compiler that does not optimize puts beside
)


def ptx_of(source: Path, arch: str) -> Path:
    """The PTX of a source file for `compute_{arch}`."""
    state = hashlib.sha256(arch.encode())
    for path in sorted(CUDA_SOURCES.parent.rglob("*.[hc]*")):  # headers of every file: they are few
        if (path.suffix != ".cu" and path.parent.name not in ("cpu", "bindings")) or path == source:
            state.update(path.read_bytes())
    made = KEPT / f"{source.stem}_{arch}_{state.hexdigest()[:16]}.ptx"

    def compile_to(part: Path) -> None:
        command = [nvcc(), "-ptx", "-std=c++17", "-O3", f"-arch=compute_{arch}", "-o", part, source]
        subprocess.run(command, check=True, capture_output=True)  # type: ignore[arg-type]

    return _kept(made, compile_to)


def translated(ptx: Path) -> list[Kernel]:
    """The kernels of a PTX file; translations are kept too, for they take seconds."""
    state = hashlib.sha256((HERE / "translate.py").read_bytes()).hexdigest()[:16]

    def translate_to(part: Path) -> None:
        part.write_text(json.dumps(list(kernels(ptx.read_text()))))

    return [
        Kernel(*kept)
        for kept in json.loads(_kept(ptx.with_suffix(f".{state}.json"), translate_to).read_text())
    ]


def kernels_of(arch: str) -> dict[str, Kernel]:
    """Every kernel of the CUDA sources, translated, by name."""
    with ThreadPoolExecutor(2) as pool:
        files = list(pool.map(lambda source: ptx_of(source, arch), sorted(CUDA_SOURCES.rglob("*.cu"))))
    return {kernel.name: kernel for file in files for kernel in translated(file)}


class Tally(ctypes.Structure):
    """What machine.h counts, executed by warps where it is instructions."""

    _fields_ = [
        (name, ctypes.c_uint64)
        for name in (
            "instructions", "products", "matrices", "barriers", "shared_bytes", "global_bytes", "wavefronts",
            "least_wavefronts", "sectors", "warps",
        )
    ]  # fmt: skip


class Compiled(NamedTuple):
    """A kernel that can be run."""

    kernel: Kernel
    address: int
    take_tally: Callable[[], Tally]  # counts since it was last called
    watch: Callable[[bool], None]  # whether to count conflicts and sectors, which takes long

    @property
    def stack(self) -> int:
        return (64 << 10) + BYTES_AN_INSTRUCTION * self.kernel.instructions


def compiled(wanted: Iterable[Kernel]) -> list[Compiled]:
    """Libraries of translated kernels, two compilers at a time."""
    _compiled_headers()
    longest_first = sorted(wanted, key=lambda kernel: -kernel.instructions)
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(_compiled, longest_first))


def _compiled(kernel: Kernel) -> Compiled:
    headers = _compiled_headers()
    state = hashlib.sha256(headers.name.encode() + kernel.source.encode()).hexdigest()[:16]
    made = KEPT / f"{re.sub(r'[^a-z0-9]+', '_', kernel.name)}_{state}.so"

    def compile_to(part: Path) -> None:
        _run_compiler([f"-I{headers}", "-shared", "-x", "c++", "-", "-o", str(part)], kernel.source)

    library = ctypes.CDLL(str(_kept(made, compile_to)))
    library.take_tally.restype = Tally
    library.watch.argtypes = [ctypes.c_bool]
    address = ctypes.cast(library.run, ctypes.c_void_p).value
    assert address
    return Compiled(kernel, address, library.take_tally, library.watch)


@functools.cache
def _compiled_headers() -> Path:
    """The folder of meaning.h, compiled once for all kernels: half of what each would take."""
    state = hashlib.sha256(" ".join(FLAGS).encode())
    for path in (*sorted(HERE.glob("*.h")), *sorted((CUDA_SOURCES / "device").rglob("*.h"))):
        state.update(path.read_bytes())
    folder = KEPT / f"headers_{state.hexdigest()[:16]}"

    def compile_to(part: Path) -> None:
        _run_compiler(["-x", "c++-header", str(HERE / "meaning.h"), "-o", str(part)])

    return _kept(folder / "meaning.h.gch", compile_to).parent


def _run_compiler(options: list[str], source: str = "") -> None:
    command = ["g++", *FLAGS, *options, f"-I{HERE}", f"-I{CUDA_SOURCES}"]
    done = subprocess.run(command, input=source, capture_output=True, text=True)
    assert done.returncode == 0, f"{options}: {done.stderr[:2000]}"


def _kept(made: Path, make: Callable[[Path], None]) -> Path:
    """The file, made at most once."""
    if not made.exists():
        made.parent.mkdir(parents=True, exist_ok=True)
        part = made.with_name(f"{made.stem}.{os.getpid()}{made.suffix}")
        make(part)
        part.replace(made)
    return made
