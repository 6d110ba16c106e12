"""Times mining between other work of torch, as a training loop calls it: ``python -m bench between``.

Before every call, untimed, torch multiplies matrices and convolves: caches hold other memory, and the threads of the
OpenMP runtime sleep or spin as its wait policy says. The policy is read when the runtime starts, so each is a process.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import NamedTuple

import torch

from cpr_kernels import cascade_topk

from ..harness.inputs import Table, make_table
from ..harness.machine import configure
from ..harness.peer import MATMULS, OURS, STRONG, Call, Peer, Settings
from ..harness.process import answer_of
from ..harness.text import duration, markdown
from ..harness.timing import Sampler, Timing, cpu_sampler, interleave, quantile
from ..harness.workloads import QUICK, TABLE, Workload
from ..peers.cascade import peers
from .cascade import CascadeGate

POLICIES = ("passive", "active")
ONE_THREAD = f"{OURS}, one thread"
KEY_BIAS = f"{OURS}, key_bias"
COMPARED = (OURS, STRONG, MATMULS)


class Row(NamedTuple):
    """Holds one peer's times of a call, in seconds."""

    workload: str
    policy: str
    situation: str  # "between products" or "in a loop"
    peer: str
    least: float
    median: float
    p80: float


def products() -> Call:
    """Returns the work that other layers of a step do: a convolution over video and a product, 70 MB in all."""
    clips, filters = torch.randn(2, 16, 8, 56, 56), torch.randn(16, 16, 3, 3, 3)
    rows, weights = torch.randn(64, 4096), torch.randn(4096, 4096)

    def call() -> None:
        torch.nn.functional.conv3d(clips, filters, padding=1)
        torch.mm(rows, weights)

    return call


def after(call: Call, before: Call) -> Sampler:
    """Returns the time of calls alone, each after other work; a burst is one call, counted as all."""
    one = cpu_sampler(call)

    def sample(calls: int) -> float:
        before()
        return one(1) * calls

    return sample


def _on_one_thread(table: Table) -> Call:
    threads = torch.get_num_threads()
    call = _ours(table)

    def run() -> object:
        torch.set_num_threads(1)
        found = call()
        torch.set_num_threads(threads)
        return found

    return run


def _ours(table: Table, key_bias: torch.Tensor | None = None) -> Call:
    queries, keys, query_ids, key_ids = table[1:]
    schedule = table.workload.schedule
    return lambda: cascade_topk(
        queries, keys, schedule, query_ids=query_ids, key_ids=key_ids, key_bias=key_bias
    )


def _biased(table: Table) -> Call:
    generator = torch.Generator().manual_seed(1)
    return _ours(table, 0.1 * torch.randn(table.workload.num_keys, generator=generator))


def compared(settings: Settings) -> list[Peer]:
    """Returns the peers: ours, with one thread and with a bias, strong torch, and the matmuls."""
    known = [peer for peer in peers(settings) if peer.name in COMPARED]
    return [*known, Peer(ONE_THREAD, _on_one_thread), Peer(KEY_BIAS, _biased, checked="part")]


def measure(workload: Workload, settings: Settings, policy: str) -> list[Row]:
    """Returns the rows of a workload in this process, whose runtime has the policy; answers are checked first.

    Raises:
        RuntimeError: a peer whose answer is wrong.
    """
    gate, table = CascadeGate(workload, "cpu"), make_table(workload, "cpu")
    before, samplers = products(), dict[str, Sampler]()
    listed = compared(settings)
    for peer in listed:
        wrong = gate.why_wrong(peer)
        if wrong is not None:
            raise RuntimeError(f"{workload.name}: {peer.name}: {wrong}")
        call = peer.prepare(table)
        samplers[f"between products|{peer.name}"] = after(call, before)
        samplers[f"in a loop|{peer.name}"] = cpu_sampler(call)
    timings = interleave(samplers, settings.budget_s)
    return [_row(workload, policy, name, timing) for name, timing in timings.items()]


def _row(workload: Workload, policy: str, name: str, timing: Timing) -> Row:
    situation, _, peer = name.partition("|")
    seconds = timing.seconds
    return Row(workload.name, policy, situation, peer, min(seconds), timing.median, quantile(seconds, 0.8))


def in_a_process(workload: Workload, settings: Settings, policy: str) -> list[Row]:
    """Returns the rows of a workload, measured in a fresh process under a wait policy.

    Raises:
        RuntimeError: the process failed; its last lines are in the message.
    """
    request = {"workload": workload.name, "settings": settings.to_dict(), "policy": policy}
    what = f"measuring {workload.name} between products"
    rows = answer_of("bench.ops.between", request, {"OMP_WAIT_POLICY": policy}, what)
    return [Row(*row) for row in rows]


def table_of(rows: Sequence[Row]) -> str:
    """Returns the rows as a table: the least, the middle and the 80th percentile, and how many times ours."""
    ours = {row[:3]: row for row in rows if row.peer == OURS}
    lines = [
        [
            *row[:4],
            *(duration(seconds) for seconds in row[4:]),
            f"{row.least / ours[row[:3]].least:.2f}",
            f"{row.median / ours[row[:3]].median:.2f}",
        ]
        for row in rows
    ]
    header = [
        "workload",
        "wait policy",
        "situation",
        "peer",
        "least",
        "median",
        "p80",
        "least/ours",
        "median/ours",
    ]
    return markdown(header, lines)


def timing_parser(command: str, what: str, per: str, budget: float) -> argparse.ArgumentParser:
    """Returns a parser of what commands share that time mining at the paper's shapes."""
    parser = argparse.ArgumentParser(prog=f"python -m bench {command}", description=what)
    add = parser.add_argument
    add("--workload", action="append", default=[], metavar="NAME", help="only this one; may repeat")
    add("--threads", type=int, default=torch.get_num_threads(), help="torch threads")
    add("--budget", type=float, default=budget, metavar="SECONDS", help=f"timing per {per}")
    add("--quick", action="store_true", help="a tiny workload: a smoke test, no figures")
    return parser


def selected(args: argparse.Namespace) -> tuple[list[Workload], Settings]:
    """Returns the workloads and settings that arguments of a `timing_parser` ask for.

    Raises:
        ValueError: a workload that is none of them.
    """
    known = {one.name: one for one in (QUICK[:1] if args.quick else TABLE[:3])}
    for name in args.workload:
        if name not in known:
            raise ValueError(f"--workload {name!r} is not one of {', '.join(known)}")
    settings = Settings(threads=args.threads, budget_s=0.2 if args.quick else args.budget, compiled=False)
    return [known[name] for name in args.workload or known], settings


def main(argv: Sequence[str]) -> int:
    """Runs the command.

    Raises:
        ValueError: an argument that cannot work.
    """
    parser = timing_parser("between", "Time mining between torch's products.", "workload and policy", 8.0)
    parser.add_argument("--policy", choices=POLICIES, action="append", help="only this one (default: both)")
    args = parser.parse_args(argv)
    workloads, settings = selected(args)
    rows = []
    for workload in workloads:
        for policy in args.policy or POLICIES:
            rows += in_a_process(workload, settings, policy)
            print(f"{workload}, OMP_WAIT_POLICY={policy}: done", flush=True)
    print(f"\n{table_of(rows)}")
    return 0


if __name__ == "__main__":
    wanted = json.loads(sys.argv[1])
    given = Settings(**wanted["settings"])
    configure(given)
    chosen = next(w for w in (*TABLE, *QUICK) if w.name == wanted["workload"])
    print(json.dumps(measure(chosen, given, wanted["policy"])))
