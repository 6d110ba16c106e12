"""The options of `cpr mine`, and the schedule that they name."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import torch
from tyro.conf import Positional, UseAppendAction, arg

from ...mining import Schedule, coclr_schedule, cpr_schedule, oracle_schedule, parse_schedule
from ..tables.pooling import Pool

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

File: TypeAlias = Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")]
Names: TypeAlias = Annotated[str | None, arg(metavar="A[,B]", help_behavior_hint="")]
Text: TypeAlias = Annotated[str | None, arg(metavar="TEXT", help_behavior_hint="")]
Count: TypeAlias = Annotated[int | None, arg(metavar="N", help_behavior_hint="")]
Preset: TypeAlias = Annotated[
    Literal["cpr", "coclr", "oracle"] | None, arg(metavar="{cpr,coclr,oracle}", help_behavior_hint="")
]
ViewFiles: TypeAlias = Annotated[
    UseAppendAction[tuple[str, ...]], arg(metavar="NAME=FILE", help_behavior_hint="")
]


@dataclass(frozen=True)
class Mine:
    """Mine positives: for each query, the entries that survive a cascade of views (most similar in one view, of these
    the most similar in another, ...), and print how good they are. Row i of every array is the same clip.
    """

    input: Positional[File] = None
    """.npz, .npy, .safetensors, .pt, .h5, .parquet, .feather, .csv, or a folder of one .npy or .npz a video"""
    view: ViewFiles = ()
    """A view from its own file or folder; repeatable."""
    views: Names = None
    """Arrays of FILE to use (default: all [N, D] float arrays)."""
    ids: Names = None
    """Array or file that names each row's source: rows of one source never mine each other, and a row whose id is -1
    or empty is never mined; several arrays are joined (default: an array called ids, id, source, video, ...; none:
    no ids).
    """
    labels: Names = None
    """Array or file of classes, for the figures only (default: labels, y, ...)."""
    queries: File = None
    """Other queries, arrays named as in FILE."""
    query_view: ViewFiles = ()
    """A view of the queries from its own file; repeatable."""
    query_ids: Names = None
    """Sources of the queries (default: as --ids)."""
    query_labels: Names = None
    """Classes of the queries (default: as --labels)."""
    pool: Pool = "mean"
    """What becomes of arrays [N, T, D], and of one array [T, D] a video: the mean or the maximum over T."""
    normalize: bool = True
    """L2-normalise each row."""
    center: bool = False
    """First subtract each view's mean over the entries."""
    schedule: Text = None
    """Stages view:keep; keep is a count, or a share of what the stage before kept: flow:0.5,rgb:200,flow+rgb:5."""
    preset: Preset = None
    """cpr: views alternate (default); coclr: one stage by the first view (default for a single view); oracle: one stage
    by all views together.
    """
    plan: File = None
    """A plan of `cpr tune`, in place of a schedule: says how to whiten, expand and mine."""
    order: Names = None
    """Views in the order of the stages (default: flow first, then as in the file)."""
    stages: Count = None
    """Stages of --preset cpr (default: 7; fewer for few entries)."""
    ratio: Text = None
    """Share that each stage of --preset cpr keeps (default: 0.5)."""
    topk: Count = None
    """Entries kept at the end (default: 5)."""
    out: File = None
    """Where the result goes: .npz, .npy (a pair of files), .csv, .parquet or .safetensors; - prints CSV on standard
    output and the summary on standard error.
    """
    report: File = None
    """Also write the page of `cpr explore` about the table, such as page.html."""
    columns: Names = None
    """Further columns that go through to --out, such as names (default: all of one value a row; none)."""
    force: bool = False
    """Replace --out if it exists."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the embeddings while mining."""
    backend: str = "auto"
    """auto, or a name that `cpr doctor` lists."""
    threads: Count = None
    """CPU threads (default: torch's choice)."""
    chunk: int = 1024
    """Queries per call."""
    scratch: Path = field(default_factory=lambda: Path(tempfile.gettempdir()))
    """Folder of a temporary file for entries that do not fit into half of the free memory."""
    sample: Count = None
    """Queries traced for the stage table (default: 512, fewer for many entries; 0: none)."""
    progress: bool = True
    """Show progress: a bar on a terminal, else a line every 30 seconds."""


def schedule_of(args: Mine, views: Sequence[str], num_keys: int) -> Schedule:
    """The schedule that the options ask for, over `views` and `num_keys` entries.

    Raises:
        ValueError: options that do not go together, an unknown view, or counts that grow.
    """
    shaping = {f"--{name}": getattr(args, name) for name in ("preset", "order", "stages", "ratio", "topk")}
    given = [flag for flag, value in shaping.items() if value is not None]
    if args.schedule is not None:
        if given:
            raise ValueError(f"{given[0]}: does not go with --schedule, which says it all")
        schedule = parse_schedule(args.schedule, num_keys)
        schedule.table(views)
        return schedule
    order = args.order.split(",") if args.order else sorted(views, key=lambda view: view != "flow")
    unknown = [view for view in order if view not in views]
    if unknown:
        raise ValueError(f"--order: no view {unknown[0]!r}; there is {', '.join(views)}")
    preset = args.preset or ("cpr" if len(order) > 1 else "coclr")
    if preset != "cpr" and (args.stages is not None or args.ratio is not None):
        flag = "--stages" if args.stages is not None else "--ratio"
        raise ValueError(f"{flag}: only --preset cpr has several stages, this is --preset {preset}")
    topk = 5 if args.topk is None else args.topk
    if topk < 1:
        raise ValueError(f"--topk: must be >= 1, got {topk}")
    if preset == "coclr":
        return coclr_schedule(order[0], topk)
    if preset == "oracle":
        return oracle_schedule(order, topk)
    ratio = _ratio(args.ratio)
    stages = args.stages
    if stages is None:
        stages = next((s for s in (7, 5, 3) if num_keys * ratio ** (s - 1) >= topk), 1)
    return cpr_schedule(order, num_keys, stages, ratio, topk)


def _ratio(text: str | None) -> Fraction:
    try:
        return Fraction(text or "0.5")
    except (ValueError, ZeroDivisionError) as error:
        raise ValueError(f"--ratio: expected a number such as 0.5 or 1/3, got {text!r}") from error
