"""`cpr mine`: the run, from arrays to a written table of positives."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ... import mining
from ...dispatch.backends import choose
from ...files import refuse_existing
from ...mining import CascadeTrace, Schedule, cascade_topk, cascade_trace
from ...mining.arguments import as_call
from ...progress import ProgressBar, result, waiting
from ...tuning import MiningPlan
from ..arguments import at_least, parse
from ..explore.explore import write_table
from ..explore.table import Look
from .classes import labels_of
from .codes import as_given
from .embeddings import Prepared, Preparing, mean_row, nan_rows, prepare
from .inputs import Names, Side, find_names, open_sides, pick, plain_columns
from .options import DTYPES, Mine, schedule_of
from .planned import PlannedQueries, load_plan, missing_notes, raw_view
from .results import STDOUT, Known, Result, output_paths, write_result
from .summary import Labels, as_json, as_text, quality, sample_rows, stage_rows


class Problem(NamedTuple):
    """What is mined, ready for the ops."""

    schedule: Schedule
    keys: dict[str, Tensor]  # {view: [N, D]}
    queries: _Queries | PlannedQueries
    key_ids: Tensor | None  # [N] int64
    query_ids: Tensor | None  # [B] int64
    notes: list[str]  # what was odd about the rows


class _Queries:
    """Query rows by view, prepared on first use; the entries' own rows where there are no others."""

    def __init__(
        self, arrays: Mapping[str, Any] | None, keys: Mapping[str, Tensor], settings: Mapping[str, Preparing]
    ):
        self._arrays, self._keys, self._settings = arrays, keys, settings
        self.not_finite = dict.fromkeys(keys, 0)

    def __len__(self) -> int:
        return len(next(iter((self._arrays or self._keys).values())))

    def rows(self, start: int, stop: int) -> dict[str, Tensor]:
        """``{view: [stop - start, D]}``."""
        if self._arrays is None:
            return {name: rows[start:stop] for name, rows in self._keys.items()}
        made = {name: prepare(a[start:stop], self._settings[name]) for name, a in self._arrays.items()}
        for name, part in made.items():
            self.not_finite[name] += part.not_finite
        return {name: part.rows for name, part in made.items()}

    def pick(self, rows: Tensor) -> dict[str, Tensor]:
        """``{view: [R, D]}`` of scattered rows."""
        if self._arrays is None:
            return {name: view[rows] for name, view in self._keys.items()}
        return {name: prepare(a[rows.numpy()], self._settings[name]).rows for name, a in self._arrays.items()}


def main(argv: Sequence[str]) -> int:
    """Runs `cpr mine`; prints a summary and returns 0.

    Raises:
        ValueError: an error of the user, in one line.
    """
    args: Mine = parse(Mine, argv, "mine")
    at_least(1, chunk=args.chunk, threads=args.threads)
    at_least(0, sample=args.sample)
    out = [] if args.out is None else output_paths(args.out, args.force)
    refuse_existing([args.report], args.force, "--report")
    with _threads(args.threads):
        summary = _run(args, out)
    result(as_json(summary), as_text(summary), sys.stderr if out == [STDOUT] else None)
    return 0


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _run(args: Mine, out: list[Any]) -> dict[str, Any]:
    entries, queries = open_sides(args)
    ids, labels = (find_names(kind, entries, queries, args) for kind in ("ids", "labels"))
    shown = None if args.progress else False
    with waiting("read the table", shown):
        if args.plan is None:
            schedule = schedule_of(args, list(entries.views), entries.rows)
            problem = _prepare(args, entries, queries, schedule, ids)
        else:
            plan = load_plan(args, list(entries.views))
            problem = _prepare_plan(args, plan, entries, queries, ids)
            schedule = problem.schedule

    started = time.perf_counter()
    indices, scores, backend = _mine(args, problem)
    seconds = time.perf_counter() - started

    summary: dict[str, Any] = {
        "input": ", ".join(map(str, [*([args.input] if args.input else []), *args.view])),
        "entries": entries.rows,
        "queries": len(problem.queries),
        "self": queries is None,
        "views": {name: entries.views[name].shape[1] for name in schedule.views if name in entries.views},
        "center": args.center,
        "normalize": args.normalize,
        "notes": problem.notes,
        "ids": ids.text,
        "labels": labels.text,
        "schedule": str(schedule),
        "topk": schedule.topk,
        "backend": backend,
        "dtype": args.dtype,
        "threads": torch.get_num_threads(),
        "seconds": seconds,
        "queries_per_second": len(indices) / seconds if seconds else 0.0,
        "short_queries": int((indices < 0).any(dim=1).sum()),
    }
    with waiting("PMR and stages", shown):
        summary |= _quality(args, problem, indices, labels_of(entries, labels))
    used = {*schedule.views, *ids.used, *labels.used}
    summary["columns"] = []
    if out:
        known = (Known("ids", "id", *_known(ids)), Known("labels", "label", *_known(labels)))
        mined = Result(indices.numpy(), scores.numpy(), str(schedule), known)
        further = _further(args, entries, queries, used, mined.names())
        with waiting("write", shown):
            write_result(out, mined._replace(known=(*known, *further)))
        summary["columns"] = [one.plural for one in further]
    summary["unused"] = [name for name in entries.columns if name not in {*used, *summary["columns"]}]
    summary["out"] = ["standard output" if path == STDOUT else str(path) for path in out]
    if args.report is not None:
        look = Look(plans=() if args.plan is None else (args.plan,))
        summary["out"].append(str(write_table(args, look, args.report)))
    return summary


def _prepare(args: Mine, entries: Side, queries: Side | None, schedule: Schedule, ids: Names) -> Problem:
    """The views that judge, as tensors; ids, or the row numbers where a row must not mine itself."""
    keys: dict[str, Tensor] = {}
    settings: dict[str, Preparing] = {}
    notes = [entries.views[name].note for name in schedule.views if entries.views[name].note]
    for name in schedule.views:
        array = entries.views[name].load()
        mean = mean_row(array) if args.center else None
        settings[name] = Preparing(mean, args.normalize, DTYPES[args.dtype], args.scratch)
        made = prepare(array, settings[name])
        keys[name] = made.rows
        notes += _odd_rows(name, made)
    arrays = None if queries is None else {name: queries.views[name].load() for name in schedule.views}
    return Problem(schedule, keys, _Queries(arrays, keys, settings), *_sources(entries, queries, ids), notes)


def _prepare_plan(args: Mine, plan: MiningPlan, entries: Side, queries: Side | None, ids: Names) -> Problem:
    """The table as the plan compares it, mined by the plan's cascade."""
    arrays = {name: (queries or entries).views[name].load() for name in plan.whiten}
    tables = {name: raw_view(entries.views[name].load(), args.scratch) for name in plan.whiten}
    key_ids, query_ids = _sources(entries, queries, ids)
    keys = plan.prepare_keys({name: made.rows for name, made in tables.items()}, key_ids)
    features = {name: rows.to(DTYPES[args.dtype]) for name, rows in plan.key_features(keys).items()}
    made = PlannedQueries(plan, keys, arrays, query_ids, args)
    notes = [f"mined by the plan {args.plan}", *missing_notes(tables)]
    return Problem(plan.cascade, features, made, keys.ids, query_ids, notes)


def _sources(entries: Side, queries: Side | None, ids: Names) -> tuple[Tensor | None, Tensor | None]:
    """The ids of entries and queries, or the row numbers where a row must not mine itself."""
    key_ids = None if ids.codes is None else ids.codes.of_keys
    query_ids = None if ids.codes is None else ids.codes.of_queries
    if queries is None and key_ids is None:
        key_ids = query_ids = torch.arange(entries.rows)
    return key_ids, query_ids


def _odd_rows(name: str, made: Prepared) -> list[str]:
    notes = []
    if made.not_finite:
        notes.append(f"{made.not_finite:,} rows of {name} hold NaN or infinity and are never mined")
    if made.zero:
        notes.append(f"{made.zero:,} rows of {name} are all zeros: they score 0 against everything")
    return notes


def _mine(args: Mine, problem: Problem) -> tuple[Tensor, Tensor, str]:
    """`indices [B, k]`, `scores [B, k]` and the backend's name."""
    count, backend = len(problem.queries), "none"
    indices = torch.empty(count, problem.schedule.topk, dtype=torch.int64)
    scores = torch.empty(count, problem.schedule.topk, dtype=torch.float32)
    with ProgressBar("mining", count, unit="query", shown=None if args.progress else False) as bar:
        for start in range(0, count, args.chunk):
            stop = min(start + args.chunk, count)
            queries = problem.queries.rows(start, stop)
            ids = None if problem.query_ids is None else problem.query_ids[start:stop]
            if start == 0:
                call = as_call(queries, problem.keys, problem.schedule, ids, problem.key_ids)
                backend = choose(mining.BACKENDS, call, args.backend).NAME
            indices[start:stop], scores[start:stop] = cascade_topk(
                queries,
                problem.keys,
                problem.schedule,
                query_ids=ids,
                key_ids=problem.key_ids,
                backend=args.backend,
            )
            bar.advance(stop - start)
    for name, odd in problem.queries.not_finite.items():
        if odd:
            problem.notes.append(f"{odd:,} query rows of {name} hold NaN or infinity and mine nothing")
    return indices, scores, backend


def _quality(args: Mine, problem: Problem, indices: Tensor, labels: Labels | None) -> dict[str, Any]:
    """Survivors of each stage; with labels PMR and CMR."""
    found: dict[str, Any] = {} if labels is None else quality(indices, labels)
    num_keys = len(next(iter(problem.keys.values())))
    rows = sample_rows(len(problem.queries), num_keys, args.sample)
    found["traced_queries"] = len(rows)
    found["stages"] = []
    if len(rows):
        traced = stage_rows(rows, _tracer(problem), problem.schedule, num_keys, labels)
        found["stages"] = [row._asdict() for row in traced]
    return found


def _tracer(problem: Problem) -> Any:
    """Rows of queries to their cascade and their eligible entries."""
    usable = torch.stack([~nan_rows(rows) for rows in problem.keys.values()]).all(dim=0)  # [N]
    if problem.key_ids is not None:
        usable &= problem.key_ids >= 0

    def trace(rows: Tensor) -> tuple[CascadeTrace, Tensor]:
        queries = problem.queries.pick(rows)
        ids = None if problem.query_ids is None else problem.query_ids[rows]
        sound = torch.stack([~view.isnan().any(dim=1) for view in queries.values()]).all(dim=0)  # [r]
        eligible = usable & sound[:, None]
        if problem.key_ids is not None and ids is not None:
            eligible &= problem.key_ids != ids[:, None]
        traced = cascade_trace(
            queries, problem.keys, problem.schedule, query_ids=ids, key_ids=problem.key_ids
        )
        return traced, eligible

    return trace


def _known(names: Names) -> tuple[np.ndarray | None, np.ndarray | None]:
    return names.of_queries, names.of_keys


def _further(args: Mine, entries: Side, queries: Side | None, used: set[str], taken: set[str]) -> list[Known]:
    """The columns that go through to the output: those that are named, or all whose names are not `taken` there.

    Raises:
        ValueError: a column that is not there, is not one value a row, or has a name of the output's own.
    """
    if args.columns == "none":
        return []
    of_keys = plain_columns(entries)
    of_queries = of_keys if queries is None else plain_columns(queries)
    named = args.columns.split(",") if args.columns else [name for name in of_keys if name not in used]
    found = []
    for name in named:
        if name not in of_keys:
            pick(entries.columns, name, "--columns")
            raise ValueError(f"--columns: {name!r} must have shape [{entries.rows}], one value a row")
        if {name, f"query_{name}", f"key_{name}"} & taken:
            if args.columns:
                raise ValueError(f"--columns: {name!r} is a name of the output's own; rename the column")
            continue
        values = as_given(of_keys[name])
        others = of_queries.get(name)
        own = values if queries is None else None if others is None else as_given(others)
        found.append(Known(name, name, own, values))
    return found
