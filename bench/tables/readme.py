"""Writes the README's performance section from the result files: ``python -m bench readme``."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from .. import CHECKOUT, RESULTS
from ..harness.peer import OURS
from ..harness.text import duration
from ..harness.workloads import OPS
from .report import CAPTION, Document, goals_table, machine_line, newest, overview, read_all, rows_of, stem

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
TITLES = {
    "cascade": "Mining: the 7-stage cascade",
    "loss": "MIL-NCE, forward and backward",
    "enqueue": "Enqueue",
    "train_step": "Training step without encoders: mine, loss, backward, enqueue",
}


def performance(documents: Sequence[Document], results: str) -> str:
    """Returns the section's text; `results` is the results folder as the README links to it."""
    chosen = newest(documents)
    if not chosen:
        raise ValueError("no results to write about: run `python -m bench` first")
    parts = [f"One command behind every number: `python -m bench`. {CAPTION}"]
    for op in OPS:
        of_op = [document for document in chosen if document["op"] == op]
        if of_op:
            parts.append(f"### {TITLES[op]}")
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
        parts.append(f"<details><summary>{said}</summary>\n\n{goals}\n\n</details>")
    if any(workload["axis"] for workload in document["workloads"]):
        parts.append(f"![{document['op']}: time against N, B, D, V and S]({results}/{name}-growth.svg)")
    return [part for part in parts if part]


def _has_table(document: Document) -> bool:
    return any(workload["tier"] == "table" for workload in document["workloads"])


def _floors(document: Document) -> str:
    """Returns how far above the arithmetic floor each named shape is, in a sentence."""
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


def rewrite(readme: Path, results: Path) -> None:
    """Replaces the text between the markers of the README.

    Raises:
        ValueError: the README lacks a marker, or there are no results.
    """
    text = readme.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(
            f"{readme}: expected one {BEGIN} and, after it, one {END}; put both where the section belongs"
        )
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    link = Path(os.path.relpath(results.resolve(), readme.resolve().parent)).as_posix()
    body = performance(read_all(results), link)
    write_text(readme, f"{before}{BEGIN}\n{body}\n{END}{after}")


def write_text(path: Path, text: str) -> None:
    """Writes a file whole: a reader sees the old text or the new one."""
    from cpr_kernels.files import replacing

    with replacing([path]) as [part]:
        part.write_text(text)


def main(argv: Sequence[str]) -> int:
    """Rewrites the section of a page.

    Raises:
        ValueError: there is no such page, it lacks a marker, or there are no results.
    """
    parser = argparse.ArgumentParser(
        prog="python -m bench readme", description="Rewrite the performance section of a page."
    )
    parser.add_argument("--readme", type=Path, default=CHECKOUT / "README.md", help="the page")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the results folder to read")
    args = parser.parse_args(argv)
    if not args.readme.is_file():
        raise ValueError(f"--readme {args.readme}: no such file")
    rewrite(args.readme, args.out)
    print(f"rewrote {args.readme}")
    return 0
