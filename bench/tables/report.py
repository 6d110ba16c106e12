"""Writes tables from result documents. Everything here reads the JSON only, so it can be made again at any time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..harness.machine import slug
from ..harness.peer import OURS
from ..harness.text import duration, markdown, size

Document = dict[str, Any]

CAPTION = (
    "Times are medians (20th to 80th percentile) of interleaved bursts in one process. `x` columns say how many "
    "times as long a peer takes as cpr_kernels: medians of ratios taken within a round. The floor is the "
    "arithmetic of the similarities in float32 at the rate at which the cores only multiply and add, or the least "
    "bytes at the best rate of a copy (in caches, where they fit), whichever is longer. Peak memory is of one "
    "call, measured in a process of its own. Every answer was checked before its time was taken."
)


def stem(document: Document) -> str:
    """Returns the file name of a document without its ending: date, op, machine."""
    return f"{document['date']}-{document['op']}-{slug(document['machine'])}"


def read_all(folder: Path) -> list[Document]:
    """Returns every document in a folder, newest last."""
    found = []
    for path in sorted(folder.glob("*.json")):
        document = json.loads(path.read_text())
        if isinstance(document, dict) and document.get("format") == 1 and "rows" in document:
            found.append(document)
    return found


def newest(documents: Sequence[Document]) -> list[Document]:
    """Returns the last document of every op and machine, in the order of the ops; forced instruction sets come last."""
    last = {(d["op"], slug(d["machine"])): d for d in sorted(documents, key=lambda d: str(d["date"]))}
    order = ("cascade", "loss", "enqueue", "train_step")
    return sorted(
        last.values(),
        key=lambda d: (bool(d["settings"].get("isa")), slug(d["machine"]), order.index(d["op"])),
    )


def main_mode(document: Document) -> str:
    """Returns the mode whose times lead: warm on the CPU, eager on a GPU."""
    return "eager" if document["settings"]["device"] == "cuda" else "warm"


def rows_of(document: Document, workload: str, mode: str) -> dict[str, dict[str, Any]]:
    """Returns the measured rows of a workload in a mode, by peer."""
    return {
        row["peer"]: row
        for row in document["rows"]
        if row["workload"] == workload and row["mode"] == mode and row["status"] == "ok"
    }


def machine_line(document: Document) -> str:
    """Returns where, with what, and when a document was measured."""
    machine, v = document["machine"], document["versions"]
    where = f"{machine['gpu']}, " if "gpu" in machine else ""
    forced = " (forced for our kernels, not for the peers)" if document["settings"].get("isa") else ""
    return (
        f"{where}{machine['cpu']}, {machine['threads']} threads, {machine['isa']}{forced}; torch {v['torch']}, "
        f"Python {v['python']}; commit {document['commit']}, {document['date']}"
    )


def _named(document: Document, tiers: Sequence[str]) -> list[dict[str, Any]]:
    return [w for w in document["workloads"] if w["tier"] in tiers and not w["axis"]]


def _peers_present(document: Document, workloads: Sequence[dict[str, Any]], mode: str) -> list[str]:
    """Returns peers with a time on any of the workloads, in the order they ran, ours left out."""
    names = {w["name"] for w in workloads}
    seen = dict.fromkeys(
        row["peer"]
        for row in document["rows"]
        if row["workload"] in names and row["mode"] == mode and row["status"] == "ok"
    )
    return [name for name in seen if name != OURS]


def overview(document: Document, tiers: Sequence[str] = ("table", "more", "quick"), mode: str = "") -> str:
    """Returns a table with a line per workload: our time, every peer in times ours, the floor and memory."""
    mode = mode or main_mode(document)
    workloads = _named(document, tiers)
    peers = _peers_present(document, workloads, mode)
    header = ["workload", "B", "N", OURS, *peers, "over the floor", "peak memory", "leanest peer's"]
    lines = []
    for workload in workloads:
        rows = rows_of(document, workload["name"], mode)
        if OURS not in rows:
            continue
        ours = rows[OURS]
        times = [f"{rows[peer]['times_ours']:.3g}x" if peer in rows else "" for peer in peers]
        sizes = [
            r["peak_bytes"]
            for p, r in rows.items()
            if p != OURS and r["whole"] and r["peak_bytes"] is not None
        ]
        lines.append(
            [
                workload["name"],
                str(workload["num_queries"]),
                f"{workload['num_keys']:,}",
                f"{duration(ours['median_s'])} ({duration(ours['p20_s'])} to {duration(ours['p80_s'])})",
                *times,
                f"{ours['median_s'] / workload['floor_s']:.2f}x",
                "" if ours["peak_bytes"] is None else size(ours["peak_bytes"]),
                size(min(sizes)) if sizes else "",
            ]
        )
    return markdown(header, lines)


def goals_table(document: Document) -> str:
    """Returns a table of every goal with its verdict; empty when this op and device have none."""
    if not document["goals"]:
        return ""
    lines = [
        [g["workload"], g["against"], g["asked"], g["measured"], g["verdict"]] for g in document["goals"]
    ]
    return markdown(["workload", "against", "goal", "measured", "verdict"], lines)


def details(document: Document) -> str:
    """Returns a table of every row that was measured."""
    floors = {w["name"]: w["floor_s"] for w in document["workloads"]}
    lines = [
        [
            row["workload"],
            row["peer"],
            row["mode"],
            duration(row["median_s"]),
            f"{duration(row['p20_s'])} to {duration(row['p80_s'])}",
            f"{row['times_ours']:.3g}x",
            f"{row['median_s'] / floors[row['workload']]:.3g}x",
            "" if row["peak_bytes"] is None else size(row["peak_bytes"]),
        ]
        for row in document["rows"]
        if row["status"] == "ok"
    ]
    header = [
        "workload",
        "peer",
        "mode",
        "median",
        "p20 to p80",
        "times ours",
        "over the floor",
        "peak memory",
    ]
    return markdown(header, lines)


def left_out(document: Document) -> str:
    """Returns peers without a number, each reason once, with the number of workloads it holds for."""
    counted: dict[tuple[str, str, str], int] = {}
    for row in document["rows"]:
        if row["status"] != "ok":
            key = (row["peer"], row["status"], row["reason"])
            counted[key] = counted.get(key, 0) + 1
    return "\n".join(
        f"- {peer}: {status.upper() if status == 'refused' else status} on {count}, {reason}"
        for (peer, status, reason), count in counted.items()
    )


def section(document: Document) -> str:
    """Returns all about one document, in Markdown."""
    parts = [f"## {document['op']}", machine_line(document), overview(document)]
    if main_mode(document) == "eager":
        for mode in ("graph", "graph, cold L2"):
            parts += [f"Mode: {mode}", overview(document, mode=mode)]
    parts += [goals_table(document), left_out(document), "<details><summary>every row</summary>"]
    parts += [details(document), "</details>"]
    return "\n\n".join(part for part in parts if part)


def full_report(documents: Sequence[Document]) -> str:
    """Returns the text of `report.md`: the newest document of every op and machine."""
    sections = [section(document) for document in newest(documents)]
    return "\n\n".join(["# Benchmark results", f"Made by `python -m bench`. {CAPTION}", *sections]) + "\n"
