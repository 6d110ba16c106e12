"""A queue in shares against one process with the whole queue: 2 ranks under torchrun, 3 and 4 by hand, over gloo."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import sharded_ranks
import torch
from cases import few

import cpr_kernels

ROOT = Path(__file__).resolve().parents[1]

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


class Run(NamedTuple):
    """What the ranks of a group left behind."""

    reports: list[
        dict[str, str | None]
    ]  # of each rank: what went wrong in each check, None where nothing did
    traffic: list[dict[str, Any]]  # of each rank: bytes and exchanges of each call of a step


@functools.cache
def run(world: int) -> Run:
    """One run a world size, for all tests."""
    with tempfile.TemporaryDirectory() as folder:
        processes = start(world, folder)
        printed = [process.communicate(timeout=240)[0] for process in processes]
        print(*printed, sep="\n")
        files = [Path(folder, f"report{rank}.pt") for rank in range(world)]
        assert all(file.exists() for file in files), "\n".join(printed)
        traffic = [Path(folder, f"bytes{rank}.pt") for rank in range(world)]
        return Run(
            [torch.load(file) for file in files], [torch.load(file) for file in traffic if file.exists()]
        )


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("world", [2, 3, 4])
def test_ranks(world: int, check: str) -> None:
    failures = [f"rank {r}: {report[check]}" for r, report in enumerate(run(world).reports) if report[check]]
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize("world", [2, 4])
def test_the_model_counts_the_bytes_that_are_sent(world: int) -> None:
    sys.path.insert(0, str(ROOT))
    try:
        from bench import sharded_model as model
    finally:
        sys.path.remove(str(ROOT))
    queue = model.Queue(600 * world, world, 5, (24, 16))
    own_best, survivors = (
        few(queue.entries, queue.entries // 2, 260, 30),
        few(queue.entries, queue.entries // 2, 300, 200, 9),
    )
    ranks = run(world).traffic
    assert len(ranks) == world

    def compare(name: str, messages: list[Any], bytes_more: float = 0) -> None:
        """Mean over the ranks; bytes and exchanges."""
        sent = [rank["sent"][name] for rank in ranks]
        assert sum(n for n, _ in sent) / world == sum(m.bytes for m in messages) + bytes_more, name
        assert {n for _, n in sent} == {sum(m.exchanges for m in messages)}, name

    compare("own best", model.cascade_messages(queue, own_best))
    # how the survivors are spread over the ranks is the data's; the model takes them to be spread evenly
    elsewhere = sum(rank["survivors elsewhere"] for rank in ranks) / world
    expected = model.cascade_messages(queue, survivors)
    spread = queue.others * 200 / world
    entry = 4 * (1 + model.settle(survivors).judges)
    compare("survivors", expected, (elsewhere - spread) * entry)
    compare("loss", model.loss_messages(queue, 9))
    compare("loss, keys too", model.loss_messages(queue, 9, of_keys=True))
    compare("enqueue", model.enqueue_messages(queue))


def test_the_model_says_that_it_is_one() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "bench", "sharded"], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert ran.stdout.startswith("A MODEL ON PAPER, not a measurement")
    assert all(f"| {ranks} x 1e9" in ran.stdout for ranks in (8, 64, 512))
