"""``python -m bench scale``: queues from 1e5 entries on, exact and by FAISS: time, memory, recall, PMR.

Each method mines the same queries from the same queue. Recall is against the exact cascade of the same schedule;
no time is printed of an exact method whose answer differs. One process, one method after the other.
"""

from __future__ import annotations

import argparse
import datetime
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cpr_kernels import FaissIndex, Schedule, SearchSettings, cascade_topk, faiss_recall, parse_schedule
from cpr_kernels.mining.faiss_plan import cells_for, why_not_schedule

from .machine import commit, configure, describe, versions
from .memory import _hand_back_free_memory, _status, cannot_measure, peak_of
from .peer import Settings, not_installed
from .readme import write_text
from .scale_data import Bank, available_bytes, bases, make_bank, sizes_that_fit
from .scale_report import rewrite_readme, stem, tables, write
from .text import duration

EXACT = "native, exact"
SCHEDULES = {
    "UCF101, 2 views": ("flow:5", "flow:100,rgb:20,flow:5", "flow:1000,rgb:100,flow:5"),
    "CCV, 3 views": ("flow:1000,rgb:200,audio:40,flow:5",),
    "drawn": ("flow:5", "flow:100,rgb:20,flow:5"),
}
HNSW_UP_TO = 100_000
MOST_CELLS = 2048  # more would learn for minutes on two cores
LONG_FROM = 5_000_000  # entries from which only what takes minutes on two cores is run
REPLACED = 64  # entries an update replaces: a batch
TIMED = 5


class Method(NamedTuple):
    """One way to mine a long queue."""

    name: str
    factory: str  # of FAISS; "" is the exact native cascade
    effort: int | None = None
    exact: bool = False

    def why_not(self, size: int) -> str | None:
        """The sentence why it does not run at this length, or None."""
        if self.factory.startswith("HNSW") and size > HNSW_UP_TO:
            return f"building the graph takes minutes per {HNSW_UP_TO:,} entries on two cores"
        if size >= LONG_FROM and self.factory and not self.factory.endswith(",Flat"):
            return "takes too long on two cores"
        return not_installed("faiss", "faiss-cpu") if self.factory else None


def methods(size: int) -> list[Method]:
    """What is compared on a queue of `size` entries, the exact cascade first."""
    cells = min(cells_for(size), MOST_CELLS)
    return [
        Method(EXACT, "", exact=True),
        Method("FAISS Flat", "Flat", exact=True),
        Method("FAISS IVF-Flat", f"IVF{cells},Flat"),
        Method("FAISS IVF-Flat, 1/128 of the cells", f"IVF{cells},Flat", max(cells // 128, 1)),
        Method("FAISS IVF-PQ", f"IVF{cells},PQ16"),
        Method("FAISS HNSW", "HNSW32"),
    ]


def _timed(call: Callable[[], Any], beside: Callable[[], Any] | None = None) -> tuple[float, float]:
    """Median seconds of some calls after one; and how many times as long `beside` takes, calls in turn."""
    begin = time.perf_counter()
    call()
    count = TIMED if time.perf_counter() - begin < 1 else 2
    seconds, ratios = [], []
    for _ in range(count):
        begin = time.perf_counter()
        call()
        middle = time.perf_counter()
        seconds.append(middle - begin)
        if beside is not None:
            beside()
            ratios.append((time.perf_counter() - middle) / seconds[-1])
    return median(seconds), median(ratios) if ratios else 1.0


def _pmr(bank: Bank, mined: Tensor) -> float:
    """Share of the mined entries that have their query's label."""
    found = mined >= 0
    right = (bank.key_labels[mined.clamp(min=0)] == bank.query_labels[:, None]) & found
    return float(right.sum() / found.sum())


def _masks(bank: Bank) -> dict[str, Any]:
    return {"query_ids": bank.query_ids, "key_ids": bank.key_ids}


def _run(bank: Bank, schedule: Schedule, index: FaissIndex | None, exact: Tensor) -> dict[str, Any]:
    """One method under one schedule; no index: the exact cascade."""
    masks = _masks(bank)

    def exactly() -> Tensor:
        return cascade_topk(bank.queries, bank.keys, schedule, **masks, backend="native")[0]

    def indexed() -> Tensor:
        return cascade_topk(
            bank.queries, bank.keys, schedule, **masks, backend="native" if index is None else index
        )[0]

    call = exactly if index is None else indexed
    mined = call()
    row: dict[str, Any] = {"pmr": _pmr(bank, mined), "same_as_exact": bool(torch.equal(mined, exact))}
    row["call_s"], row["times_exact"] = _timed(call, None if index is None else exactly)
    if index is not None:
        row["peak_bytes"] = _peak(call)
    row |= {"first_stage": 1.0, "topk": 1.0, "same_queries": 1.0}
    if index is not None:
        recall = faiss_recall(index, bank.queries, bank.keys, schedule, **masks)
        row |= {"first_stage": recall.first_stage, "topk": recall.topk, "same_queries": recall.same_queries}
        row |= recall.report._asdict()
    return row


def _peak(call: Callable[[], Any]) -> int | None:
    """Bytes of a call at its peak, without what the core keeps between calls."""
    return None if cannot_measure("cpu") else peak_of(call, "cpu")


class Exact:
    """The exact cascade's answers and peak memory per schedule. The core keeps its working memory between calls, so
    a call's peak is what it adds to what earlier ones left: counted from the first call of the process.
    """

    kept = 0

    def __init__(self, bank: Bank, schedules: Sequence[Schedule]) -> None:
        self.answers: dict[Schedule, Tensor] = {}
        self.peaks: dict[Schedule, int | None] = {}
        for schedule in schedules:
            more = _peak(lambda s=schedule: self._mine(bank, s))  # type: ignore[misc]
            Exact.kept += more or 0
            self.peaks[schedule] = None if more is None else Exact.kept

    def _mine(self, bank: Bank, schedule: Schedule) -> None:
        self.answers[schedule] = cascade_topk(bank.queries, bank.keys, schedule, **_masks(bank))[0]


def _build(bank: Bank, method: Method) -> tuple[FaissIndex, dict[str, Any]]:
    """The index, with seconds and resident bytes that it took, and seconds of replacing a batch."""
    _hand_back_free_memory()
    before, begin = _status("VmRSS"), time.perf_counter()
    index = FaissIndex(bank.keys, "flow", method.factory, key_ids=bank.key_ids)
    built = time.perf_counter() - begin
    _hand_back_free_memory()
    taken = max(_status("VmRSS") - before, 0)
    replaced = torch.arange(REPLACED)
    update, _ = _timed(lambda: index.update(bank.keys, replaced, bank.key_ids))
    return index, {"build_s": built, "index_bytes": taken, "update_s": update}


def measure(bank: Bank, say: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """A row per method and schedule."""
    size = len(bank.key_ids)
    schedules = [parse_schedule(text) for text in SCHEDULES[bank.name]]
    schedules = [s for s in schedules if why_not_schedule(s[0].keep, size) is None]
    if size >= LONG_FROM:
        schedules = schedules[len(schedules) // 2 :][:1]
    exact = Exact(bank, schedules)
    index: FaissIndex | None = None
    facts: dict[str, Any] = {}
    held = ""
    for method in methods(size):
        about = {"bank": bank.name, "size": size, "method": method.name, "factory": method.factory}
        reason = method.why_not(size)
        if reason:
            say(f"  {method.name}: not run, {reason}")
            yield {**about, "schedule": "", "status": "not run", "reason": reason}
            continue
        if method.factory and method.factory != held:
            index = None  # the one before gives its memory back first
            index, facts = _build(bank, method)
            held = method.factory
        if index is not None:
            index.settings = SearchSettings(effort=method.effort)
        for schedule in schedules:
            row = _run(bank, schedule, index if method.factory else None, exact.answers[schedule])
            row.setdefault("peak_bytes", exact.peaks[schedule])
            if method.exact and not row["same_as_exact"]:
                yield {
                    **about,
                    "schedule": str(schedule),
                    "status": "refused",
                    "reason": "not the exact answer",
                }
                continue
            said = f"  {method.name}, {schedule}: {duration(row['call_s'])}, recall {row['topk']:.3f}"
            say(f"{said}, PMR {row['pmr']:.3f}")
            yield {
                **about,
                "schedule": str(schedule),
                "status": "ok",
                **row,
                **(facts if method.factory else {}),
            }


def run(
    sizes: Sequence[int],
    settings: Settings,
    say: Callable[[str], None],
    keep: Callable[[dict[str, Any]], object] = lambda document: None,
) -> dict[str, Any]:
    """Measure every bank at every length that fits; the first bank at all of them, the others at the first. `keep` is
    given the document so far after every length.
    """
    found = bases()
    document: dict[str, Any] = {
        "kind": "scale", "date": datetime.date.today().isoformat(), "commit": commit(), "versions": versions(),
        "machine": describe(settings), "banks": {base.name: base.about for base in found}, "refused": [],
        "measured": [],
    }  # fmt: skip
    for i, base in reversed(list(enumerate(found))):  # the longest queues last
        fit, refused = sizes_that_fit(sizes, base, available_bytes())
        document["refused"] += refused
        for size in fit if i == 0 else fit[:1]:
            say(f"{base.name}, N={size:,}")
            document["measured"] += list(measure(make_bank(base, size), say))
            keep(document)
    return document


def main(argv: Sequence[str], results: Path) -> int:
    """The command; 1 after a wrong answer."""
    parser = argparse.ArgumentParser(prog="python -m bench scale", description=__doc__)
    parser.add_argument(
        "--sizes", type=float, nargs="+", default=[1e5, 1e6], metavar="N", help="queue lengths"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a few thousand entries: a smoke test, no figures"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--out", type=Path, default=None, metavar="DIR", help="where results go (bench/results)"
    )
    parser.add_argument(
        "--readme", type=Path, default=None, metavar="FILE", help="measure nothing: rewrite its section"
    )
    args = parser.parse_args(argv)
    if args.readme is not None:
        rewrite_readme(args.readme, args.out or results)
        return 0
    if any(size < 1 for size in args.sizes):
        raise ValueError(f"--sizes must be >= 1, got {args.sizes}")
    settings = Settings(threads=args.threads, quick=args.quick)
    configure(settings)
    sizes = [4_000] if args.quick else sorted(int(size) for size in args.sizes)
    out = args.out or (None if args.quick else results)

    def keep(document: dict[str, Any]) -> None:
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            write_text(out / f"{stem(document)}.json", json.dumps(document, indent=1) + "\n")

    document = run(sizes, settings, lambda line: print(line, flush=True), keep)
    if out is not None:
        for path in write(document, out):
            print(f"wrote {path}")
    print(f"\n{tables(document)}")
    return 1 if any(row["status"] == "refused" for row in document["measured"]) else 0
