"""The options of `cpr mine`, and the schedule that they ask for."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import NoReturn

import torch

from ...mining import BACKENDS, Schedule, coclr_schedule, cpr_schedule, oracle_schedule, parse_schedule

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

EPILOG = """\
examples:
  Two views in one file, the paper's cascade (flow, rgb, flow, ...) from 5 stages to the best 5, a CSV out:
      cpr mine clips.npz --views flow,rgb --stages 5 --topk 5 --ids video --labels label --out mined.csv

  Large memory-mapped arrays, a cascade of one's own, other queries than entries:
      cpr mine --view flow=flow.npy --view rgb=rgb.npy --query-view flow=qf.npy --query-view rgb=qr.npy \\
          --schedule flow:0.1,rgb:200,flow+rgb:10 --chunk 4096 --out mined.npz
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Errors of the command line end like all others: one line, status 2."""
        raise ValueError(f"{message} (see cpr mine --help)")


def parser() -> argparse.ArgumentParser:
    """The options of `cpr mine`."""
    p = _Parser(
        prog="cpr mine",
        usage="cpr mine FILE [options]",
        description="Mine positives: for each query, the entries that survive a cascade of views (most\n"
        "similar in one view, of these the most similar in another, ...), and say how good they are.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _input_options(p)
    _schedule_options(p)
    names = ", ".join(backend.NAME for backend in BACKENDS)
    run = p.add_argument_group("run and result")
    run.add_argument(
        "--out", type=Path, metavar="FILE", help=".npz, .npy (a pair of files), .csv or .safetensors"
    )
    run.add_argument("--force", action="store_true", help="replace --out if it is there")
    run.add_argument("--json", action="store_true", help="print the summary as JSON")
    run.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="of the embeddings while mining (%(default)s)"
    )
    run.add_argument("--backend", default="auto", help=f"auto, {names} (auto)")
    run.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: torch's choice)")
    run.add_argument("--chunk", type=int, default=1024, metavar="N", help="queries per call (%(default)s)")
    run.add_argument(
        "--sample",
        type=int,
        metavar="N",
        help="queries traced for the stage table (default: 512, fewer for many entries; 0: none)",
    )
    run.add_argument(
        "--progress",
        action=argparse.BooleanOptionalAction,
        help="progress bar (default: when stderr is a terminal)",
    )
    return p


def _input_options(p: argparse.ArgumentParser) -> None:
    group = p.add_argument_group("input: row i of every array is the same clip")
    group.add_argument("input", nargs="?", type=Path, metavar="FILE", help=".npz, .safetensors or .npy")
    group.add_argument(
        "--view",
        action="append",
        default=[],
        metavar="NAME=FILE.npy",
        help="a view from its own file; repeatable",
    )
    group.add_argument(
        "--views", metavar="A,B", help="arrays of FILE to use (default: all [N, D] float arrays)"
    )
    group.add_argument(
        "--ids",
        metavar="A[,B]",
        help="array or .npy that names each row's source: rows of one source never mine each other, and "
        "a row with a negative or empty id is never mined; several arrays are joined (default: an array "
        "called ids, id, source, video, ...; none: no ids)",
    )
    group.add_argument(
        "--labels",
        metavar="A",
        help="array or .npy of classes, for the figures only (default: labels, y, ...)",
    )
    group.add_argument("--queries", type=Path, metavar="FILE", help="other queries, arrays named as in FILE")
    group.add_argument(
        "--query-view", action="append", default=[], metavar="NAME=FILE.npy", help="likewise, one view"
    )
    group.add_argument("--query-ids", metavar="A[,B]", help="sources of the queries (default: as --ids)")
    group.add_argument("--query-labels", metavar="A", help="classes of the queries (default: as --labels)")
    group.add_argument(
        "--normalize",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="L2-normalise each row (default: yes)",
    )
    group.add_argument(
        "--center", action="store_true", help="first take away each view's mean over the entries"
    )


def _schedule_options(p: argparse.ArgumentParser) -> None:
    group = p.add_argument_group("schedule: who judges, and how many stay")
    group.add_argument(
        "--schedule",
        metavar="TEXT",
        help="stages view:keep; keep is a count, "
        "or a share of what the stage before kept: flow:0.5,rgb:200,flow+rgb:5",
    )
    group.add_argument(
        "--preset",
        choices=("cpr", "coclr", "oracle"),
        help="cpr: views alternate (default); coclr: one stage by the first view (default for a single "
        "view); oracle: one stage by all views together",
    )
    group.add_argument(
        "--order", metavar="A,B", help="views in order of judging (default: flow first, then as found)"
    )
    group.add_argument("--stages", type=int, metavar="S", help="of --preset cpr (7; fewer for few entries)")
    group.add_argument("--ratio", metavar="R", help="share that each stage of --preset cpr keeps (0.5)")
    group.add_argument("--topk", type=int, metavar="K", help="entries kept at the end (5)")


def schedule_of(args: argparse.Namespace, views: Sequence[str], num_keys: int) -> Schedule:
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
