"""Times the whole step of a tuned miner against the paper's cascade: ``python -m bench miner``.

A step whitens the batch, finds its neighbours, expands by them, mines with hub terms, and writes the batch with all
that its rows need as keys. The cascade is `cascade_topk` by itself, of seven stages over the same embeddings. Every
call comes after other work of torch, as in a training, so that caches are cold for all alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.nn.functional import normalize

from cpr_kernels import Miner, MiningPlan, MultiViewQueue, cascade_topk
from cpr_kernels.tuning import Expansion
from cpr_kernels.tuning.steps import joint_schedule
from cpr_kernels.tuning.whitening import principal_axes

from ..harness.inputs import make_table
from ..harness.peer import Call, Settings
from ..harness.text import duration, markdown
from ..harness.timing import Timing, interleave
from ..harness.workloads import Workload
from .between import after, products, selected, timing_parser

CASCADE, STEP, MINED = "cascade", "step", "step but for writing"
ONE_JOINT, WIDE = "one stage of all views, top-5", "one stage of all views, top-50"
BIASED = f"{ONE_JOINT}, key_bias"
GOALS = {"ucf-b16": 3.0, "k400-b64": 2.0, "k400-b512": 2.0}  # a step takes at most so many times the cascade
EXPAND, HUB = Expansion(5, 3.0), 50  # what `tune_schedule` chooses on most tables


class Row(NamedTuple):
    """Holds one call's times, and how many times the cascade's it takes."""

    workload: str
    call: str
    least: float
    median: float
    times: float


def make_plan(workload: Workload, keys: dict[str, torch.Tensor]) -> MiningPlan:
    """Returns the plan that tuning chooses on most tables: whitened by a half, expanded, less hubs."""
    whiten = {view: principal_axes(rows).whitener(0.5) for view, rows in keys.items()}
    return MiningPlan(whiten, EXPAND, HUB, joint_schedule(workload.view_names, workload.topk))


def batches_of(workload: Workload) -> list[dict[str, torch.Tensor]]:
    """Returns as many batches as fill the queue, so that it never fills with copies of a few."""
    generator = torch.Generator().manual_seed(2)
    count, shape = max(workload.num_keys // workload.num_queries, 1), (workload.num_queries, workload.dim)
    return [
        {name: normalize(torch.randn(shape, generator=generator), dim=1) for name in workload.view_names}
        for _ in range(count)
    ]


def calls(workload: Workload) -> dict[str, Call]:
    """Returns the calls that are compared.

    Raises:
        RuntimeError: a step that mines other entries than its plan.
    """
    table = make_table(workload, "cpu")
    names, count = workload.view_names, workload.num_keys
    ids = torch.arange(count)
    query_ids = torch.arange(count, count + workload.num_queries)
    plan = make_plan(workload, table.keys)
    queue = MultiViewQueue(dict.fromkeys(names, workload.dim), size=count)
    queue.enqueue(table.keys, ids)
    miner = Miner(plan, queue)
    expected, _ = plan.mine(table.queries, plan.prepare_keys(table.keys, ids), query_ids)
    if not torch.equal(expected, miner(table.queries, query_ids).indices):
        raise RuntimeError(f"{workload.name}: the step mines other entries than its plan")
    whitened, keys = plan.whitened(table.queries), miner.keys
    bias = 0.1 * torch.randn(count, generator=torch.Generator().manual_seed(1))

    batches, turn = batches_of(workload), 0

    def step() -> object:
        nonlocal turn
        turn += 1
        new = query_ids + turn * workload.num_queries  # else the queue would be of these sources soon
        mined = miner(batches[turn % len(batches)], new)
        miner.enqueue(mined, new)
        return mined

    def joint(keep: int, key_bias: torch.Tensor | None = None) -> Call:
        schedule = joint_schedule(names, keep)
        return lambda: cascade_topk(
            whitened, keys.whitened, schedule, query_ids=query_ids, key_ids=ids, key_bias=key_bias
        )

    return {
        CASCADE: lambda: cascade_topk(
            table.queries, table.keys, workload.schedule, query_ids=query_ids, key_ids=ids
        ),
        STEP: step,
        MINED: lambda: miner(table.queries, query_ids),
        ONE_JOINT: joint(workload.topk),
        BIASED: joint(workload.topk, bias),
        WIDE: joint(min(HUB, count)),
    }


def measure(workload: Workload, settings: Settings) -> list[Row]:
    """Returns the rows of a workload; the answer is checked first."""
    before = products()
    samplers = {name: after(call, before) for name, call in calls(workload).items()}
    timings = interleave(samplers, settings.budget_s)
    return [_row(workload, name, timing, timings[CASCADE]) for name, timing in timings.items()]


def _row(workload: Workload, name: str, timing: Timing, cascade: Timing) -> Row:
    ratios = sorted(timing.times_ours(cascade))
    return Row(workload.name, name, min(timing.seconds), timing.median, ratios[len(ratios) // 2])


def table_of(rows: Sequence[Row]) -> str:
    """Returns the rows as a table, with the goal beside a step's ratio."""
    header = ["workload", "call", "least", "median", "cascade's time", "goal"]
    lines = [
        [
            row.workload, row.call, duration(row.least), duration(row.median), f"{row.times:.2f}x",
            f"at most {GOALS[row.workload]:g}x" if row.call == STEP and row.workload in GOALS else "",
        ]
        for row in rows
    ]  # fmt: skip
    return markdown(header, lines)


def main(argv: Sequence[str]) -> int:
    """Runs the command.

    Raises:
        ValueError: an argument that cannot work.
    """
    parser = timing_parser("miner", "Time the whole step of a tuned miner.", "workload", 10.0)
    workloads, settings = selected(parser.parse_args(argv))
    torch.set_num_threads(settings.threads)
    rows = [row for workload in workloads for row in measure(workload, settings)]
    print(table_of(rows))
    return 0
