"""Reads explorer pages: their data, and what the library mines from the same numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from bench_tools import ROOT  # noqa: F401  puts the repository's root on the path

from bench.harness.chromium import Page
from cpr_kernels import cascade_trace, parse_schedule
from cpr_kernels.train.pages.explorer.packed import unpacked

LISTED = (
    "[...document.querySelectorAll('.picks')].map(row => [...row.children].map(one => +one.dataset.entry))"
)


def body_of(path: Path) -> dict[str, Any]:
    """Returns the data of a page."""
    found = re.search(
        r'<script id="data" type="application/json">(.*?)</script>', path.read_text(), re.DOTALL
    )
    assert found
    return dict(json.loads(found[1]))


def by_library(run: dict[str, Any], schedule: str, queries: Sequence[int]) -> list[list[list[int]]]:
    """Returns the survivors of each stage, ascending and without padding, by `cascade_trace` on the page's numbers."""
    stages = parse_schedule(schedule, run["entries"])
    keys = {view["name"]: unpacked(view) for view in run["views"] if view["name"] in stages.views}
    biases = {view["name"] for view in run["views"] if view.get("bias")} & set(keys)
    rows = torch.tensor(list(queries))
    asked = {
        name: torch.ones(len(rows), 1).double() if name in biases else table[rows]
        for name, table in keys.items()
    }
    ids = torch.arange(run["entries"]) if run["sources"] is None else torch.tensor(run["sources"])
    lacks = torch.stack([table.isnan().any(dim=1) for table in keys.values()]).any(
        dim=0
    )  # eligible at no stage
    traced = cascade_trace(asked, keys, stages, query_ids=ids[rows], key_ids=torch.where(lacks, -1, ids))
    return [
        [sorted(i for i in stage.indices[q].tolist() if i >= 0) for stage in traced] for q in range(len(rows))
    ]


def in_page(tab: Page, schedule: str, queries: Sequence[int], run: int = 0) -> list[list[list[int]]]:
    """Returns the same by the page's own cascade, wherever the page mines."""
    found = tab.run(
        f"const stages = parseSchedule({json.dumps(schedule)}, runs[{run}]);"
        f"const found = await Promise.all({list(queries)}.map((query) => ask('trace', {run}, stages, query, [])));"
        "return found.map(({traced}) => traced.map((stage) => Array.from(stage.kept)));"
    )
    return list(found)
