"""What `cpr mine` says of its result: how good it is, stage by stage and class by class."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...metrics import class_mining_recall, median_recall, positive_mining_recall, true_positives
from ...mining import CascadeTrace, Schedule

EXTREMES = 3  # best and worst classes shown
TRACED = 1 << 22  # queries x entries looked at together


class StageRow(NamedTuple):
    """One line of the stage table, averaged over the traced queries."""

    judge: str  # "eligible" before the first stage
    keep: int | None
    survivors: float
    same_label: float | None  # share of the survivors; None without labels


class Labels(NamedTuple):
    """Classes of both sides, numbered; -1 is unknown."""

    of_queries: Tensor  # [B] int64
    of_keys: Tensor  # [N] int64
    names: Sequence[Any]


def sample_rows(num_queries: int, num_keys: int, size: int | None) -> Tensor:
    """At most `size` rows (default: 512, fewer for many entries), spread evenly over the queries: [size]."""
    if size is None:
        size = min(512, max(32, 8 * TRACED // max(num_keys, 1)))
    if num_queries <= size:
        return torch.arange(num_queries)
    return torch.arange(size) * num_queries // size


def stage_rows(
    rows: Tensor,
    trace: Callable[[Tensor], tuple[CascadeTrace, Tensor]],
    schedule: Schedule,
    num_keys: int,
    labels: Labels | None,
) -> list[StageRow]:
    """Survivors of each stage, and how many of them have the query's label.

    Args:
        rows: [R] int64, the queries to trace.
        trace: gives for some rows [r] their cascade, and which entries [r, N] were eligible (bool).
        schedule: what `trace` runs.
        num_keys: N, bounds how many queries are traced at a time.
        labels: classes, or None.
    """
    survivors = torch.zeros(len(schedule) + 1, dtype=torch.float64)
    same, known = torch.zeros_like(survivors), torch.zeros_like(survivors)
    step = min(64, max(1, TRACED // max(num_keys, 1)))
    for part in rows.split(step):
        traced, eligible = trace(part)
        counts = torch.cat([eligible.sum(dim=1, keepdim=True), traced.counts()], dim=1)  # [r, 1 + S]
        survivors += counts.sum(dim=0)
        if labels is None:
            continue
        own = labels.of_queries[part]
        labelled = own >= 0
        known += counts[labelled].sum(dim=0)
        same[0] += (eligible & (labels.of_keys == own[:, None]))[labelled].sum()
        for s, stage in enumerate(traced, start=1):
            same[s] += true_positives(stage.indices, own, labels.of_keys).sum()
    judges = ["eligible", *(str(stage).rpartition(":")[0] for stage in schedule)]
    keeps = [None, *(stage.keep for stage in schedule)]
    mean = (survivors / max(len(rows), 1)).tolist()
    share = [None] * len(judges) if labels is None else (same / known).tolist()
    return [StageRow(*row) for row in zip(judges, keeps, mean, share)]


def quality(indices: Tensor, labels: Labels) -> dict[str, Any]:
    """PMR, and CMR by class, of a mined table [B, k]; queries of unknown class are left out."""
    known = labels.of_queries >= 0
    mined, own = indices[known], labels.of_queries[known]
    recall = class_mining_recall(mined, own, labels.of_keys)
    return {
        "labelled_queries": int(known.sum()),
        "pmr": positive_mining_recall(mined, own, labels.of_keys).item(),
        "cmr_median": median_recall(recall),
        "cmr": {labels.names[c]: value for c, value in recall.items()},
    }


def as_json(value: Any) -> Any:
    """`value` with NaN as null, for strict readers of JSON."""
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_text(summary: Mapping[str, Any]) -> str:
    """The summary for a reader: inputs, schedule, speed, quality, stages, classes, files."""
    lines = [*_input_lines(summary)]
    lines.append(f"schedule  {summary['schedule']}")
    lines.append(
        f"mined     {summary['queries']:,} x {summary['topk']} in {summary['seconds']:.2f} s: "
        f"{summary['queries_per_second']:,.0f} queries/s ({summary['backend']} backend, {summary['dtype']}, "
        f"{summary['threads']} thread{'s' * (summary['threads'] > 1)})"
    )
    if summary["short_queries"]:
        lines.append(
            f"          {summary['short_queries']:,} queries have fewer than {summary['topk']} eligible"
            " entries: padded with index -1, score -inf"
        )
    if summary.get("labelled_queries"):
        lines.append(f"PMR       {summary['pmr']:.3f}  of the mined entries have their query's label")
        if summary["stages"]:
            lines[-1] += f" (a random eligible entry: {summary['stages'][0]['same_label']:.3f})"
        lines += _class_lines(summary)
    if summary["stages"]:
        lines += ["", *_stage_lines(summary), ""]
    lines.append(
        "written   " + (", ".join(summary["out"]) or "nothing; give --out mined.npz to keep the result")
    )
    return "\n".join(lines)


def _input_lines(summary: Mapping[str, Any]) -> list[str]:
    rows = f"{summary['entries']:,} entries"
    rows += ", each a query among the others" if summary["self"] else f", {summary['queries']:,} queries"
    views = ", ".join(f"{name} [{dim}]" for name, dim in summary["views"].items())
    done = [
        word for word, did in (("centred", summary["center"]), ("L2-normalised", summary["normalize"])) if did
    ]
    lines = [
        f"input     {summary['input']}: {rows}",
        f"views     {views}, {', '.join(done) or 'as they are'}",
    ]
    lines += [f"          {note}" for note in summary["notes"]]
    lines.append(f"ids       {summary['ids']}")
    lines.append(f"labels    {summary['labels']}")
    if summary["columns"]:
        lines.append(f"columns   {', '.join(summary['columns'])}")
    if summary["unused"]:
        lines.append(f"unused    {', '.join(summary['unused'])}")
    return lines


def _stage_lines(summary: Mapping[str, Any]) -> list[str]:
    rows = summary["stages"]
    over = f"{summary['traced_queries']:,} of {summary['queries']:,} queries, evenly spread"
    if summary["traced_queries"] == summary["queries"]:
        over = "all queries"
    width = max(8, *(len(row["judge"]) for row in rows))
    label = "same label" if rows[0]["same_label"] is not None else ""
    lines = [f"stage  {'judge':<{width}} {'keeps':>9} {'survivors':>11} {label:>11}   (mean of {over})"]
    for s, row in enumerate(rows):
        keep = "" if row["keep"] is None else f"{row['keep']:,}"
        same = "" if row["same_label"] is None else f"{row['same_label']:.3f}"
        number, judge = (str(s), row["judge"]) if s else ("", "eligible")
        lines.append(
            f"{number:>5}  {judge:<{width}} {keep:>9} {row['survivors']:>11,.1f} {same:>11}".rstrip()
        )
    return lines


def _class_lines(summary: Mapping[str, Any]) -> list[str]:
    ranked = sorted(summary["cmr"].items(), key=lambda item: (-item[1], item[0]))
    lines = [
        f"CMR       {summary['cmr_median']:.3f}  of a class's entries were mined as true positives "
        f"(median of {len(ranked)} classes)"
    ]
    if len(ranked) >= 2 * EXTREMES:
        for word, part in (("best", ranked[:EXTREMES]), ("worst", ranked[: -EXTREMES - 1 : -1])):
            lines.append(f"          {word:<5}  " + ", ".join(f"{name} {value:.3f}" for name, value in part))
    else:
        lines.append("          " + ", ".join(f"{name} {value:.3f}" for name, value in ranked))
    return lines
