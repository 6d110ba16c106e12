"""Times choices of the CUDA planner that only a device can judge: ``python -m bench gpu-tune [--out FILE]``.

One choice at a time against the planner's own rules, on the shapes with a goal, replayed from a CUDA graph and in
turn. An answer that differs in one bit from the rules' own ends the run with 1; products by other instructions than
theirs (wgmma_parts=0) may differ, are compared with each other, and the difference is said. What wins here becomes a
rule in `csrc/cuda/cascade/layout.h`, with the figure beside it. ``--once`` runs a shape once, mining, loss and
gradient, by the rules, for a profiler.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cpr_kernels import _core, cascade_topk, explain, mil_nce

from ..harness.inputs import Table, make_table
from ..harness.text import duration
from ..harness.timing import cuda_sampler, graphed, interleave
from ..harness.workloads import Workload, by_name
from ..tables.readme import write_text

SHAPES = ("ucf-b16", "k400-b64", "k400-b512-ids", "k400-b512", "k400-b512-bf16", "queue65k-b64")
CHOICES: tuple[dict[str, Any], ...] = (
    {},
    {"early_start": True},
    {"wgmma_parts": 0},
    {"wgmma_parts": 1},
    {"wgmma_parts": 2},
    {"key_splits": 0},
    {"key_splits": 8},
    {"score_queries": 64, "wgmma_parts": 0},
    {"score_queries": 128, "wgmma_parts": 0},
    {"select_threads": 256},
    {"select_threads": 512},
    {"select_threads": 1024},
    {"sweep": 64},
    {"sweep": 128},
    {"sweep": 192},
    {"sweep": 512},
    {"sweep": 256, "early_start": True},
)
Call = Callable[[], tuple[Tensor, Tensor]]


def named(choice: dict[str, Any]) -> str:
    """Returns a choice as the table calls it."""
    return ", ".join(f"{name}={value}" for name, value in choice.items()) or "the planner's rules"


def applies(choice: dict[str, Any], workload: Workload) -> bool:
    """Returns whether a choice can matter: a sweep beyond the batch, or tiles of a launch of one fixed shape,
    cannot.
    """
    tiny = workload.num_queries <= 16 and workload.num_keys <= 4096
    return not choice or not (tiny or choice.get("sweep", 1) > workload.num_queries)


def prepared(core: Any, call: Call, choice: dict[str, Any]) -> tuple[Call, tuple[Tensor, Tensor]]:
    """Returns the call captured under a choice, and its answer. The choice counts when a launch is made: at capture."""
    core.cuda_tune(**choice)
    try:
        answer = call()
        return graphed(call), answer
    finally:
        core.cuda_tune()


def mining(table: Table) -> Call:
    """Returns the cascade of a table's workload on the native kernels, with the ids that it has."""
    queries, keys, query_ids, key_ids = table[1:]
    return lambda: cascade_topk(
        queries, keys, table.workload.schedule, query_ids=query_ids, key_ids=key_ids, backend="native"
    )


def tune(workload: Workload, core: Any, say: Callable[[str], None]) -> bool:
    """Times every choice on one shape, a line each; False when some answer differs."""
    call = mining(make_table(workload, "cuda"))
    replays: dict[str, Call] = {}
    right = True
    first: dict[bool, tuple[Tensor, Tensor]] = {}  # without wgmma, or by the rules
    for choice in CHOICES:
        if not applies(choice, workload):
            continue
        replay, answer = prepared(core, call, choice)
        expected = first.setdefault(choice.get("wgmma_parts") == 0, answer)
        if all(torch.equal(a, b) for a, b in zip(answer, expected)):
            replays[named(choice)] = replay
        else:
            right = False
            say(f"| {workload.name} | {named(choice)} | WRONG: another answer than the rules' | |")
    if len(first) == 2 and not all(torch.equal(a, b) for a, b in zip(first[False], first[True])):
        entries = int((first[False][0] != first[True][0]).sum())
        say(f"| {workload.name} | wgmma_parts=0 | other bits than the rules', {entries} other entries | |")
    timings = interleave({name: cuda_sampler(replay) for name, replay in replays.items()}, 1.5)
    ours = timings[named({})]
    for name, timing in timings.items():
        say(f"| {workload.name} | {name} | {duration(timing.median)} | {timing.median / ours.median:.3f} |")
    return right


def once(workload: Workload) -> None:
    """Runs mining, the loss of what is mined and its gradient, and prints how mining was planned."""
    table = make_table(workload, "cuda")
    positives, _ = mining(table)()
    view = workload.view_names[-1]
    query = table.queries[view].requires_grad_()
    mil_nce(
        query,
        query.detach(),
        table.keys[view],
        positives,
        query_ids=table.query_ids,
        key_ids=table.key_ids,
        backend="native",
    ).backward()
    torch.cuda.synchronize()
    explain(
        cascade_topk,
        table.queries,
        table.keys,
        workload.schedule,
        query_ids=table.query_ids,
        key_ids=table.key_ids,
    )


def main(argv: Sequence[str]) -> int:
    """Prints the table and writes it as it grows; returns 1 after a wrong answer, 2 where nothing can be timed."""
    parser = argparse.ArgumentParser(prog="python -m bench gpu-tune", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=None, metavar="FILE", help="also write the table here")
    parser.add_argument(
        "--workload", action="append", default=[], metavar="NAME", help="only this; may repeat"
    )
    parser.add_argument("--once", metavar="NAME", help="run this once and time nothing")
    args = parser.parse_args(argv)
    try:
        if not torch.cuda.is_available():
            raise ValueError("there is no CUDA device here")
        if not hasattr(_core, "cuda_tune"):
            raise ValueError("this build has no CUDA kernels; install where nvcc is on PATH")
        chosen = [
            by_name("cascade", name) for name in ([args.once] if args.once else args.workload or SHAPES)
        ]
    except ValueError as error:
        print(f"bench gpu-tune: {error}", file=sys.stderr)
        return 2
    if args.once:
        once(chosen[0])
        return 0
    lines: list[str] = []

    def say(line: str) -> None:
        print(line, flush=True)
        lines.append(line)
        if args.out:
            write_text(args.out, "\n".join(lines) + "\n")

    say("| workload | choice | time | of the rules' time |")
    say("| --- | --- | --- | --- |")
    return 0 if sum(not tune(workload, _core, say) for workload in chosen) == 0 else 1
