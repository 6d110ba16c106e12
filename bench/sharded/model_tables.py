"""Prints the cost model of a sharded queue as tables: ``python -m bench sharded``. A model on paper: nothing is timed.

With ``--measure`` real processes on this machine are timed instead, and checked against one with the whole queue.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from cpr_kernels import cpr_schedule

from ..harness.text import duration, markdown, size
from .model import (
    CLUSTERS,
    Cluster,
    Message,
    Queue,
    cascade_cost,
    cascade_messages,
    enqueue_messages,
    loss_messages,
    network_seconds,
    sweeps,
)

RANKS, ENTRIES, BATCH, DIMS, POSITIVES = (8, 64, 512), (10**6, 10**7, 10**8, 10**9), 64, (128, 128), 5
TITLE = "A MODEL ON PAPER, not a measurement: byte counts are checked against real runs, seconds are not."


def _sent(messages: Sequence[Message]) -> float:
    return sum(message.bytes for message in messages)


def bytes_table() -> str:
    """Returns what a rank sends in each call of a step, by the number of ranks; the same for every N."""
    header = ["ranks", "cascade_topk", "of it thresholds", "mil_nce", "enqueue", "exchanges"]
    lines = []
    for ranks in RANKS:
        queue = Queue(ENTRIES[0], ranks, BATCH, DIMS)
        cascade = cascade_messages(queue, cpr_schedule(num_keys=queue.entries))
        loss, enqueue = loss_messages(queue, POSITIVES), enqueue_messages(queue)
        thresholds = next(message.bytes for message in cascade if message.name == "thresholds")
        calls = sum(message.exchanges for message in [*cascade, *loss, *enqueue])
        sizes = [size(count) for count in (_sent(cascade), thresholds, _sent(loss), _sent(enqueue))]
        lines.append([str(ranks), *sizes, str(calls)])
    return markdown(header, lines)


def time_table(cluster: Cluster) -> str:
    """Returns seconds of one `cascade_topk`, part by part, and of `mil_nce`'s messages."""
    header = [
        "ranks x entries",
        "a rank holds",
        "scores",
        "lists",
        "network",
        "together",
        "sweeps of the keys",
    ]
    lines = []
    for ranks in RANKS:
        for entries in ENTRIES:
            queue = Queue(entries, ranks, BATCH, DIMS, working=cluster.working, lists=cluster.lists)
            schedule = cpr_schedule(num_keys=entries)
            cost = cascade_cost(queue, schedule, cluster)
            times = [duration(t) for t in (cost.scores, cost.lists, cost.network, cost.seconds)]
            held = size(queue.share * (queue.feature_bytes + 16))
            lines.append(
                [f"{ranks} x {entries:.0e}".replace("e+0", "e"), held, *times, str(sweeps(queue, schedule))]
            )
    return markdown(header, lines)


def report() -> str:
    """Returns all tables, with what is assumed."""
    parts = [
        TITLE,
        f"{BATCH} queries a rank, {len(DIMS)} views of D={DIMS[0]} in float32, 7 stages that halve the queue, "
        f"{POSITIVES} positives. Bytes are what one rank sends to all others in one call, and do not depend on N:",
        bytes_table(),
    ]
    for cluster in CLUSTERS:
        parts += [
            f"Assumed: {cluster.name}; a rank sends {cluster.link / 1e9:g} GB/s, an exchange takes "
            f"{duration(cluster.latency)} and {duration(cluster.message)} for each other rank, products run at "
            f"{cluster.flops / 1e12:g} TFLOP/s, lists at {cluster.memory / 1e9:g} GB/s "
            f"and take up to {cluster.working >> 30} GiB (`working_bytes`), nothing overlaps. "
            "One `cascade_topk` on every rank:",
            time_table(cluster),
        ]
        loss = [network_seconds(loss_messages(Queue(1, w, BATCH, DIMS), POSITIVES), Queue(1, w, BATCH, DIMS), cluster)
                for w in RANKS]  # fmt: skip
        by_ranks = ", ".join(f"{duration(t)} at {w}" for w, t in zip(RANKS, loss))
        parts.append(f"The messages of `mil_nce`, whatever N: {by_ranks} ranks.")
    return "\n\n".join(parts)


def measured(ranks: Sequence[int], entries: int, batch: int) -> str:
    """Returns a table of real runs on this machine, one thread a rank."""
    from .run import measure

    header = [
        "ranks",
        "entries",
        "queries in all",
        "a call",
        "queries/s",
        "one process, B queries",
        "peak a rank",
    ]
    lines = []
    for count in ranks:
        run = measure(count, entries, batch)
        lines.append(
            [
                str(run.ranks),
                f"{run.entries:,}",
                str(run.ranks * run.batch),
                duration(run.seconds),
                f"{run.ranks * run.batch / run.seconds:,.0f}",
                duration(run.alone),
                size(run.peak),
            ]
        )
    return markdown(header, lines)


def main(argv: Sequence[str]) -> int:
    """Prints the model, or measures."""
    parser = argparse.ArgumentParser(prog="python -m bench sharded", description=__doc__)
    parser.add_argument(
        "--measure", action="store_true", help="time real processes on this machine, not the model"
    )
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2], help="processes, one thread each")
    parser.add_argument(
        "--entries", type=int, default=100_000, help="N of the queue; the check holds it whole"
    )
    parser.add_argument("--batch", type=int, default=BATCH, help="B, queries of each rank")
    args = parser.parse_args(argv)
    if args.measure:
        print(
            f"{args.batch} queries a rank, 2 views of D=128, 7 stages; one thread a rank, gloo; the same bits as one"
        )
        print(
            f"process with the whole queue. That one has rank 0's {args.batch} queries and all the cores.\n"
        )
        print(measured(args.ranks, args.entries, args.batch))
        return 0
    print(report())
    return 0
