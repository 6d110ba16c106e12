"""Mines fewer positives where mining is unsure: PMR of the surest pairs, by several signs that need no label.

    python -m bench coverage FOLDER [--page FILE]

FOLDER is as for `python -m bench tuning`. All pairs that the tuned plan mines are ranked by a sign, and the first are
kept, so that a query has as many positives as are sure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from cpr_kernels import MiningPlan, tune_schedule
from cpr_kernels.metrics import class_mining_recall, median_recall
from cpr_kernels.tuning.agreement import is_listed, is_mutual, view_neighbors

from ..harness.text import markdown
from ..tables.readme import between_markers, write_text
from .tuning import TOPK, Table, parser_of_tables, read, tables_in

BEGIN, END = "<!-- coverage:begin -->", "<!-- coverage:end -->"
WIDE = 20  # neighbours that two rows may share
SHARES = (0.75, 0.5, 0.25)  # of the pairs that are kept
SIGNS = {
    "rank": "fewer for every query",
    "score": "score",
    "views": "views in which they are mutual neighbours, then score",
    "shared": "neighbours that they share",
    "reciprocal": "rank of each for the other",
}


class Kept(NamedTuple):
    """Holds the figures of the pairs that are kept."""

    pmr: float
    cmr: float  # median over classes


class Row(NamedTuple):
    """Holds the figures of one table."""

    name: str
    whole: Kept
    kept: dict[str, list[Kept]]  # {sign: for each of SHARES}


def signs(table: Table, plan: MiningPlan) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns what the plan mines, [N, TOPK], and how sure each pair is by every sign; labels take no part."""
    wider = replace(plan, schedule=plan.schedule.with_topk(WIDE))
    keys = plan.prepare_keys(table.views, table.ids)
    wide, scores = wider.mine(table.views, keys, table.ids)
    mined, scores = wide[:, :TOPK], scores[:, :TOPK]
    rank = torch.arange(TOPK).expand_as(mined)
    lists = wide[mined.clamp(min=0)]  # [N, TOPK, WIDE]
    places = lists == torch.arange(len(mined))[:, None, None]
    back = torch.where(places.any(dim=2), places.double().argmax(dim=2), WIDE)
    held = torch.ones(len(mined), dtype=torch.bool)
    near = [view_neighbors(rows, table.ids, held) for rows in keys.whitened.values()]
    shared = torch.stack([is_listed(lists[:, k], wide).sum(dim=1) for k in range(TOPK)], dim=1)
    return mined, {
        "rank": -rank.double(),
        "score": scores.double(),
        "views": then(torch.stack([is_mutual(mined, lists) for lists in near]).sum(dim=0), scores),
        "shared": then(shared, scores),
        "reciprocal": -(rank + back).double(),
    }


def then(first: Tensor, second: Tensor) -> Tensor:
    """Returns numbers that rank by `first`, and where it is equal by `second`."""
    order = second.reshape(-1).argsort(stable=True)
    places = torch.empty(len(order), dtype=torch.float64).index_copy_(
        0, order, torch.arange(len(order), dtype=torch.float64)
    )
    return first.double() + places.view_as(first) / len(order)


def surest(mined: Tensor, sure: Tensor, share: float) -> Tensor:
    """Returns the mined entries with all but the surest `share` of the pairs -1; equally sure ones in their order."""
    order = sure.reshape(-1).argsort(descending=True, stable=True)
    dropped = order[round(share * len(order)) :]
    return mined.reshape(-1).index_fill(0, dropped, -1).view_as(mined)


def figures(table: Table, mined: Tensor) -> Kept:
    """Returns PMR and CMR of mined entries; padding counts for neither."""
    right = (table.labels[mined.clamp(min=0)] == table.labels[:, None]) & (mined >= 0)
    recall = class_mining_recall(mined, table.labels, table.labels)
    return Kept(float(right.sum() / (mined >= 0).sum()), median_recall(recall))


def study(table: Table) -> Row:
    """Returns all figures of one table."""
    plan = tune_schedule(table.views, table.ids, topk=TOPK)
    mined, of_signs = signs(table, plan)
    kept = {
        sign: [figures(table, surest(mined, sure, share)) for share in SHARES]
        for sign, sure in of_signs.items()
    }
    return Row(table.name, figures(table, mined), kept)


def page(rows: Sequence[Row]) -> str:
    """Returns the results as Markdown: PMR by the share that is kept, and CMR at half."""
    header = ["table", "all", *SIGNS]
    shares = ", ".join(f"{share:.0%}" for share in SHARES)
    lines = [
        [
            row.name,
            f"{row.whole.pmr:.3f}",
            *(" / ".join(f"{k.pmr:.3f}" for k in row.kept[sign]) for sign in SIGNS),
        ]
        for row in rows
    ]
    half = SHARES.index(0.5)
    recall = [
        [row.name, f"{row.whole.cmr:.3f}", *(f"{row.kept[sign][half].cmr:.3f}" for sign in SIGNS)]
        for row in rows
    ]
    says = "; ".join(f"*{sign}*: {text}" for sign, text in SIGNS.items())
    return (
        f"PMR of all pairs, and of the surest {shares} ({says}):\n\n{markdown(header, lines)}\n\n"
        f"CMR of all pairs, and of the surest half:\n\n{markdown(header, recall)}"
    )


def main(argv: Sequence[str]) -> int:
    """Runs the study on every table of a folder and prints its page.

    Raises:
        ValueError: a folder without tables, or a page without the section's markers.
    """
    does = "Keep the surest of the mined pairs, by signs that need no label; PMR against coverage."
    args = parser_of_tables("coverage", does).parse_args(argv)
    rows = []
    for path in tables_in(args.folder):
        rows.append(study(read(path)))
        print(f"{path.stem}: all {rows[-1].whole.pmr:.3f}", flush=True)
    text = page(rows)
    print(f"\n{text}")
    if args.page is not None:
        write_text(args.page, between_markers(args.page, BEGIN, END, text + "\n"))
    return 0
