"""Draws docs/cascade.svg: how a cascade narrows a queue, with the shares that a real table gives.

``python docs/cascade.py`` draws the recorded numbers (docs/cascade.json); ``python docs/cascade.py TABLE.npz`` measures
them first, on a table with the arrays flow, rgb, label and group (UCF101 class scores of a two-stream network).
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
NUMBERS = HERE / "cascade.json"
PICTURE = HERE / "cascade.svg"

WIDTH, HEIGHT, FLOOR, TALLEST = 900, 336, 222, 140  # px; FLOOR is the y of the bars' feet
LEFT, STEP, BAR = 51, 106, 56

STYLE = """
  .card { fill: #ffffff; stroke: #d0d7de } .ink { fill: #1f2328 } .soft { fill: #59636e }
  .kept { fill: #dbe4ee; stroke: #1f2328 } .right { fill: #0a5c36 } .line { stroke: #59636e }
  @media (prefers-color-scheme: dark) {
    .card { fill: #151b23; stroke: #3d444d } .ink { fill: #f0f6fc } .soft { fill: #b7bdc8 }
    .kept { fill: #2f3b4a; stroke: #f0f6fc } .right { fill: #4bd28f } .line { stroke: #b7bdc8 }
  }
  text { font-family: system-ui, 'Segoe UI', Helvetica, Arial, sans-serif; font-size: 14px; text-anchor: middle }
  .title { font-size: 17px; font-weight: 600; text-anchor: start } .share { font-size: 17px; font-weight: 600 }
  .start { text-anchor: start }
"""


def measure(table: Path) -> dict[str, Any]:
    """Returns the share of entries with the query's label: eligible ones, after each stage, and of flow alone."""
    import numpy as np
    import torch

    import cpr_kernels as cpr

    arrays = np.load(table)
    labels = torch.from_numpy(arrays["label"].astype(np.int64))
    ids = labels * 1000 + torch.from_numpy(arrays["group"].astype(np.int64))
    views = {}
    for name in ("flow", "rgb"):
        rows = torch.from_numpy(arrays[name])
        views[name] = torch.nn.functional.normalize(rows - rows.mean(dim=0), dim=1)
    schedule = cpr.cpr_schedule(("flow", "rgb"), num_keys=len(ids), stages=7, ratio=0.5, topk=5)
    masks = {"query_ids": ids, "key_ids": ids}

    def share(indices: torch.Tensor) -> float:
        same = (labels[indices.clamp(min=0)] == labels[:, None]) & (indices >= 0)
        return float((same.sum(1) / (indices >= 0).sum(1)).double().mean())

    eligible = ids[:, None] != ids
    same = (labels[:, None] == labels) & eligible
    stages = [
        {"view": str(stage.view), "keep": stage.keep, "share": round(share(indices), 5)}
        for stage, indices, _ in cpr.cascade_trace(views, views, schedule, **masks)
    ]
    single, _ = cpr.cascade_topk(views, views, cpr.coclr_schedule("flow"), **masks)
    return {
        "entries": len(ids),
        "classes": len(labels.unique()),
        "chance": round(float((same.sum(1) / eligible.sum(1)).double().mean()), 5),
        "flow_alone": round(share(single), 5),
        "stages": stages,
    }


def draw(numbers: dict[str, Any]) -> str:
    """Returns the picture: one bar a stage, its height the logarithm of the count, its foot filled by the share."""
    bars = [("queue", numbers["entries"], numbers["chance"])]
    bars += [(stage["view"], stage["keep"], stage["share"]) for stage in numbers["stages"]]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        'aria-labelledby="title about">',
        '<title id="title">A cascade narrows a queue to five positives</title>',
        f'<desc id="about">{_sentence(bars)}</desc>',
        f"<style>{STYLE}</style>",
        f'<rect class="card" x="0.5" y="0.5" width="{WIDTH - 1}" height="{HEIGHT - 1}" rx="10"/>',
        f'<text class="ink title" x="{LEFT}" y="34">Each stage keeps the entries most similar in one view</text>',
    ]
    for i, (name, count, share) in enumerate(bars):
        parts += _bar(LEFT + i * STEP, name, count, share, first=i == 0)
    notes = (
        f"Filled: share of entries with the query's class. Five entries by flow alone: {numbers['flow_alone']:.1%}.",
        f"{numbers['entries']:,} UCF101 test videos, {numbers['classes']} classes; mean over all queries.",
    )
    parts += [
        f'<text class="soft start" x="{LEFT}" y="{HEIGHT - 42 + 21 * i}">{note}</text>'
        for i, note in enumerate(notes)
    ]
    return "\n".join([*parts, "</svg>", ""])


def _bar(x: float, name: str, count: int, share: float, first: bool) -> list[str]:
    height = 36 + (TALLEST - 36) * math.log(count / 5) / math.log(4096 / 5)
    top, middle, filled = FLOOR - height, x + BAR / 2, share * height
    verb = "all" if first else "keeps"
    parts = [
        f'<rect class="kept" x="{x}" y="{top:.1f}" width="{BAR}" height="{height:.1f}"/>',
        f'<rect class="right" x="{x + 1}" y="{FLOOR - filled:.1f}" width="{BAR - 2}" height="{filled:.1f}"/>',
        f'<text class="ink share" x="{middle}" y="{top - 9:.1f}">{share:.1%}</text>',
        f'<text class="ink" x="{middle}" y="{FLOOR + 21}">{name}</text>',
        f'<text class="soft" x="{middle}" y="{FLOOR + 40}">{verb} {count:,}</text>',
    ]
    if not first:
        y = FLOOR - 9
        path = f"M{x - STEP + BAR + 12} {y} H{x - 12} m-6 -5 l6 5 l-6 5"
        parts.append(f'<path class="line" fill="none" stroke-width="1.5" d="{path}"/>')
    return parts


def _sentence(bars: list[tuple[str, int, float]]) -> str:
    (_, entries, chance), *stages = bars
    kept = ", ".join(f"{view} keeps {count:,} ({share:.1%})" for view, count, share in stages)
    return f"Of {entries:,} entries {chance:.1%} have the query's class; {kept}."


def main(arguments: list[str]) -> None:
    """Measures where a table is given, and draws."""
    if arguments:
        NUMBERS.write_text(json.dumps(measure(Path(arguments[0])), indent=1) + "\n")
    PICTURE.write_text(draw(json.loads(NUMBERS.read_text())))


if __name__ == "__main__":
    main(sys.argv[1:])
