"""Measures long queues (``python -m bench scale``), exact, in shares and by FAISS: time, memory, recall, PMR.

Each method mines the same queries from the same queue. Recall is against the exact cascade of the same schedule; no
time is printed of an exact method whose answer differs (of shares: in one bit). One method after the other: each gives
its memory back before the next begins, and one that does not fit what is free is left out with the reason. `--plan`
tells beforehand.
"""

from __future__ import annotations

import argparse
import datetime
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cpr_kernels import Schedule, parse_schedule
from cpr_kernels.mining.faiss.plan import why_not_schedule
from cpr_kernels.mining.faiss.recall import overlap

from .. import RESULTS
from ..harness.machine import commit, configure, describe, slug, versions
from ..harness.peer import Settings
from ..harness.text import duration, size
from ..tables.readme import write_text
from .data import Bank, Base, Replicas, bases
from .memory import Memory, block_bytes, queue_bytes, why_not, why_not_queue
from .methods import Contender, Exact, Indexed, Method, in_turn, methods
from .report import Document, newest, rewrite_page, stem, tables, write
from .shares import Shares

SCHEDULES = {
    "UCF101, 2 views": ("flow:5", "flow:100,rgb:20,flow:5", "flow:1000,rgb:100,flow:5"),
    "CCV, 3 views": ("flow:1000,rgb:200,audio:40,flow:5",),
    "drawn": ("flow:5", "flow:100,rgb:20,flow:5"),
}
OTHERS_UP_TO = (
    1_000_000  # entries up to which the tables after the first are measured, at the shortest length
)
KEYS = list(dict.fromkeys(method.key for method in methods(1)))
Row = dict[str, Any]


def schedules_of(replicas: Replicas) -> list[Schedule]:
    """Returns what is mined from a queue: the schedules that an index may serve at this length."""
    found = [parse_schedule(text) for text in SCHEDULES[replicas.base.name]]
    return [schedule for schedule in found if why_not_schedule(schedule[0].keep, replicas.size) is None]


def plan(replicas: Replicas, chosen: Sequence[str], room: int) -> str:
    """Returns every method's memory at its peak, the queue's included, and what the run leaves out and why."""
    held, schedules = queue_bytes(replicas), schedules_of(replicas)
    dtype = str(replicas.dtype).removeprefix("torch.")
    lines = [f"{replicas.base.name}, N={replicas.size:,} ({dtype}): {size(room)} may be taken"]
    reason = why_not_queue(replicas, room)
    if reason:
        return f"{lines[0]}\n  left out: {reason}"
    lines.append(f"  {'the queue and a block of rows':<36} {size(held + block_bytes(replicas)):>8}")
    for method in methods(replicas.size):
        if method.key not in chosen:
            continue
        needed = method.needs(replicas, schedules)
        reason = method.why_not(replicas.size) or why_not(needed, room - held)
        said = f"   left out: {reason}" if reason else ""
        lines.append(f"  {method.name:<36} {size(held + needed):>8}{said}")
    return "\n".join(lines)


def _pmr(bank: Bank, mined: Tensor) -> float:
    """Returns the share of the mined entries that have their query's label."""
    found = mined >= 0
    right = (bank.key_labels[mined.clamp(min=0)] == bank.query_labels[:, None]) & found
    return float(right.sum() / found.sum())


def _row(method: Method, contender: Contender, exact: Exact, schedule: Schedule) -> Row:
    """Measures one method under one schedule; an exact one that answers otherwise gets no figure."""
    begin = time.perf_counter()
    indices, scores = contender.mine(schedule)
    first = time.perf_counter() - begin
    expected, expected_scores = exact.answers[schedule]
    same = torch.equal(indices, expected)
    if method.exact and not (same and (not method.ranks or torch.equal(scores, expected_scores))):
        return {"status": "refused", "reason": "not the exact answer"}
    row: Row = {"status": "ok", "pmr": _pmr(exact.bank, indices), "same_as_exact": same}
    beside = None if contender is exact else lambda: exact.seconds(schedule)
    row["call_s"], row["times_exact"] = in_turn(first, lambda: contender.seconds(schedule), beside)
    row |= {**contender.report(), **contender.peak(schedule)}
    last, stage_1 = overlap(expected, indices), torch.ones(1)
    if not method.exact:
        one = Schedule(schedule[:1])
        stage_1 = overlap(exact.answers[one][0], contender.mine(one)[0])
    row |= {"first_stage": float(stage_1.mean()), "topk": float(last.mean())}
    return row | {"same_queries": float((last == 1).float().mean())} | contender.facts


def _rows(
    method: Method,
    contender: Contender,
    exact: Exact,
    schedules: Sequence[Schedule],
    say: Callable[[str], None],
) -> Iterator[Row]:
    for schedule in schedules:
        row = {"schedule": str(schedule), **_row(method, contender, exact, schedule)}
        if row["status"] == "ok":
            found = f"{duration(row['call_s'])}, recall {row['topk']:.3f}, PMR {row['pmr']:.3f}"
            say(f"  {method.name}, {schedule}: {found}")
        else:
            say(f"  REFUSED {method.name}, {schedule}: {row['reason']}")
        yield row


def measure(
    replicas: Replicas, chosen: Sequence[str], memory: Memory, threads: int, say: Callable[[str], None]
) -> Iterator[Row]:
    """Yields a row per method and schedule; a row without figures for a method that does not run."""
    schedules, bank = schedules_of(replicas), replicas.bank()
    exact = Exact(bank, schedules)
    index: Indexed | None = None
    held = ""
    for method in methods(replicas.size):
        if method.key not in chosen:
            continue
        about = {
            "bank": replicas.base.name, "size": replicas.size, "method": method.name, "factory": method.factory,
            "dtype": str(replicas.dtype).removeprefix("torch."), "commit": commit(),
        }  # fmt: skip
        if method.factory != held:
            index, held = None, ""  # the one before gives its memory back first
        reason = method.why_not(replicas.size)
        if not reason and index is None:
            reason = why_not(method.needs(replicas, schedules), memory.room())
        if reason:
            say(f"  {method.name}: left out, {reason}")
            yield {**about, "schedule": "", "status": "not run", "reason": reason}
            continue
        if method.factory:
            index, held = index or Indexed(bank, method.factory), method.factory
            index.try_as_hard_as(method.effort)
            rows = _rows(method, index, exact, schedules, say)
        elif method.ranks:
            rows = _in_shares(method, replicas, threads, exact, schedules, say)
        else:
            rows = _rows(method, exact, exact, schedules, say)
        for row in rows:
            yield {**about, **row}


def _in_shares(
    method: Method,
    replicas: Replicas,
    threads: int,
    exact: Exact,
    schedules: Sequence[Schedule],
    say: Callable[[str], None],
) -> Iterator[Row]:
    """Yields the rows of a queue in shares; a process that is lost costs these rows, not the run."""
    try:
        with Shares(replicas.base, replicas.size, method.ranks, threads) as shares:
            yield from _rows(method, shares, exact, schedules, say)
    except RuntimeError as error:
        say(f"  {method.name}: failed, {error}")
        yield {"schedule": "", "status": "failed", "reason": str(error)}


def queues(found: Sequence[Base], sizes: Sequence[int]) -> list[Replicas]:
    """Returns what is measured: the first table at every length, the others at the shortest; the longest last."""
    others = [Replicas(base, sizes[0]) for base in found[1:] if sizes[0] <= OTHERS_UP_TO]
    return [*reversed(others), *(Replicas(found[0], entries) for entries in sizes)]


def run(
    wanted: Sequence[Replicas],
    chosen: Sequence[str],
    memory: Memory,
    document: Document,
    say: Callable[[str], None],
    keep: Callable[[Document], object] = lambda document: None,
) -> Document:
    """Measures every queue that fits into `document`; `keep` is given it after every row."""
    for replicas in wanted:
        room = memory.room()
        say(plan(replicas, chosen, room))
        reason = why_not_queue(replicas, room)
        if reason:
            document["refused"].append(f"{replicas.base.name}, N={replicas.size:,}: {reason}")
            continue
        for row in measure(replicas, chosen, memory, document["machine"]["threads"], say):
            document["measured"].append(row)
            keep(document)
    return document


def _document(
    settings: Settings, found: Sequence[Base], wanted: Sequence[Replicas], add_to: Document | None
) -> Document:
    """Returns an empty document, or one with the rows of other lengths in `add_to`.

    Raises:
        ValueError: that one is of another machine.
    """
    document: Document = {
        "kind": "scale", "date": datetime.date.today().isoformat(), "commit": commit(), "versions": versions(),
        "machine": describe(settings), "banks": {base.name: base.about for base in found}, "refused": [],
        "measured": [],
    }  # fmt: skip
    if add_to is not None:
        if slug(add_to["machine"]) != slug(document["machine"]):
            raise ValueError(
                f"--add: the newest results are of {slug(add_to['machine'])}, and this is {slug(document['machine'])}"
            )
        anew = {(replicas.base.name, replicas.size) for replicas in wanted}
        kept = [row for row in add_to["measured"] if (row["bank"], row["size"]) not in anew]
        document["measured"] = [{"commit": add_to["commit"], **row} for row in kept]
        document["banks"] |= add_to["banks"]
        document["machine"]["load_before"] = max(
            found["machine"]["load_before"] or 0 for found in (add_to, document)
        )
    return document


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench scale", description=__doc__)
    add = parser.add_argument
    add("--sizes", type=float, nargs="+", default=[1e5, 1e6], metavar="N", help="queue lengths")
    add("--methods", nargs="+", choices=KEYS, default=KEYS, help="some only; exact is always measured")
    add(
        "--memory",
        type=float,
        metavar="GB",
        help="take no more than this, in all; nine tenths of what is free",
    )
    add(
        "--plan", action="store_true", help="say what each method would take and what would not run, and stop"
    )
    add("--add", action="store_true", help="keep other lengths' rows of the newest results of this machine")
    add("--quick", action="store_true", help="a few thousand entries: a smoke test, no figures")
    add("--threads", type=int, default=torch.get_num_threads(), help="of this process; ranks share them")
    add("--out", type=Path, default=None, metavar="DIR", help="where results go (bench/results)")
    add("--page", type=Path, default=None, metavar="FILE", help="measure nothing: rewrite its section")
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns 1 after a wrong answer or a lost process."""
    args = _parser().parse_args(argv)
    if args.page is not None:
        rewrite_page(args.page, args.out or RESULTS)
        return 0
    if not all(1 <= entries < 1e12 for entries in args.sizes):
        raise ValueError(f"--sizes must be from 1 to 1e12, got {args.sizes}")
    if args.memory is not None and not 0 < args.memory < 1e6:
        raise ValueError(f"--memory must be GB above 0, got {args.memory}")
    if args.threads < 1:
        raise ValueError(f"--threads must be >= 1, got {args.threads}")
    settings = Settings(threads=args.threads, quick=args.quick)
    configure(settings)
    found = bases()
    wanted = queues(found, [4_000] if args.quick else sorted({int(entries) for entries in args.sizes}))
    memory = Memory(None if args.memory is None else int(args.memory * 1e9))
    chosen = ["exact", *args.methods]
    if args.plan:
        print("\n".join(plan(replicas, chosen, memory.room()) for replicas in wanted))
        return 0
    out = args.out or (None if args.quick else RESULTS)
    document = _document(settings, found, wanted, newest(out) if args.add and out is not None else None)

    def keep(document: Document) -> None:
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            write_text(out / f"{stem(document)}.json", json.dumps(document, indent=1) + "\n")

    run(wanted, chosen, memory, document, lambda line: print(line, flush=True), keep)
    keep(document)
    if out is not None:
        for path in write(document, out):
            print(f"wrote {path}")
    print(f"\n{tables(document)}")
    return 1 if any(row["status"] in ("refused", "failed") for row in document["measured"]) else 0
