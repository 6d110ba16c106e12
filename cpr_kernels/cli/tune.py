"""`cpr tune`: chooses how to mine a table, without labels."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tyro.conf import Positional

from ..files import refuse_existing
from ..progress import ProgressBar, result, waiting
from ..tuning import MiningPlan, tune_schedule
from ..tuning.plan_files import whiteners_path
from ..tuning.steps import joint_schedule
from ..tuning.tune import as_plan
from ..tuning.whitening import principal_axes
from .arguments import at_least, parse
from .mine.inputs import Side, find_names, open_sides
from .mine.options import File, Mine, Names, ViewFiles
from .mine.planned import missing_notes, raw_view
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
    plot: File = None
    """Where a plot of the candidates by agreement goes: .svg or .png; where there are labels, with the PMR of each."""
    force: bool = False
    """Replace --out and --plot if they exist."""
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
    _check_plot(args)
    table = Mine(input=args.input, view=args.view, views=args.views, ids=args.ids, labels=args.labels)
    entries, _ = open_sides(table)
    ids, labels = (find_names(kind, entries, None, table) for kind in ("ids", "labels"))
    shown = None if args.progress else False
    with waiting("read the table", shown):
        read = {name: raw_view(column.load(), table.scratch) for name, column in entries.views.items()}
    views, notes = {name: made.rows for name, made in read.items()}, missing_notes(read)
    sources = None if ids.codes is None else ids.codes.of_keys
    started = time.perf_counter()
    plan = tune_schedule(
        views,
        sources,
        topk=args.topk,
        sample=args.sample,
        seed=args.seed,
        progress=shown,
    )
    seconds = time.perf_counter() - started
    summary: dict[str, Any] = {"rows": entries.rows, "ids": ids.text, "seconds": seconds, "notes": notes}
    summary |= plan.to_dict()
    held = _Table(views, sources, None)
    if labels.codes is not None:
        names = list(map(str, labels.codes.names))
        held = held._replace(labels=Labels(labels.codes.of_queries, labels.codes.of_keys, names))
        with waiting("PMR of the plan", shown):
            summary["labelled"] = {"plan": held.quality(plan), "joint": held.quality(_plain(plan))}
    if args.out is not None:
        plan.save(args.out)
    if args.plot is not None:
        _plot(args, args.plot, plan, held)
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
    refuse_existing([args.out, whiteners_path(args.out)], args.force)


def _check_plot(args: Tune) -> None:
    """Raises ValueError where the plot could not be written, before any work."""
    if args.plot is None:
        return
    if args.plot.suffix.lower() not in (".svg", ".png"):
        raise ValueError(f"--plot: is drawn as .svg or .png; end {args.plot.name!r} in one of them")
    if not args.plot.parent.is_dir():
        raise ValueError(f"--plot: the folder {args.plot.parent} does not exist; make it first")
    refuse_existing([args.plot], args.force, "--plot")
    if find_spec("matplotlib") is None:
        raise ImportError("--plot: drawing needs matplotlib: pip install 'cpr_kernels[train]'")


def _plot(args: Tune, path: Path, plan: MiningPlan, table: _Table) -> None:
    """Draws every candidate's agreement on the sample and, where there are labels, its PMR on the whole table."""
    from ..train.pages.plots import save_dots

    if not plan.candidates:
        raise ValueError(f"--plot: there is nothing to draw, since nothing was compared: {plan.doubt}")
    series = {"agreement, no labels": [tried.agreement for tried in plan.candidates]}
    if table.labels is not None:
        axes, found = {view: principal_axes(rows) for view, rows in table.views.items()}, []
        with ProgressBar(
            "PMR", len(plan.candidates), unit="candidate", shown=None if args.progress else False
        ) as bar:
            for tried in plan.candidates:
                found.append(table.quality(as_plan(tried.settings, axes))["pmr"])
                bar.advance()
        series["PMR by labels, not used"] = found
    marked = next((place for place, tried in enumerate(plan.candidates) if tried.chosen), None)
    save_dots(path, [str(tried.settings) for tried in plan.candidates], series, marked)


class _Table(NamedTuple):
    """Holds what is tuned on, and the classes that figures are measured by."""

    views: dict[str, torch.Tensor]
    ids: torch.Tensor | None
    labels: Labels | None

    def quality(self, plan: MiningPlan) -> dict[str, float]:
        """Returns PMR and CMR of a plan on the whole table; they follow the choice and take no part in it."""
        assert self.labels is not None
        ids = torch.arange(len(self.labels.of_keys)) if self.ids is None else self.ids
        mined, _ = plan.mine(self.views, plan.prepare_keys(self.views, ids), ids)
        good = quality(mined, self.labels)
        return {"pmr": good["pmr"], "cmr": good["cmr_median"]}


def _plain(plan: MiningPlan) -> MiningPlan:
    """Returns the joint score of a plan's views, centred and nothing else."""
    whiten = {view: white._replace(matrix=None) for view, white in plan.whiten.items()}
    return MiningPlan(whiten, None, None, joint_schedule(tuple(plan.whiten), plan.topk))


def _as_text(plan: MiningPlan, summary: dict[str, Any], entries: Side, args: Tune) -> str:
    views = ", ".join(f"{name} [{column.shape[1]}]" for name, column in entries.views.items())
    lines = [f"input      {summary['rows']:,} rows; views {views}", f"ids        {summary['ids']}"]
    lines += [*(f"note       {note}" for note in summary["notes"]), ""]
    lines += [*str(plan).splitlines(), "", f"tuned in {summary['seconds']:.1f} s"]
    for name, good in summary.get("labelled", {}).items():
        lines.append(
            f"labels, not used for the choice: {name:<5} PMR {good['pmr']:.3f}  CMR {good['cmr']:.3f}"
        )
    lines.append(
        f"written    {args.out}" if args.out else "written    nothing; give --out plan.json to keep the plan"
    )
    if args.plot is not None:
        lines.append(f"plot       {args.plot}")
    return "\n".join(lines)
