"""What the figures of the modalities and of IIC say: sentences made from them, whichever way they came out."""

from __future__ import annotations

from statistics import mean
from typing import Any

from .protocol import WARM_UP
from .protocol_reading import cell, points, verdict

Runs = dict[str, dict[str, Any]]  # {seed: figures}


def reading(results: dict[str, Runs]) -> list[str]:
    """Each row against the first and against the warm-up, in R@1 of its views; what it mines; and who lacks a view."""
    rows = {row: runs for row, runs in results.items() if runs and row != WARM_UP}
    if not rows:
        return []
    first, *others = rows
    spread = max(_spread(runs) for runs in rows.values())
    said = [
        sentence for row in others if (sentence := _against_first(row, rows[row], first, rows[first], spread))
    ]
    for row, runs in rows.items():
        said += _against_warm_up(row, runs, results.get(WARM_UP, {}), spread)
    if len(next(iter(rows.values()))) > 1:
        said.append(f"Seeds of one row differ by up to {100 * spread:.1f} points of R@1.")
    said += [sentence for row, runs in rows.items() if (sentence := _mined_last(row, list(runs.values())))]
    for row, runs in rows.items():
        for view, share in next(iter(runs.values()))["missing"].items():
            said.append(
                f"{row}: {100 * share:.1f} % of the training videos have no {view}; it scores 0 for them."
            )
    return said


def _against_first(row: str, runs: Runs, first: str, of_first: Runs, spread: float) -> str:
    """R@1 of all views of a row against those of the first row, and of the first row's first view alone."""
    seeds = [seed for seed in runs if seed in of_first]
    if not seeds:
        return ""
    gain = [_whole_r1(runs[seed]) - _whole_r1(of_first[seed]) for seed in seeds]
    view = next(iter(of_first[seeds[0]]["recall"]))
    alone = [runs[seed]["recall"][view]["1"] - of_first[seed]["recall"][view]["1"] for seed in seeds]
    return (
        f"{row} against {first}: R@1 of all its views together {points(gain)}; {verdict(gain, spread)}. "
        f"R@1 of {view} alone {points(alone)}."
    )


def _against_warm_up(row: str, runs: Runs, warm_up: Runs, spread: float) -> list[str]:
    """What training with mined positives added to the same views of the encoders that it began with."""
    seeds = [seed for seed in runs if seed in warm_up]
    if not seeds:
        return []
    view = _whole(runs[seeds[0]])
    if view not in warm_up[seeds[0]]["recall"]:
        return []
    gain = [runs[seed]["recall"][view]["1"] - warm_up[seed]["recall"][view]["1"] for seed in seeds]
    return [f"{row} against its warm-up: R@1 of {view} {points(gain)}; {verdict(gain, spread)}."]


def _mined_last(row: str, runs: list[dict[str, Any]]) -> str:
    """How much of what a row mines in its last cycle is right, and how much the sum of all its views would find."""
    phases = [phase for phase in runs[0]["mining"] if "mined" in runs[0]["mining"][phase]]
    if not phases:
        return ""
    last = [phase for phase in phases if phase.partition("-")[0] == phases[-1].partition("-")[0]]
    shares = {
        way: [mean(one["mining"][phase][way]["pmr"] for phase in last) for one in runs]
        for way in ("mined", runs[0]["together"])
        if way in runs[0]["mining"][last[0]]
    }
    parts = [f"{row}: {cell(shares['mined'])} % of what it mines in the last cycle is right"]
    parts += [f"the sum of its views would find {cell(shares[way])} %" for way in shares if way != "mined"]
    return "; ".join(parts) + "."


def _spread(runs: Runs) -> float:
    shares = list(map(_whole_r1, runs.values()))
    return max(shares) - min(shares)


def _whole_r1(figures: dict[str, Any]) -> float:
    return float(figures["recall"][_whole(figures)]["1"])


def _whole(figures: dict[str, Any]) -> str:
    """The name of all views together; of the only view, where one was measured."""
    recall, name = figures["recall"], str(figures["together"])
    return name if name in recall else list(recall)[-1]
