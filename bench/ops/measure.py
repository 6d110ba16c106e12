"""Measures ops against their peers, writes the results and prints the tables: ``python -m bench measure``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from .. import RESULTS
from ..harness.machine import configure
from ..harness.peer import Settings
from ..harness.workloads import Workload, by_name, workloads_of
from ..tables import plots
from ..tables.readme import write_text
from ..tables.report import CAPTION, Document, full_report, goals_table, left_out, overview, read_all, stem
from .runner import run_op
from .table import OPS


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench measure",
        description="Measure cpr_kernels against its peers. Answers are checked before times are taken.",
        epilog="`python -m bench OP` is short for `python -m bench measure --op OP`.",
    )
    parser.add_argument("--op", choices=[*OPS, "all"], default="all", help="what to measure (default: all)")
    parser.add_argument(
        "--workload", action="append", default=[], metavar="NAME", help="only this one; may repeat"
    )
    parser.add_argument("--list", action="store_true", help="print workloads and their sources, and stop")
    parser.add_argument(
        "--quick", action="store_true", help="tiny workloads in seconds: a smoke test, no figures"
    )
    parser.add_argument("--no-growth", action="store_true", help="leave the growth series out")
    parser.add_argument("--no-compile", action="store_true", help="leave peers under torch.compile out")
    parser.add_argument("--no-memory", action="store_true", help="leave peak memory out")
    parser.add_argument("--cold", action="store_true", help="time calls after flushing the caches too (CPU)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="torch threads (default: torch's)"
    )
    parser.add_argument(
        "--isa", default="", help="instruction set of the native core, e.g. avx2 (default: the best)"
    )
    parser.add_argument(
        "--published", default="", metavar="PATH", help="a checkout of the published code, to run it"
    )
    parser.add_argument(
        "--budget", type=float, default=8.0, metavar="SECONDS", help="timing per workload (default: 8)"
    )
    parser.add_argument(
        "--out", type=Path, default=None, metavar="DIR", help="where results go (bench/results)"
    )
    return parser


def _settings(args: argparse.Namespace) -> Settings:
    return Settings(
        device=args.device,
        threads=args.threads,
        isa=args.isa,
        published=str(Path(args.published).expanduser().resolve()) if args.published else "",
        compiled=not (args.no_compile or args.quick),
        budget_s=0.2 if args.quick else args.budget,
        memory=not args.no_memory,
        cold=args.cold,
        quick=args.quick,
    )


def _names(args: argparse.Namespace) -> list[str]:
    return list(OPS) if args.op == "all" else [args.op]


def _chosen(op: str, args: argparse.Namespace) -> list[Workload]:
    """Returns the chosen workloads; a name that only another op has is not an error with `--op all`."""
    if args.workload:
        known = {w.name for quick in (False, True) for w in workloads_of(op, quick=quick)}
        return [by_name(op, name) for name in args.workload if args.op != "all" or name in known]
    listed = workloads_of(op, quick=args.quick)
    return [w for w in listed if not (args.no_growth and w.axis)]


def keep(document: Document, out: Path) -> Path:
    """Writes the document's JSON into the folder and returns its path."""
    out.mkdir(parents=True, exist_ok=True)
    target = out / f"{stem(document)}.json"
    write_text(target, json.dumps(document, indent=1) + "\n")
    return target


def write(document: Document, out: Path) -> list[Path]:
    """Writes the document's JSON, growth plots and the report of all results; returns their paths."""
    made = [keep(document, out)]
    reason = plots.why_not()
    if reason is None:
        made += plots.draw(document, out / f"{stem(document)}-growth")
    elif plots.letters(document):
        print(f"no growth plots: matplotlib is {reason}")
    write_text(out / "report.md", full_report(read_all(out)))
    return [*made, out / "report.md"]


def _print_list(names: Sequence[str]) -> None:
    for op in names:
        print(op)
        for workload in workloads_of(op):
            print(f"  {workload}: {workload.source}")


def _measure(args: argparse.Namespace) -> int:
    settings = _settings(args)
    configure(settings)
    # a smoke test's rows are no results: they are kept only where --out says so
    out = args.out or (None if args.quick else RESULTS)
    documents = []
    chosen = {name: _chosen(name, args) for name in _names(args)}
    if not any(chosen.values()):
        raise ValueError(f"no op has a workload named {', '.join(args.workload)}; see --list")
    for name, workloads in chosen.items():
        if not workloads:
            continue
        document = run_op(
            OPS[name],
            workloads,
            settings,
            say=lambda line: print(line, flush=True),
            keep=lambda so_far: None if out is None else keep(so_far, out),
        )
        documents.append(document)
        if out is not None:
            for path in write(document, out):
                print(f"wrote {path}")
    print(f"\n{CAPTION}")
    for document in documents:
        for part in (f"## {document['op']}", overview(document), goals_table(document), left_out(document)):
            if part:
                print(f"\n{part}")
    refused = [row for document in documents for row in document["rows"] if row["status"] == "refused"]
    if refused:
        print(f"\n{len(refused)} wrong answers were refused; see REFUSED above", file=sys.stderr)
    return 1 if refused else 0


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns 1 after a wrong answer.

    Raises:
        ValueError: an argument that cannot work.
    """
    args = _parser().parse_args(argv)
    if args.list:
        _print_list(_names(args))
        return 0
    return _measure(args)
