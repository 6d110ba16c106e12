"""Times a whole training step, encoders and loader included, part by part: ``python -m bench step``.

Two kinds of steps take turns on one trainer: its own, and one that mines and computes the loss as the published code
does. Encoders, queue and optimiser are the same, and both mine the same entries, which is checked first.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cpr_kernels import Schedule
from cpr_kernels.train.batches.dataset import Batch
from cpr_kernels.train.data.decoding import FrameSettings
from cpr_kernels.train.data.prepare import prepare
from cpr_kernels.train.data.synthetic import SyntheticSettings, generate
from cpr_kernels.train.pretrain import co_training, loop
from cpr_kernels.train.pretrain.co_training import Inputs, MultiViewModel
from cpr_kernels.train.pretrain.config import Clips, Mining, TrainConfig
from cpr_kernels.train.pretrain.phases import Phase, locate
from cpr_kernels.train.runtime.run_log import RunLog

from ..harness.peer import siblings
from ..harness.text import duration, markdown
from ..peers.loss import log_softmax_rows, logits_and_mask
from ..peers.published import restated
from ..peers.torch_forms import TEMPERATURE

OURS, PUBLISHED = "cpr_kernels", "published forms"
LOAD, AUGMENT, MINE, LOSS, QUEUE, MOMENTUM, ADAM, REST = (
    "loading", "augmentation", "mining", "loss", "queue", "momentum copies", "optimiser", "encoders and the rest",
)  # fmt: skip
PARTS = (LOAD, AUGMENT, MINE, LOSS, QUEUE, MOMENTUM, ADAM, REST)
GOALS = {
    "mining, loss and queue": ((MINE, LOSS, QUEUE), 3.0),
    "loading and augmentation": ((LOAD, AUGMENT), 10.0),
}
FULL = {
    "frames": 32,
    "crop": 128,
    "batch": 8,
    "queue": 2048,
    "width": 1.0,
}  # of S3D; as the papers but for the batch
QUICK = {"frames": 8, "crop": 64, "batch": 4, "queue": 64, "width": 0.125}


class Stopwatch:
    """Sums the seconds of each part of a step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def around(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """Returns the function, timed."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self.seconds[part] += time.perf_counter() - began

        return timed

    def loss(self, call: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Returns a loss whose gradient is formed at once, so that both are timed together."""

        def timed(query: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            began = time.perf_counter()
            leaf = query.detach().requires_grad_()
            value = call(leaf, *args, **kwargs)
            (gradient,) = torch.autograd.grad(value.sum(), leaf)
            self.seconds[LOSS] += time.perf_counter() - began
            surrogate = (query * gradient).sum(dim=1)
            return value.detach() + surrogate - surrogate.detach()

        return timed


def published_mining(
    model: Any, inputs: Inputs, anchors: dict[str, Tensor], schedules: dict[str, Schedule], phase: Phase
) -> tuple[dict[str, Tensor], None]:
    """Replaces the model's `mine`: the published function, restated, and no mining for figures."""
    stages = list(schedules["mined"])
    order = [str(stage.view) for stage in stages[:2]]
    mask = siblings(inputs.sources, model.queue.ids)
    banks = [model.queue.views[view].T for view in order]
    picks = restated([anchors[view] for view in order], banks, mask, [stage.keep for stage in stages])
    return {"mined": picks}, None


def published_loss(
    query: Tensor, positive: Tensor, keys: Tensor, mined: Tensor, temperature: float, **how: Any
) -> Tensor:
    """Replaces `mil_nce`: all logits, their softmax, and the mass of the positives."""
    assert temperature == TEMPERATURE
    return log_softmax_rows(*logits_and_mask(query, positive, keys, mined, how["query_ids"], how["key_ids"]))


def new_trainer(data: Path, out: Path, size: dict[str, Any]) -> loop.Trainer:
    """Returns a trainer in RGB's phase of a cycle, its queue full of random keys."""
    clips = Clips(frames=size["frames"], crop=size["crop"], batch=size["batch"], workers=0)
    stages = 7 if size["queue"] >= 1024 else 3
    config = TrainConfig(
        data=data, out=out, infonce_epochs=0, cycles=1, cycle_epochs=1000, queue=size["queue"], logger="none",
        width=size["width"], clips=clips, mining=Mining(stages=stages, topk=5), device="cpu",
    )  # fmt: skip
    trainer = loop.build(config)
    trainer.model.start_phase(trainer.plan[0])
    generator, count = torch.Generator().manual_seed(0), config.queue
    keys = {view: normalize(torch.randn(count, 128, generator=generator), dim=1) for view in config.views}
    places = torch.arange(count) % len(trainer.sources)
    _model(trainer).queue.enqueue_clips(keys, trainer.sources[places], places)
    return trainer


def _model(trainer: loop.Trainer) -> MultiViewModel:
    assert isinstance(trainer.model, MultiViewModel)
    return trainer.model


@contextmanager
def instrumented(trainer: loop.Trainer, watch: Stopwatch, kind: str) -> Iterator[None]:
    """Times the parts of a step; the published kind of step also computes some in another way."""
    model, published = _model(trainer), kind == PUBLISHED
    mine = partial(published_mining, model) if published else model.mine
    loss = published_loss if published else co_training.mil_nce
    with ExitStack() as stack:
        replaced: tuple[tuple[Any, str, Any], ...] = (
            (loop, "augmented", watch.around(AUGMENT, loop.augmented)),
            (model, "mine", watch.around(MINE, mine)),
            (model.tuned, "enqueue", watch.around(QUEUE, model.tuned.enqueue)),
            (co_training, "mil_nce", watch.loss(loss)),
            (co_training, "ema_update_", watch.around(MOMENTUM, co_training.ema_update_)),
            (trainer.optimizer, "step", watch.around(ADAM, trainer.optimizer.step)),
        )
        for owner, name, value in replaced:
            stack.enter_context(mock.patch.object(owner, name, value))
        yield


def check(trainer: loop.Trainer) -> None:
    """Compares both kinds of mining and loss on one batch.

    Raises:
        RuntimeError: they mine other entries, or their losses differ.
    """
    model, config, phase = _model(trainer), trainer.config, trainer.plan[0]
    generator = torch.Generator().manual_seed(1)
    batch = config.clips.batch
    rows = {v: normalize(torch.randn(batch, 128, generator=generator), dim=1) for v in config.views}
    inputs = Inputs({}, trainer.sources[:batch], torch.arange(batch))
    assert phase.schedule is not None
    schedules = {"mined": phase.schedule}
    mined = model.mine(inputs, rows, schedules, phase)[0]["mined"]
    if not torch.equal(mined, published_mining(model, inputs, rows, schedules, phase)[0]["mined"]):
        raise RuntimeError("the two kinds of steps mine other entries")
    keys = model.queue.views["rgb"]
    ids: dict[str, Any] = {"query_ids": inputs.sources, "key_ids": model.queue.ids}
    ours, published = (
        form(rows["rgb"], rows["flow"], keys, mined, TEMPERATURE, reduction="none", **ids)
        for form in (co_training.mil_nce, published_loss)
    )
    if not torch.allclose(ours, published, rtol=1e-4, atol=1e-5):
        raise RuntimeError("the two kinds of steps have other losses")


def measure(trainer: loop.Trainer, log: RunLog, steps: int) -> dict[str, dict[str, float]]:
    """Returns {kind: {part: seconds}}, the median over steps; one step of each kind before is not counted."""
    check(trainer)
    found: dict[str, list[dict[str, float]]] = {OURS: [], PUBLISHED: []}
    batches, first = loop._batches(trainer, 0, 2 * (steps + 1)), trainer.plan[0].fill_steps
    for turn in range(2 * (steps + 1)):
        kind, watch = (OURS, PUBLISHED)[turn % 2], Stopwatch()
        began = time.perf_counter()
        batch: Batch = watch.around(LOAD, next)(batches)
        moment = locate(trainer.plan, 10**6, first + turn)
        with instrumented(trainer, watch, kind):
            loop.run_step(trainer, moment, first + turn, batch, log)
        watch.seconds[REST] = time.perf_counter() - began - sum(watch.seconds.values())
        if turn >= 2:
            found[kind].append(dict(watch.seconds))
    return {
        kind: {part: median(step.get(part, 0.0) for step in of_kind) for part in PARTS}
        for kind, of_kind in found.items()
    }


def table_of(found: dict[str, dict[str, float]]) -> str:
    """Returns a row a part, its share of the step beside it, and a row a goal."""
    whole = {kind: sum(parts.values()) for kind, parts in found.items()}

    def cells(names: Sequence[str]) -> list[str]:
        result = []
        for kind, parts in found.items():
            seconds = sum(parts[name] for name in names)
            result += [duration(seconds), f"{100 * seconds / whole[kind]:.2f} %"]
        return result

    rows = [[part, *cells([part]), ""] for part in PARTS]
    rows += [[name, *cells(names), f"at most {most:g} %"] for name, (names, most) in GOALS.items()]
    rows.append(["the whole step", *cells(PARTS), ""])
    header = ["part", *(word for kind in found for word in (kind, "share")), "goal for ours"]
    return markdown(header, rows)


def main(argv: Sequence[str]) -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        prog="python -m bench step", description="Time a whole training step of S3D."
    )
    parser.add_argument("--data", type=Path, help="a prepared data set (default: clips are drawn)")
    for name, what in (
        ("frames", "frames of a clip"),
        ("crop", "pixels of its side"),
        ("batch", "videos"),
        ("queue", "entries"),
    ):
        parser.add_argument(f"--{name}", type=int, default=FULL[name], help=f"{what} (default: {FULL[name]})")
    parser.add_argument(
        "--width", type=float, default=FULL["width"], help="of S3D (default: 1, the published network)"
    )
    parser.add_argument("--steps", type=int, default=3, help="of each kind (default: 3)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="torch threads")
    parser.add_argument("--quick", action="store_true", help="a tiny network: a smoke test, no figures")
    args = parser.parse_args(argv)
    if args.steps < 1:
        raise ValueError(f"--steps: must be at least 1, got {args.steps}")
    torch.set_num_threads(args.threads)
    size = QUICK if args.quick else {name: getattr(args, name) for name in FULL}
    with tempfile.TemporaryDirectory() as folder:
        data = args.data or _drawn(Path(folder), size)
        trainer = new_trainer(data, Path(folder) / "run", size)
        (Path(folder) / "run").mkdir()
        with RunLog(Path(folder) / "run", logger="none") as log:
            found = measure(trainer, log, args.steps)
    print(
        f"S3D, {', '.join(f'{name} {value:g}' for name, value in size.items())}, {args.threads} threads, CPU\n"
    )
    print(table_of(found))
    return 0


def _drawn(folder: Path, size: dict[str, Any]) -> Path:
    """Returns a data set of drawn clips, a few frames longer than a clip."""
    sources = -(-size["batch"] // 9) + 1  # nine classes, one source of each for testing
    settings = SyntheticSettings(
        sources=sources, test_sources=1, frames=size["frames"] + 4, size=size["crop"]
    )
    generate(folder / "videos", settings)
    frames = FrameSettings(
        size=size["crop"], frames=size["frames"] + 4, min_frames=size["frames"] + 1, flow="draft"
    )
    prepare(folder / "videos", folder / "data", frames)
    return folder / "data"
