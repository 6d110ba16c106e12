"""Runs programs as `subprocess` would run `python ...`, in processes forked from one that has imported torch.

Half of what such a process takes is the import of torch, a quarter that of torch._dynamo, which an optimizer needs. For
programs whose subject is not the interpreter's start: not what it imports, nor what it reads of the environment then.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

from cpr_kernels.processes import process_context

IMPORTED = (
    "torch._dynamo", "torch.distributed.elastic.multiprocessing", "cpr_kernels.cli.train", "cpr_kernels.train.pretrain.loop",
    "cpr_kernels.train.data.prepare",
)  # fmt: skip


def context() -> BaseContext:
    """The `multiprocessing` context of processes that have imported torch when they start."""
    return process_context(*IMPORTED)


class Program:
    """A running `python *words`, its output in two files; the methods are those of `subprocess.Popen`."""

    def __init__(
        self, words: Sequence[str | Path], cwd: str | Path | None = None, env: Mapping[str, str] | None = None
    ) -> None:
        self.words = [str(word) for word in words]
        self._folder = tempfile.TemporaryDirectory()
        self._outputs = [Path(self._folder.name, name) for name in ("stdout", "stderr")]
        given = (self.words, self._outputs, str(cwd or Path.cwd()), dict(env or os.environ))
        self._process: Any = context().Process(target=_run, args=given)
        self._process.start()
        self.pid: int = self._process.pid

    def wait(self, timeout: float | None = None) -> int:
        """The exit status, negative for a signal."""
        if not wait([self._process.sentinel], timeout):
            raise subprocess.TimeoutExpired(self.words, timeout or 0)
        self._process.join()
        return self._process.exitcode

    def output(self) -> tuple[str, str]:
        """What it wrote to stdout and to stderr."""
        out, err = (path.read_text(errors="replace") for path in self._outputs)
        return out, err

    def kill(self) -> None:
        self._process.kill()


def run_python(
    *words: str | Path,
    cwd: str | Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 240,
) -> subprocess.CompletedProcess[str]:
    """`subprocess.run([sys.executable, *words], capture_output=True, text=True)`."""
    program = Program(words, cwd, env)
    try:
        status = program.wait(timeout)
    except BaseException:
        program.kill()
        raise
    return subprocess.CompletedProcess([sys.executable, *program.words], status, *program.output())


def _run(words: list[str], outputs: list[Path], cwd: str, env: dict[str, str]) -> None:
    """In the process: becomes `python *words`."""
    import torch

    for number, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    # libgomp has read the environment of its own start
    torch.set_num_threads(int(env.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    program, *arguments = words[1:] if words[0] in ("-c", "-m") else words
    first = {"-c": "", "-m": cwd}.get(words[0], str(Path(program).parent))
    sys.path[:0] = [first, *filter(None, env.get("PYTHONPATH", "").split(os.pathsep))]
    sys.argv = ["-c" if words[0] == "-c" else program, *arguments]
    if words[0] == "-c":
        exec(compile(program, "<string>", "exec"), {"__name__": "__main__"})
    elif words[0] == "-m":
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(program, run_name="__main__")
