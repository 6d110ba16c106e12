"""Writes tables, plots and the section of docs/benchmarks.md of ``python -m bench scale``, from its result files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import nan
from pathlib import Path
from typing import Any

from cpr_kernels.plot_style import METHODS, drawn, legend_below, marks_of

from ..harness.machine import slug
from ..harness.peer import not_installed
from ..harness.text import duration, markdown, size
from ..tables.readme import between_markers, link_from, write_text

Document = dict[str, Any]
BEGIN, END = "<!-- scale:begin -->", "<!-- scale:end -->"
ABOUT = (
    "Of a queue in shares: a call is that of the slowest process, each with its part of the 64 queries and of the "
    "threads; the peaks are the largest process's; `index or shares` is all shares together, and `build` is enqueueing "
    "all rows. `process then` is all that is resident in the process at the peak of a call: Python, "
    "torch, the whole queue (in shares: its share) and the index. From 5,000,000 entries on queues are float16."
)


def stem(document: Document) -> str:
    """Returns the file name of a document without its ending."""
    return f"{document['date']}-scale-{slug(document['machine'])}"


def ok_rows(document: Document, bank: str = "") -> list[dict[str, Any]]:
    """Returns rows with figures, of one bank or of all."""
    return [row for row in document["measured"] if row["status"] == "ok" and bank in ("", row["bank"])]


def _size(row: dict[str, Any], name: str) -> str:
    return "" if row.get(name) is None else size(row[name])


def _commits(rows: Sequence[dict[str, Any]]) -> str:
    return ", ".join(dict.fromkeys(row["commit"] for row in rows))


def _cells(row: dict[str, Any]) -> list[str]:
    indexed = "index_bytes" in row
    return [
        row["method"],
        f"{row['size']:,}",
        row["schedule"],
        duration(row["call_s"]),
        f"{row['times_exact']:.2f}x" if indexed else "",
        f"{row['topk']:.3f}",
        f"{row['first_stage']:.3f}",
        f"{row['pmr']:.3f}",
        _size(row, "peak_bytes"),
        _size(row, "process_bytes"),
        _size(row, "index_bytes"),
        duration(row["build_s"]) if indexed else "",
        duration(row["update_s"]) if indexed else "",
    ]


def tables(document: Document) -> str:
    """Returns one table per bank, and what was left out."""
    header = [
        "method",
        "N",
        "schedule",
        "call of 64",
        "faster than exact",
        "recall, final",
        "recall, stage 1",
    ]
    header += ["PMR", "peak of a call", "process then", "index or shares", "build", "replace 64"]
    parts = []
    for bank, about in document["banks"].items():
        lines = [_cells(row) for row in ok_rows(document, bank)]
        if lines:
            parts.append(f"**{bank}**: {about}; then copies of them with noise.\n\n{markdown(header, lines)}")
    left = {
        f"{r['method']} at N={r['size']:,}: {r['reason']}"
        for r in document["measured"]
        if r["status"] != "ok"
    }
    parts += [f"Not run: {line}." for line in [*sorted(left), *document["refused"]]]
    return "\n\n".join([*parts, ABOUT])


def write(document: Document, out: Path) -> list[Path]:
    """Writes the tables as Markdown, and the plots where matplotlib is."""
    made = [out / f"{stem(document)}.md"]
    machine, v = document["machine"], document["versions"]
    where = (
        f"{machine['cpu']}, {machine['threads']} threads, {machine['isa']}; torch {v['torch']}, "
        f"faiss-cpu {v.get('faiss-cpu', 'not installed')}; commit {_commits(document['measured'])}, {document['date']}"
    )
    write_text(made[0], f"# Long queues\n\n{where}\n\n{tables(document)}\n")
    if not_installed("matplotlib", "matplotlib") is None and ok_rows(document):
        made += _plots(document, out / stem(document))
    return made


def _plots(document: Document, target: Path) -> list[Path]:
    """Draws speed, memory, final recall and PMR of the first bank under its longest schedule, against N."""
    made = [target.with_name(f"{target.name}.{ending}") for ending in ("png", "svg")]
    for path in made:
        path.write_bytes(drawn(lambda: _figure(document), path.suffix[1:]))
    return made


def _figure(document: Document) -> Any:
    from matplotlib.figure import Figure

    bank = next(iter(document["banks"]))
    rows = ok_rows(document, bank)
    schedule = max((row["schedule"] for row in rows), key=len)
    rows = [row for row in rows if row["schedule"] == schedule]
    panels = [
        ("times as fast as exact, interleaved", lambda r: r["times_exact"], True),
        ("the largest process at its peak (MB)", lambda r: (r.get("process_bytes") or nan) / 1e6, True),
        ("recall of the final entries", lambda r: r["topk"], False),
        ("PMR", lambda r: r["pmr"], False),
    ]
    figure = Figure(figsize=(13, 3.6), layout="constrained")
    axes = figure.subplots(1, len(panels))
    marks = marks_of((row["method"] for row in rows), {"native, exact": METHODS["cpr"]})
    for axis, (title, value, logarithmic) in zip(axes, panels):
        for i, (name, mark) in enumerate(marks.items()):
            points = sorted((row["size"], value(row)) for row in rows if row["method"] == name)
            style = {"color": mark.colour, "linestyle": mark.line, "marker": mark.marker, "fillstyle": "none"}
            axis.plot(*zip(*points), label=name, markersize=10 - i, **style)  # equal figures show as rings
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(lambda size, _: f"{size:,.0f}")
        if logarithmic:
            axis.set_yscale("log")
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_formatter("")
        axis.set_title(title)
        axis.set_xlabel("queue entries N")
    legend_below(figure, axes)
    figure.suptitle(f"{bank}, replicated with noise: {schedule}", x=0.01, ha="left")
    return figure


def newest(folder: Path) -> Document:
    """Returns the last scale document in a folder.

    Raises:
        ValueError: there is none.
    """
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*-scale-*.json"))]
    if not found:
        raise ValueError(f"{folder} holds no scale results: run `python -m bench scale` first")
    return max(found, key=lambda document: str(document["date"]))


def summary(document: Document, results: str) -> str:
    """Returns the page's lines: the first bank under its longest schedule, one row a method and power of ten.

    Raises:
        ValueError: there are no figures of that bank.
    """
    bank, about = next(iter(document["banks"].items()))
    rows = ok_rows(document, bank)
    if not rows:
        raise ValueError(
            f"the newest scale results hold no figures of {bank}: run `python -m bench scale` again"
        )
    schedule = max((row["schedule"] for row in rows), key=len)
    shown = {row["size"] for row in rows} & {10**digits for digits in range(5, 10)}
    lines = [
        [
            row["method"], f"{row['size']:,}", duration(row["call_s"]),
            f"{row['times_exact']:.2f}x" if "build_s" in row else "",
            f"{row['topk']:.3f}", f"{row['pmr']:.3f}", _size(row, "process_bytes"), _size(row, "index_bytes"),
            duration(row["build_s"]) if "build_s" in row else "",
        ]
        for row in rows
        if row["schedule"] == schedule and row["size"] in (shown or {row["size"]})
    ]  # fmt: skip
    header = [
        "method",
        "N",
        "64 queries",
        "faster than exact",
        "recall of the final 5",
        "PMR",
        "process at peak",
        "index or shares",
        "build",
    ]
    machine = document["machine"]
    busy = machine["load_before"] or 0
    shared = f"; the machine was shared, load {busy:g}: times are long, ratios are of interleaved calls"
    commit = _commits(rows) + (shared if busy > machine["cores"] / 2 else "")
    return (
        f"`python -m bench scale`: {about}, then copies of them with noise up to N (no independent videos, and none of "
        f"the queries' own); schedule `{schedule}`; {machine['cpu']}, {machine['threads']} threads, commit "
        f"{commit} ([all rows]({results}/{stem(document)}.md), "
        f"[plots]({results}/{stem(document)}.svg)).\n\n{markdown(header, lines)}"
    )


def rewrite_page(page: Path, results: Path) -> None:
    """Replaces the text between the scale markers of a page.

    Raises:
        ValueError: the page lacks a marker, or there are no results.
    """
    if not page.is_file():
        raise ValueError(f"--page {page}: no such file")
    body = summary(newest(results), link_from(page, results))
    write_text(page, between_markers(page, BEGIN, END, body))
