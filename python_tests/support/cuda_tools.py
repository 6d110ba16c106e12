"""Building the CUDA kernels in tests: emulated on a CPU with g++, or for a GPU that is not here with nvcc."""

from __future__ import annotations

import faulthandler
import functools
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from places import ROOT

CUDA_SOURCES = ROOT / "csrc" / "cuda"


def nvcc() -> str | None:
    """Where nvcc is; None where there is none."""
    return os.environ.get("CUDACXX") or shutil.which("nvcc")


class Kernel(NamedTuple):
    """What ptxas reports of one kernel."""

    name: str
    registers: int
    stack_bytes: int
    spill_bytes: int


def report(text: str, arch: str) -> list[Kernel]:
    """The kernels named for `sm_{arch}` in the output of `-Xptxas=-v`, by a readable name: `score_kernel<0,2,128>`."""
    pattern = (
        rf"Compiling entry function '(\S+)' for 'sm_{arch}'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill "
        r"loads.*?Used (\d+) registers"
    )
    return [
        Kernel(_readable(name), int(registers), int(stack), int(stores) + int(loads))
        for name, stack, stores, loads, registers in re.findall(pattern, text, flags=re.DOTALL)
    ]


def _readable(mangled: str) -> str:
    found = re.search(r"\d([a-z_]+_kernel)(I(?:L[ib]\d+E)+)?", mangled)
    assert found, mangled
    constants = re.findall(r"L[ib](\d+)E", found.group(2) or "")
    return found.group(1) + (f"<{','.join(constants)}>" if constants else "")


def _emulated_flags() -> list[str]:
    import sysconfig

    import pybind11

    includes = [pybind11.get_include(), sysconfig.get_paths()["include"]]
    return [
        "-std=c++17",
        "-O2",
        "-fPIC",
        "-fvisibility=hidden",
        "-DCPR_EMULATE",
        "-ffp-contract=off",
        "-U_FORTIFY_SOURCE",
        "-Wall",
        "-Wextra",
        "-Wno-unknown-pragmas",
        "-Wno-clobbered",
        "-Werror",
    ] + [f"-I{path}" for path in includes]


def _sources() -> list[Path]:
    return [*sorted(CUDA_SOURCES.rglob("*.cu")), CUDA_SOURCES.parent / "bindings" / "emulated.cpp"]


def _built_folder() -> Path:
    """The folder of what is built of the sources as they are, by their contents."""
    state = hashlib.sha256(" ".join(_emulated_flags()).encode() + sys.version.encode())
    for path in sorted(CUDA_SOURCES.parent.rglob("*.[hc]*")):
        state.update(path.read_bytes())
    return Path(tempfile.gettempdir()) / f"cpr_kernels_emulated_{os.getuid()}_{state.hexdigest()[:16]}"


@functools.cache
def emulated() -> Any:
    """The module `_emulated`: the CUDA kernels run thread by thread on the CPU. Built once per state of the sources."""
    return _imported(_built())


@contextmanager
def shuffled_core(limits: tuple[int, ...], **tuned: int) -> Iterator[Any]:
    """The same with shuffled threads, copies and products early and late, on a device of these limits."""
    core = emulated()
    core.set_seed(7)
    core.set_limits(*limits)
    core.restore_kernels()
    core.cuda_tune(**tuned)
    try:
        yield core
    finally:
        core.cuda_tune()


def _built() -> Path:
    folder = _built_folder()
    built = folder / "_emulated.so"
    import fcntl

    folder.mkdir(mode=0o700, exist_ok=True)
    with (folder / "lock").open("w") as lock:  # one process builds, others wait for it
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not built.exists():
            objects = [folder / f"{path.stem}.o" for path in _sources()]
            with ThreadPoolExecutor(2) as pool:
                list(pool.map(_compile, _sources(), objects))
            _link(objects, built)
    return built


def emulated_changed(changed: Path, folder: Path) -> Any:
    """The same module with one source file in place of the one of its name; built in `folder`, the rest is reused."""
    objects = [_built().parent / f"{path.stem}.o" for path in _sources() if path.name != changed.name]
    assert len(objects) == len(_sources()) - 1
    _compile(changed, folder / "changed.o", "-O0")  # it compiles for longer than it runs
    # first: of equal functions the linker takes its
    _link([folder / "changed.o", *objects], folder / "_emulated.so")
    return _imported(folder / "_emulated.so")


def _link(objects: list[Path], built: Path) -> None:
    made = built.with_suffix(".made")
    subprocess.run(["g++", "-shared", "-o", made, *objects], check=True)
    made.replace(built)


def _imported(built: Path) -> Any:
    spec = importlib.util.spec_from_file_location("_emulated", built)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _compile(source: Path, to: Path, *more: str) -> None:
    words = ["g++", *_emulated_flags(), *more, "-x", "c++", "-c", source, "-o", to]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def last_words(run: Callable[[], object], file: Path) -> str:
    """What a process wrote to stderr that a call of `run` ended, by way of `file`; a call that returns is an error."""
    child = os.fork()
    if child == 0:
        faulthandler.disable()
        with file.open("w") as written:
            os.dup2(written.fileno(), 2)
        run()
        os._exit(0)
    assert os.waitpid(child, 0)[1] != 0, "the call returned"
    return file.read_text()
