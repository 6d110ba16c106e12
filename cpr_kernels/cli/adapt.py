"""`cpr adapt`: trains heads over a table of embeddings."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from torch import Tensor
from tyro.conf import Positional, arg

from ..memory.ids import with_own_sources
from ..progress import result, waiting
from ..train.adapt import AdaptConfig, Table
from ..train.adapt.job import Report, adapt
from .arguments import at_least, parse
from .mine.inputs import Side, find_names, open_sides
from .mine.options import File, Mine, Names, ViewFiles
from .mine.planned import raw_rows
from .mine.summary import as_json
from .tables import Column, open_columns


@dataclass(frozen=True, kw_only=True)
class Adapt(AdaptConfig):
    """Train a small head over each view of a table of embeddings, without labels: InfoNCE first, then positives mined
    across the views. A share of the sources is held out: they show what was gained (R@k where there are labels, how
    far the views agree where there are none), and which epoch is kept, before training included.

    The folder --out gets model.cpr (for cpr predict), weights.safetensors, program.pt2 (torch.export), report.json and
    log.jsonl. Stop it at any moment; --resume continues.
    """

    input: Positional[File] = None
    """Table as for cpr mine; two views or more, or one for --method infonce."""
    out: Annotated[Path, arg(metavar="FOLDER")]
    """Folder of the model."""
    view: ViewFiles = ()
    """A view from its own file; repeatable."""
    views: Names = None
    """Arrays of FILE to use (default: all [N, D] float arrays)."""
    ids: Names = None
    """Array or file that names each row's source, as for cpr mine; sources are held out whole."""
    labels: Names = None
    """Array or file of classes, for the figures and for --method ubernce."""
    clips: bool = False
    """Arrays [N, C, D] of FILE are C clips of a row, two of which are drawn at a step (default: their mean)."""
    hold_out: float = 0.2
    """Share of the sources that is held out."""
    threads: int | None = None
    """CPU threads (default: torch's choice)."""
    resume: bool = False
    """Continue what the same command began."""


def main(argv: Sequence[str]) -> int:
    """Runs `cpr adapt`; prints what was gained, and returns 0.

    Raises:
        ValueError: an error of the user, in one line.
    """
    args: Adapt = parse(Adapt, argv, "adapt")
    at_least(1, threads=args.threads)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    files = Mine(input=args.input, view=args.view, views=args.views, ids=args.ids, labels=args.labels)
    entries, _ = open_sides(files)
    ids, labels = (find_names(kind, entries, None, files) for kind in ("ids", "labels"))
    columns = _with_clips(entries, args) if args.clips else entries.views
    places = torch.arange(entries.rows)
    sources = places if ids.codes is None else with_own_sources(ids.codes.of_keys, places)
    with waiting("read the table"):
        rows = {name: _rows(column, files.scratch) for name, column in columns.items()}
    table = Table(rows, sources, None if labels.codes is None else labels.codes.of_keys)
    config = AdaptConfig(
        **{field.name: getattr(args, field.name) for field in dataclasses.fields(AdaptConfig)}
    )
    report = adapt(table, config, args.out, args.hold_out, args.resume)
    head = [
        f"input      {entries.rows:,} rows; views "
        + ", ".join(f"{name} {list(rows.shape[1:])}" for name, rows in table.views.items()),
        f"ids        {ids.text}",
        f"labels     {labels.text}",
    ]
    result(as_json(asdict(report)), "\n".join([*head, *as_lines(report)]))
    return 0


def _rows(column: Column, scratch: Path) -> Tensor:
    """Returns a view as float32, [N, D] or [N, C, D]."""
    array = column.load()
    if len(column.shape) == 2:
        return raw_rows(array, scratch)
    return torch.as_tensor(np.asarray(array[:], dtype=np.float32))


def _with_clips(entries: Side, args: Adapt) -> dict[str, Column]:
    """Returns the views of FILE with their clips."""
    if args.input is None or args.view:
        raise ValueError("--clips: needs FILE; views of their own files are pooled")
    whole = open_columns(args.input, pool="none")
    return {name: whole[name] for name in entries.views}


def as_lines(report: Report) -> list[str]:
    """Returns the report for a reader."""
    train, held = report.rows
    kept = f"epoch {report.epoch}" if report.epoch else "the start: no epoch agreed more"
    lines = [f"rows       {train:,} trained on, {held:,} held out", f"kept       {kept}"]
    if report.plan is not None:
        lines.append(f"mined by   {report.plan}")
    if report.agreement is not None:
        lines.append("agreement  {:.4f} before, {:.4f} after".format(*report.agreement))
    if report.recall is not None:
        before, after = report.recall
        width = max(map(len, before))
        lines.append("held-out rows, % before and after")
        for view, of in before.items():
            cells = (f"R@{k} {100 * share:5.1f} {100 * after[view][k]:5.1f}" for k, share in of.items())
            lines.append(f"  {view:<{width}}  " + "   ".join(cells))
    return [*lines, *(f"written    {path}" for path in report.files)]
