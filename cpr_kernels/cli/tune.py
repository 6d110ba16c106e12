"""`cpr tune`: chooses how to mine a table, without labels."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tyro.conf import Positional

from ..progress import result
from ..tuning import MiningPlan, tune_schedule
from ..tuning.plan_files import whiteners_path
from ..tuning.steps import joint_schedule
from .arguments import at_least, parse
from .mine.inputs import Side, find_names, open_sides
from .mine.options import File, Mine, Names, ViewFiles
from .mine.planned import raw_rows
from .mine.summary import Labels, as_json, quality


@dataclass(frozen=True)
class Tune:
    """Choose how to mine a table without labels: whitening, expansion, hub term and schedule. Each candidate mines with
    one view left out, and that view says how many of the mined pairs are neighbours in it, too.
    """

    input: Positional[File] = None
    """Table of two views or more, as for cpr mine."""
    view: ViewFiles = ()
    """A view from its own file; repeatable."""
    views: Names = None
    """Arrays of FILE to use (default: all [N, D] float arrays)."""
    ids: Names = None
    """Array or .npy that names each row's source, as for cpr mine."""
    labels: Names = None
    """Array or .npy of classes, for the figures only: they take no part in the choice."""
    topk: int = 5
    """Positives per query."""
    sample: int = 1200
    """Rows that candidates are tried on."""
    seed: int = 0
    """Of the sample; the same seed gives the same plan."""
    out: File = None
    """Where the plan goes: a .json, with a .safetensors of the same name beside it."""
    force: bool = False
    """Replace --out if it exists."""
    progress: bool = True
    """Show progress: a bar on a terminal, else a line every 30 seconds."""


def main(argv: Sequence[str]) -> int:
    """Runs `cpr tune`; prints what was tried and chosen, and returns 0.

    Raises:
        ValueError: an error of the user, in one line.
    """
    args: Tune = parse(Tune, argv, "tune")
    at_least(1, topk=args.topk, sample=args.sample)
    at_least(0, seed=args.seed)
    _check_out(args)
    table = Mine(input=args.input, view=args.view, views=args.views, ids=args.ids, labels=args.labels)
    entries, _ = open_sides(table)
    ids, labels = (find_names(kind, entries, None, table) for kind in ("ids", "labels"))
    views = {name: raw_rows(column.load(), table.scratch) for name, column in entries.views.items()}
    sources = None if ids.codes is None else ids.codes.of_keys
    started = time.perf_counter()
    plan = tune_schedule(
        views,
        sources,
        topk=args.topk,
        sample=args.sample,
        seed=args.seed,
        progress=None if args.progress else False,
    )
    seconds = time.perf_counter() - started
    summary: dict[str, Any] = {"rows": entries.rows, "ids": ids.text, "seconds": seconds, **plan.to_dict()}
    if labels.codes is not None:
        named = Labels(labels.codes.of_queries, labels.codes.of_keys, list(map(str, labels.codes.names)))
        summary["labelled"] = _figures(plan, views, sources, named)
    if args.out is not None:
        plan.save(args.out)
    result(as_json(summary), _as_text(plan, summary, entries, args))
    return 0


def _check_out(args: Tune) -> None:
    """Raises ValueError where the plan could not be written, before any work."""
    if args.out is None:
        return
    if args.out.suffix != ".json":
        raise ValueError(f"--out: a plan is written as JSON; end {args.out.name!r} in .json")
    if not args.out.parent.is_dir():
        raise ValueError(f"--out: the folder {args.out.parent} does not exist; make it first")
    there = [str(path) for path in (args.out, whiteners_path(args.out)) if path.exists()]
    if there and not args.force:
        raise ValueError(f"--out: {', '.join(there)} is there already; add --force to replace it")


def _figures(
    plan: MiningPlan, views: dict[str, torch.Tensor], ids: torch.Tensor | None, labels: Labels
) -> dict[str, Any]:
    """PMR and CMR of the plan and of the plain joint score; they follow the choice and take no part in it."""
    sources = torch.arange(len(labels.of_keys)) if ids is None else ids
    plain = MiningPlan(
        {view: white._replace(matrix=None) for view, white in plan.whiten.items()}, None, None,
        joint_schedule(tuple(plan.whiten), plan.topk),
    )  # fmt: skip
    found = {}
    for name, how in (("plan", plan), ("joint", plain)):
        mined, _ = how.mine(views, how.prepare_keys(views, sources), sources)
        good = quality(mined, labels)
        found[name] = {"pmr": good["pmr"], "cmr": good["cmr_median"]}
    return found


def _as_text(plan: MiningPlan, summary: dict[str, Any], entries: Side, args: Tune) -> str:
    views = ", ".join(f"{name} [{column.shape[1]}]" for name, column in entries.views.items())
    lines = [f"input      {summary['rows']:,} rows; views {views}", f"ids        {summary['ids']}", ""]
    lines += [*str(plan).splitlines(), "", f"tuned in {summary['seconds']:.1f} s"]
    for name, good in summary.get("labelled", {}).items():
        lines.append(
            f"labels, not used for the choice: {name:<5} PMR {good['pmr']:.3f}  CMR {good['cmr']:.3f}"
        )
    lines.append(
        f"written    {args.out}" if args.out else "written    nothing; give --out plan.json to keep the plan"
    )
    return "\n".join(lines)
