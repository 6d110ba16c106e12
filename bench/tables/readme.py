"""Writes the tables of README.md and docs/benchmarks.md from the result files: ``python -m bench readme``."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from .. import CHECKOUT, RESULTS
from ..harness.peer import OURS
from ..harness.text import duration, markdown, size
from ..harness.workloads import OPS
from .report import (
    CAPTION,
    Document,
    goals_table,
    machine_line,
    main_mode,
    newest,
    overview,
    read_all,
    rows_of,
    stem,
)

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
TITLES = {
    "cascade": "Mining: the 7-stage cascade",
    "loss": "MIL-NCE, forward and backward",
    "enqueue": "Enqueue",
    "train_step": "Training step without encoders: mine, loss, backward, enqueue",
}

COMPARED = {  # columns of the README's table: peers by their name in the results
    "strong torch": "strong torch",
    "matmuls alone": "the two matmuls alone",
    "published algorithm, restated": "published algorithm",
}


def summary(documents: Sequence[Document], results: str) -> str:
    """Returns the README's lines: the newest unforced CPU run of the cascade, one row per workload of the table tier.

    Raises:
        ValueError: there is no such run.
    """
    found = [
        d
        for d in documents
        if d["op"] == "cascade" and main_mode(d) == "warm" and not d["settings"].get("isa")
    ]
    if not found:
        raise ValueError("no CPU results of the cascade to write about: run `python -m bench` first")
    document = max(found, key=lambda d: str(d["date"]))
    tier = "table" if _has_table(document) else "quick"
    lines = []
    for workload in document["workloads"]:
        rows = rows_of(document, workload["name"], "warm")
        if workload["tier"] == tier and not workload["axis"] and OURS in rows:
            peak = rows[OURS]["peak_bytes"]
            lines.append(
                [
                    f"{workload['num_queries']} x {workload['num_keys']:,}",
                    duration(rows[OURS]["median_s"]),
                    *(f"{rows[peer]['times_ours']:.3g}x" if peer in rows else "" for peer in COMPARED),
                    "" if peak is None else size(peak),
                ]
            )
    table = markdown(["queries x entries", OURS, *COMPARED.values(), "peak memory"], lines)
    return f"{table}\n\n{machine_line(document)} ([rows]({results}/{stem(document)}.json))."


def performance(documents: Sequence[Document], results: str) -> str:
    """Returns the benchmark page's text; `results` is the results folder as the page links to it.

    Raises:
        ValueError: there are no results.
    """
    chosen = newest(documents)
    if not chosen:
        raise ValueError("no results to write about: run `python -m bench` first")
    parts = [CAPTION]
    for op in OPS:
        of_op = [document for document in chosen if document["op"] == op]
        if of_op:
            parts.append(f"## {TITLES[op]}")
        for document in of_op:
            parts += _about(document, results)
    return "\n\n".join(parts)


def _about(document: Document, results: str) -> list[str]:
    """Returns one machine's table, floors, goals and plot."""
    name = stem(document)
    parts = [f"{machine_line(document)} ([rows]({results}/{name}.json))."]
    parts.append(overview(document, tiers=("table",)) if _has_table(document) else overview(document))
    parts.append(_floors(document))
    goals = goals_table(document)
    if goals:
        met = sum(goal["verdict"] == "met" for goal in document["goals"])
        said = f"{met} of {len(document['goals'])} goals met"
        parts.append(f"<details markdown><summary>{said}</summary>\n\n{goals}\n\n</details>")
    if any(workload["axis"] for workload in document["workloads"]):
        parts.append(f"![{document['op']}: time against N, B, D, V and S]({results}/{name}-growth.svg)")
    return [part for part in parts if part]


def _has_table(document: Document) -> bool:
    return any(workload["tier"] == "table" for workload in document["workloads"])


def _floors(document: Document) -> str:
    """Returns a sentence: how far above the arithmetic floor each named shape is."""
    if document["op"] == "enqueue":
        return ""
    said = []
    for workload in document["workloads"]:
        rows = rows_of(document, workload["name"], "warm") or rows_of(document, workload["name"], "eager")
        if OURS in rows and not workload["axis"]:
            times = rows[OURS]["median_s"] / workload["floor_s"]
            said.append(f"{workload['name']} {times:.2f}x ({duration(workload['floor_s'])})")
    rate = document["ceilings"]["flops_per_s"]
    unit = f"{rate / 1e12:.1f} TFLOP/s" if rate >= 1e12 else f"{rate / 1e9:.0f} GFLOP/s"
    return f"Above the floor of the arithmetic ({unit} here): {', '.join(said)}." if said else ""


def rewrite(page: Path, results: Path, text: Callable[[Sequence[Document], str], str] = performance) -> None:
    """Replaces the text between the markers of a page by the `text` of all result files.

    Raises:
        ValueError: the page lacks a marker, or there are no results.
    """
    body = text(read_all(results), link_from(page, results))
    write_text(page, between_markers(page, BEGIN, END, body))


def link_from(page: Path, folder: Path) -> str:
    """Returns the folder as a page links to it."""
    return Path(os.path.relpath(folder.resolve(), page.resolve().parent)).as_posix()


def between_markers(page: Path, begin: str, end: str, body: str) -> str:
    """Returns the page's text with `body` between the two markers.

    Raises:
        ValueError: the page lacks a marker.
    """
    text = page.read_text()
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(
            f"{page}: expected one {begin} and, after it, one {end}; put both where the section belongs"
        )
    before, rest = text.split(begin)
    return f"{before}{begin}\n{body}\n{end}{rest.split(end)[1]}"


def write_text(path: Path, text: str) -> None:
    """Writes a file whole: a reader sees the old text or the new one."""
    from cpr_kernels.files import replacing

    with replacing([path]) as [part]:
        part.write_text(text)


def main(argv: Sequence[str]) -> int:
    """Rewrites the README's table, and the section of the benchmark page.

    Raises:
        ValueError: there is no such page, it lacks a marker, or there are no results.
    """
    parser = argparse.ArgumentParser(
        prog="python -m bench readme", description="Rewrite the README's table and the benchmark page."
    )
    parser.add_argument("--readme", type=Path, default=CHECKOUT / "README.md", help="page of the one table")
    parser.add_argument(
        "--page", type=Path, default=CHECKOUT / "docs" / "benchmarks.md", help="page of all tables"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="the results folder to read")
    args = parser.parse_args(argv)
    for option, page in (("--readme", args.readme), ("--page", args.page)):
        if not page.is_file():
            raise ValueError(f"{option} {page}: no such file")
    rewrite(args.readme, args.out, summary)
    rewrite(args.page, args.out)
    print(f"rewrote {args.readme} and {args.page}")
    return 0
