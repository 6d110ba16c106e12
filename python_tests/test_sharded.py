"""A queue in shares against one process with the whole queue: 2 ranks under torchrun, 3 and 4 by hand, over gloo."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import sharded_ranks
import torch

import cpr_kernels

HERE = Path(__file__).resolve().parent
CHECKS = [check.__name__ for check in sharded_ranks.CHECKS]


def start(world: int, folder: str) -> list[subprocess.Popen[str]]:
    """The processes of a group: torchrun's for two ranks."""
    root = str(Path(cpr_kernels.__file__).resolve().parents[1])
    paths = os.pathsep.join([root, str(HERE), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    script = str(HERE / "sharded_ranks.py")
    if world == 2:
        runner = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script, folder]
        commands = [[sys.executable, *runner]]
    else:
        commands = [[sys.executable, script, folder, str(rank), str(world)] for rank in range(world)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return [subprocess.Popen(command, env=environment, **pipes) for command in commands]


@functools.cache
def reports(world: int) -> list[dict[str, str | None]]:
    """Each rank's report: what went wrong in each check, None where nothing did. One run a world size."""
    with tempfile.TemporaryDirectory() as folder:
        processes = start(world, folder)
        printed = [process.communicate(timeout=240)[0] for process in processes]
        print(*printed, sep="\n")
        files = [Path(folder, f"report{rank}.pt") for rank in range(world)]
        assert all(file.exists() for file in files), "\n".join(printed)
        return [torch.load(file) for file in files]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("world", [2, 3, 4])
def test_ranks(world: int, check: str) -> None:
    failures = [f"rank {r}: {report[check]}" for r, report in enumerate(reports(world)) if report[check]]
    assert not failures, "\n".join(failures)
