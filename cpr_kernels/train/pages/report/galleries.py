"""Chooses the mined positives that the page shows: some queries of each phase, with what every way of mining picked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ....plot_style import Mark
from ...runtime.run_log import read_lines
from ..thumbnails import Album
from .names import SUMS


def galleries(
    run: Path, album: Album, names: Mapping[str, str], marks: Mapping[str, Mark], shown: int
) -> list[dict[str, Any]]:
    """Returns, for each phase, the first clips of its last batch, one per class, and what each way of mining picked."""
    last: dict[str, dict[str, Any]] = {}
    for line in read_lines(run / "mined.jsonl"):
        if line["picks"]:
            last[line["phase"]] = line
    mined = {phase: line for phase, line in last.items() if "mined" in line["picks"]}
    return [
        {"phase": phase, "queries": _queries(line, album, names, marks, shown)}
        for phase, line in (mined or last).items()
    ]


def _queries(
    line: dict[str, Any], album: Album, names: Mapping[str, str], marks: Mapping[str, Mark], shown: int
) -> list[dict[str, Any]]:
    queries: list[dict[str, Any]] = []
    seen = set()
    for row, video in enumerate(line["videos"]):
        label = album.label(video)
        if label in seen or len(queries) == shown:
            continue
        seen.update([label] if label else [])
        ways = []
        for way in (way for way in names if way in line["picks"] and way not in SUMS):
            picks = [
                {**album.clip(pick), "right": album.label(pick) == label if label else None}
                for pick in line["picks"][way][row]
                if pick >= 0
            ]
            right = sum(bool(pick["right"]) for pick in picks)
            ways.append({"name": names[way], "mark": marks[way], "picks": picks, "right": right})
        queries.append({"clip": album.clip(video), "ways": ways})
    return queries
