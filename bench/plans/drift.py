"""Mines by one plan in a queue whose keys drift, and asks how often it must be refitted.

    python -m bench drift [--seeds 0 1 2] [--page FILE]

Two drawn views of classes with a nuisance, as encoders would give them that move while they train: their embeddings
rotate, or gain class and lose nuisance, so that a queue holds keys of older encoders than its queries. A plan is tuned
on the first full queue; then miners with the same keys mine every batch, each refitted at its own interval.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import torch
from torch import Tensor

from cpr_kernels import (
    Miner,
    MultiViewQueue,
    cascade_topk,
    estimate_agreement,
    oracle_schedule,
    tune_schedule,
)
from cpr_kernels.metrics import positive_mining_recall

from ..harness.text import markdown
from ..tables.readme import between_markers, write_text

BEGIN, END = "<!-- drift:begin -->", "<!-- drift:end -->"
VIEWS, CLASSES, DIM, NUISANCES, TOPK = ("flow", "rgb"), 20, 48, 3, 5
SIZE, BATCH, TURNOVERS = 512, 32, 8
STEPS = SIZE // BATCH  # that replace the queue
PLAIN, NEVER, ANEW = "plain joint", "never", "tuned anew, 1"
INTERVALS = {
    NEVER: 0,
    "4": 4 * STEPS,
    "1": STEPS,
    "1/4": STEPS // 4,
    "each step": 1,
}  # in turnovers of the queue


class Drift(NamedTuple):
    """Says how a view's encoder moves: numbers at the first step and at the last."""

    name: str
    angle: float = 0.0  # radians that embeddings rotate in a turnover of the queue
    nuisance: tuple[float, float] = (4.0, 4.0)
    noise: tuple[float, float] = (1.0, 1.0)


DRIFTS = (
    Drift("none"),
    Drift("rotates by 0.1 a turnover", 0.1),
    Drift("rotates by 0.4 a turnover", 0.4),
    Drift("rotates by 1 a turnover", 1.0),
    Drift("learns: nuisance 8 to 1, noise 2 to 0.8", 0.1, (8.0, 1.0), (2.0, 0.8)),
    Drift("other nuisance grows, 0 to 8", 0.0, (0.0, 8.0)),
)


class Encoder:
    """Draws one view of rows with given classes, at a time from 0 (the first step) to 1 (the last)."""

    def __init__(self, drift: Drift, generator: torch.Generator) -> None:
        self.drift, self.generator = drift, generator
        self.codes = torch.randn(CLASSES, DIM, generator=generator)
        self.nuisances = torch.randn(NUISANCES, DIM, generator=generator)
        self.basis = torch.linalg.qr(torch.randn(DIM, DIM, generator=generator)).Q

    def __call__(self, labels: Tensor, at: float) -> Tensor:
        """Returns embeddings [B, D] of length 1."""
        drift = self.drift
        nuisance, noise = (first + (last - first) * at for first, last in (drift.nuisance, drift.noise))
        room = torch.randn(len(labels), NUISANCES, generator=self.generator) @ self.nuisances
        own = torch.randn(len(labels), DIM, generator=self.generator)
        rows = self.codes[labels] + nuisance * room / NUISANCES**0.5 + noise * own
        angle = torch.tensor(drift.angle * TURNOVERS * at)
        first, second = (rows @ self.basis).chunk(2, dim=1)  # planes that rotate
        turned = [angle.cos() * first - angle.sin() * second, angle.sin() * first + angle.cos() * second]
        return torch.nn.functional.normalize(torch.cat(turned, dim=1) @ self.basis.T, dim=1)


class Row(NamedTuple):
    """Holds the figures of one drift and seed."""

    pmr: dict[str, float]  # of each way, over all steps after the first turnover
    agreement: dict[str, float]  # of two plans on the last queue, without labels
    refit_ms: float  # CPU time


def study(drift: Drift, seed: int) -> Row:
    """Mines one drifting run in every way."""
    generator = torch.Generator().manual_seed(seed)
    encoders = {view: Encoder(drift, generator) for view in VIEWS}
    queues = {name: MultiViewQueue(dict.fromkeys(VIEWS, DIM), SIZE) for name in (*INTERVALS, ANEW)}
    labels = torch.randint(CLASSES, (SIZE,), generator=generator)
    first = {view: encoder(labels, 0.0) for view, encoder in encoders.items()}
    for queue in queues.values():
        queue.enqueue(first, labels=labels)
    plan = tune_schedule(first, topk=TOPK)
    miners = {name: Miner(plan, queue) for name, queue in queues.items()}
    found: dict[str, list[float]] = {PLAIN: [], **{name: [] for name in miners}}
    spent: list[float] = []
    for step in range(STEPS * TURNOVERS):
        at = step / (STEPS * TURNOVERS)
        labels = torch.randint(CLASSES, (BATCH,), generator=generator)
        batch = {view: encoder(labels, at) for view, encoder in encoders.items()}
        queue = queues[NEVER]
        mined = {PLAIN: cascade_topk(batch, queue.views, oracle_schedule(VIEWS, TOPK))[0]}
        for name, miner in miners.items():
            out = miner(batch)
            mined[name] = out.indices
            held = queues[name].labels.clone()
            miner.enqueue(out, labels=labels)
            if (every := INTERVALS.get(name)) and step % every == every - 1:
                began = time.process_time()
                miner.refit()
                spent.append(time.process_time() - began)
        if step % STEPS == STEPS - 1:
            anew = tune_schedule(queues[ANEW].views, queues[ANEW].ids, topk=TOPK)
            miners[ANEW] = Miner(anew, queues[ANEW])
        if step >= STEPS:
            for name, indices in mined.items():
                found[name].append(float(positive_mining_recall(indices, labels, held)))
    agreement = {
        name: estimate_agreement(queues[name].views, miners[name].plan, queues[name].ids)
        for name in (NEVER, "1")
    }
    return Row({name: mean(values) for name, values in found.items()}, agreement, 1e3 * mean(spent))


def page(rows: dict[str, list[Row]]) -> str:
    """Returns the results as Markdown, means over seeds."""
    ways = list(next(iter(rows.values()))[0].pmr)
    header = ["keys", *ways, "agreement, never / 1"]
    lines = [
        [
            name,
            *(f"{mean(row.pmr[way] for row in of):.3f}" for way in ways),
            " / ".join(f"{mean(row.agreement[way] for row in of):.3f}" for way in (NEVER, "1")),
        ]
        for name, of in rows.items()
    ]
    cost = mean(row.refit_ms for of in rows.values() for row in of)
    return (
        f"PMR of the top {TOPK} in a queue of {SIZE} entries, batches of {BATCH}, {TURNOVERS} turnovers of the queue, "
        f"by the turnovers between refits (two views of {DIM} numbers, {CLASSES} classes, a nuisance of {NUISANCES} "
        f"directions; mean of {len(next(iter(rows.values())))} seeds):\n\n{markdown(header, lines)}\n\n"
        f"A refit took {cost:.0f} ms of one core."
    )


def main(argv: Sequence[str]) -> int:
    """Runs the study and prints its page.

    Raises:
        ValueError: a page without the section's markers.
    """
    parser = argparse.ArgumentParser(
        prog="python -m bench drift", description="Mine by one plan in a queue whose keys drift."
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--page", type=Path, metavar="FILE", help="page whose section is rewritten")
    args = parser.parse_args(argv)
    rows = {}
    for drift in DRIFTS:
        rows[drift.name] = [study(drift, seed) for seed in args.seeds]
        print(f"{drift.name}: " + ", ".join(f"{way} {mean(row.pmr[way] for row in rows[drift.name]):.3f}"
              for way in rows[drift.name][0].pmr), flush=True)  # fmt: skip
    text = page(rows)
    print(f"\n{text}")
    if args.page is not None:
        write_text(args.page, between_markers(args.page, BEGIN, END, text + "\n"))
    return 0
