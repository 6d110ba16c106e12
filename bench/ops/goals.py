"""Lists the speed goals on the CPU, cell by cell, and judges whether a run met them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ..harness.peer import MATMULS, OURS, PUBLISHED, RESTATED, STRONG
from ..peers.loss import LOG_SOFTMAX, LOGSUMEXP

THREADS = 2  # the table's machine has two cores
FEW_MEGABYTES = 10.0  # "a few MB for every N", as a number


class Cell(NamedTuple):
    """One goal: against any of `peers`, ours is at least so many times faster, or at most so long."""

    op: str
    workload: str
    peers: tuple[str, ...]
    at_least: float | None = None  # times faster than the peer
    at_most: float | None = None  # of the peer's time; of megabytes when `peers` is empty


_AS_PUBLISHED = (PUBLISHED, RESTATED)

CELLS = (
    Cell("cascade", "ucf-b16", (STRONG,), at_least=6),
    Cell("cascade", "ucf-b16", (MATMULS,), at_most=1.0),
    Cell("cascade", "ucf-b16", _AS_PUBLISHED, at_least=150),
    Cell("cascade", "k400-b64", (STRONG,), at_least=7),
    Cell("cascade", "k400-b64", (MATMULS,), at_most=0.9),
    Cell("cascade", "k400-b64", _AS_PUBLISHED, at_least=300),
    Cell("cascade", "k400-b512", (STRONG,), at_least=6),
    Cell("cascade", "k400-b512", (MATMULS,), at_most=0.7),
    Cell("cascade", "queue65k-b64", (STRONG,), at_least=6),
    Cell("cascade", "queue65k-b64", (MATMULS,), at_most=0.75),
    Cell("cascade", "k400-b512", (), at_most=FEW_MEGABYTES),
    Cell("cascade", "queue1m-b64", (), at_most=FEW_MEGABYTES),
    Cell("loss", "k400-b64", (LOG_SOFTMAX,), at_least=2.5),
    Cell("loss", "k400-b64", (LOGSUMEXP,), at_least=5),
    Cell("loss", "k400-b512", (LOG_SOFTMAX,), at_least=4),
    Cell("loss", "k400-b512", (LOGSUMEXP,), at_least=8),
    Cell("loss", "k400-b512", (), at_most=FEW_MEGABYTES),
)


def judged(op: str, rows: Sequence[dict[str, Any]], threads: int, device: str) -> list[dict[str, Any]]:
    """Returns the goals on the CPU of these rows' workloads: goal, measured, and the verdict.

    "met", "not met", or "not judged" with the reason: the peer did not run, or not on two threads.
    """
    if device != "cpu":
        return []
    ran = {row["workload"] for row in rows}
    return [_judged(cell, rows, threads) for cell in CELLS if cell.op == op and cell.workload in ran]


def _judged(cell: Cell, rows: Sequence[dict[str, Any]], threads: int) -> dict[str, Any]:
    against = cell.peers or (OURS,)
    found = [
        row
        for row in rows
        if (row["workload"], row["status"], row["mode"]) == (cell.workload, "ok", "warm")
        and row["peer"] in against
    ]
    row = found[0] if found else None
    named = "peak memory" if not cell.peers else row["peer"] if row else cell.peers[0]
    verdict: dict[str, Any] = {"workload": cell.workload, "against": named, "asked": _goal(cell)}
    if row is None:
        return {**verdict, "measured": "-", "verdict": "not judged: did not run"}
    if not cell.peers:
        if row["peak_bytes"] is None:
            return {**verdict, "measured": "-", "verdict": "not judged: memory not measured"}
        megabytes = row["peak_bytes"] / 1e6
        met, measured = megabytes <= FEW_MEGABYTES, f"{megabytes:.1f} MB"
    elif cell.at_least is not None:
        met, measured = row["times_ours"] >= cell.at_least, f"{row['times_ours']:.3g}x faster"
    else:
        share = 1 / row["times_ours"]
        met, measured = share <= (cell.at_most or 0), f"{share:.2f}x its time"
    if threads != THREADS and cell.peers:
        return {**verdict, "measured": measured, "verdict": f"not judged: a goal on {THREADS} threads"}
    return {**verdict, "measured": measured, "verdict": "met" if met else "not met"}


def _goal(cell: Cell) -> str:
    if not cell.peers:
        return f"at most {cell.at_most:g} MB"
    if cell.at_least is not None:
        return f"at least {cell.at_least:g}x faster"
    return f"at most {cell.at_most:g}x its time"
