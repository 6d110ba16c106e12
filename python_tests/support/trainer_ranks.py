"""What each rank of test_ranks.py runs: a training that one of them may kill, then what all ranks must agree on.

Under torchrun: ``trainer_ranks.py FOLDER STEP``, where rank 1 kills itself.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from forked import context

from cpr_kernels.processes import start_method
from cpr_kernels.train import TrainError
from cpr_kernels.train.pretrain import loop
from cpr_kernels.train.pretrain.config import Mining, TrainConfig, from_json
from cpr_kernels.train.pretrain.mining.tuned import TunedMining
from cpr_kernels.train.pretrain.phases import Phase
from cpr_kernels.train.runtime import ranks
from cpr_kernels.train.runtime.checkpoint import save


def on_ranks(world: int, out: Path, resume: bool) -> None:
    """Trains in processes that have imported torch when they start, with the environment that torchrun gives them."""
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    context()  # what the processes have imported
    mp.start_processes(_rank, (world, port, out, resume), world, start_method=start_method())


def _rank(rank: int, world: int, port: int, out: Path, resume: bool) -> None:
    names = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": world,
        "LOCAL_WORLD_SIZE": world,
        "MASTER_PORT": port,
    }
    os.environ.update({name: str(value) for name, value in names.items()}, MASTER_ADDR="localhost")
    train(out, -1, resume)


def train(out: Path, killed_at: int, resume: bool) -> None:
    """The run of `wanted.json`, keeping each rank's state; rank 1 kills itself at a step, or the run is resumed."""
    torch.set_num_threads(1)
    watch(out, killed_at)
    with ranks.process_group(
        "cpu"
    ):  # one group for all that follows: a second on the same store may wait for ever
        config = from_json((out / "wanted.json").read_text())
        loop.pretrain(config, resume=resume)
        if not resume:
            trainer = loop.build(replace(config, out=out / "none", infonce_epochs=0))
            check_frozen_encoders(trainer)
            check_shuffled(out)
            check_one_rank_decides()
            check_one_plan(out, config, trainer)
            check_differences_are_noticed()


def watch(out: Path, killed_at: int) -> None:
    """The trainer's steps and checkpoints, of which the test takes part."""
    kept, run_step = loop._save_checkpoint, loop.run_step

    def step(trainer: Any, moment: Any, step: int, batch: Any, log: Any) -> Any:
        if step == killed_at and ranks.rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return run_step(trainer, moment, step, batch, log)

    def keep(trainer: Any, moment: Any, step: int, log: Any, writes: Any) -> None:
        save(out / f"rank{ranks.rank()}-{step}.pt", {"model": trainer.model.state_dict()})
        kept(trainer, moment, step, log, writes)

    loop.run_step, loop._save_checkpoint = step, keep


def check_frozen_encoders(trainer: loop.Trainer) -> None:
    """An encoder that stays frozen is the same on all ranks, though each saw its own clips."""
    inputs = loop._inputs(trainer, next(loop._batches(trainer, 0, 1)), 0)[0]
    trainer.model.calibrate(inputs)
    for buffer in trainer.model.online["flow"].buffers():
        everyone = ranks.gathered(buffer[None])
        assert all(torch.equal(one, everyone[0]) for one in everyone)
    assert buffer.numel() and int(buffer.max())


def check_shuffled(out: Path) -> None:
    """Clips that all differ come back in their places."""
    clips = torch.arange(4.0)[:, None] + 10 * ranks.rank()
    seen: list[torch.Tensor] = []
    keys = ranks.shuffled(lambda some: seen.append(some) or some * 2, clips, seed=3)
    assert torch.equal(keys, 2 * clips)
    save(out / f"seen{ranks.rank()}.pt", {"seen": seen[0]})


def check_one_rank_decides() -> None:
    """What the first rank makes, or raises, is every rank's."""
    assert ranks.of_first_rank(lambda: f"made on {ranks.rank()}") == "made on 0"
    try:
        ranks.of_first_rank(lambda: 1 // ranks.rank())
    except ZeroDivisionError:
        pass
    else:
        raise AssertionError("what the first rank raises must be raised on all")


def check_one_plan(out: Path, config: TrainConfig, trainer: loop.Trainer) -> None:
    """One rank chooses the plan, and all keep the same for every key."""
    tuned = TunedMining(replace(config, mining=Mining("auto", topk=2)), trainer.model.queue)

    def keys(rows: int, step: int) -> dict[str, torch.Tensor]:
        own = torch.Generator().manual_seed(10 * step + ranks.rank())
        return {view: torch.randn(rows, 16, generator=own) for view in config.views}

    own = torch.arange(8) + 8 * ranks.rank()
    tuned.enqueue(keys(8, 0), own, own)
    phase = Phase("tuned", ("rgb",), 1, 0, None, topk=2, tuned=True)
    tuned.prepare(phase, 0, out / f"plans{ranks.rank()}" / "plan.json")
    for step in range(1, 4):
        tuned.enqueue(keys(2, step), own[:2] + 100 * step, own[:2])
        tuned.prepare(phase, step, out / "none")
    ranks.check_same({"tuned miner": tuned.miner}, torch.device("cpu"))
    save(out / f"tuned{ranks.rank()}.pt", tuned.state_dict())


def check_differences_are_noticed() -> None:
    odd = torch.nn.Linear(1, 1)
    torch.nn.init.constant_(odd.weight, ranks.rank())
    try:
        ranks.check_same({"odd layer": odd}, torch.device("cpu"))
    except TrainError as error:
        assert "the odd layer differs" in str(error)
    else:
        raise AssertionError("ranks that differ must be noticed")


if __name__ == "__main__":
    train(Path(sys.argv[1]), int(sys.argv[2]), resume=False)
