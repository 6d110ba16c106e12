"""Draws how a run went: PMR, agreement, CMR, loss and learning rate by epoch, and CMR by class."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from ....plot_style import marks_of
from ...data.manifest import Manifest
from ...pretrain.config import TrainConfig
from ...pretrain.phases import learning_rate, locate, make_plan
from ...views.names import label
from .. import plots
from ..policy import isolated
from .names import SUMS, way_marks, way_names

Lines = list[dict[str, Any]]  # of log.jsonl


def last_epochs(epochs: Lines) -> Lines:
    """Returns the last epoch line of each phase that has figures."""
    last: dict[str, dict[str, Any]] = {}
    for line in epochs:
        if line["mining"]:
            last[line["phase"]] = line
    return list(last.values())


def chance_of_mining(manifest: Manifest) -> float | None:
    """Returns the mean share of a training video's class among those of other sources; None without classes."""
    videos = [video for video in manifest.videos if video.split == "train" and video.label >= 0]
    if not manifest.classes or not videos:
        return None
    classes, sources = Counter(v.label for v in videos), Counter(v.group for v in videos)
    both = Counter((v.label, v.group) for v in videos)
    shares = [
        (classes[v.label] - both[v.label, v.group]) / others
        for v in videos
        if (others := len(videos) - sources[v.group])
    ]
    return sum(shares) / len(shares) if shares else None


def trends(config: TrainConfig, lines: Lines, chance: float | None) -> list[dict[str, str]]:
    """Returns the plots by epoch that a run's log has figures for: {"title", "picture" (a data URI), "says"}."""
    epochs = [line for line in lines if line["kind"] == "epoch"]
    names, marks, phases = way_names(config), way_marks(config), starts(epochs)
    found = []

    def add(title: str, lines: Mapping[str, plots.Curve], **options: Any) -> None:
        kept = {key: points for key, points in lines.items() if points}
        if kept:
            panel = plots.Panel(lines=kept, phases=phases, **{"names": names, "marks": marks, **options})
            found.append({"title": title, "picture": plots.curves(panel), "says": _says(title, panel)})

    def of(metric: str) -> dict[str, plots.Curve]:
        return {way: _points(epochs, partial(_figure_of, way, metric)) for way in names}

    add("Right among the mined (PMR)", of("pmr"), label="PMR, %", chance=chance)
    agreed = _points(epochs, lambda line: line.get("agreement", {}).get("mined"))
    add("Agreement of the views, no labels", {"mined": agreed}, label="agreement, %")
    add("Found of a class (CMR)", of("cmr_median"), label="median CMR, %")
    loss, rate = losses(lines), rates(config, lines)
    of_view = {"names": {key: label(key) for key in loss}, "marks": marks_of(loss)}
    add("Loss", loss, label="loss, mean of the epoch", percent=False, **of_view)
    one = {"names": {"rate": "learning rate"}, "marks": {"rate": marks["mined"]}, "label": "learning rate"}
    add("Learning rate", {"rate": rate}, percent=False, logarithmic=True, markers=False, **one)
    return found


def losses(lines: Lines) -> dict[str, plots.Curve]:
    """Returns {view, or what the loss is of: its mean over the training steps of each epoch}."""
    number = {(line["phase"], line["epoch"]): i for i, line in enumerate(_epochs(lines), start=1)}
    sums: dict[str, dict[int, list[float]]] = {}
    for line in lines:
        place = number.get((line["phase"], line["epoch"])) if line["kind"] == "step" else None
        for key in line if place else ():
            if key.startswith("loss_"):
                sums.setdefault(key.removeprefix("loss_"), {}).setdefault(place or 0, []).append(line[key])
    return {
        key: _with_gaps([(float(i), sum(of) / len(of)) for i, of in sorted(by.items())])
        for key, by in sums.items()
    }


def rates(config: TrainConfig, lines: Lines) -> plots.Curve:
    """Returns the learning rate of every training step, by the settings, at its place between the epochs."""
    plan, steps = make_plan(config), [line for line in lines if line["kind"] == "step"]
    counts = Counter((line["phase"], line["epoch"]) for line in steps if line["epoch"] >= 0)
    each = max(counts.values(), default=0)  # steps of an epoch
    points: list[tuple[float, float]] = []
    for line in steps:
        if line["epoch"] >= 0:
            moment = locate(plan, each, line["step"])
            points.append((len(points) / each + 0.5, learning_rate(config.optim, plan[moment.phase], moment)))
    return [
        point for i, point in enumerate(points)
        if i in (0, len(points) - 1) or {points[i - 1][1], points[i + 1][1]} != {point[1]}
    ]  # fmt: skip


def starts(epochs: Lines) -> list[tuple[float, str]]:
    """Returns (its first epoch, counted from 1, its name) of each phase."""
    found: list[tuple[float, str]] = []
    for number, line in enumerate(epochs, start=1):
        if not found or found[-1][1] != line["phase"]:
            found.append((number, line["phase"]))
    return found


def class_recalls(config: TrainConfig, epochs: Lines) -> list[dict[str, Any]]:
    """Returns CMR by class at the end of each phase that mines."""
    names, marks = way_names(config), way_marks(config)
    return [
        {
            "phase": line["phase"], "dots": _class_dots(line["mining"], names, marks),
            "ends": _best_and_worst(line["mining"]["mined"]["cmr"]),
        }
        for line in last_epochs(epochs) if "mined" in line["mining"]
    ]  # fmt: skip


def _class_dots(mining: dict[str, Any], names: Mapping[str, str], marks: Mapping[str, Any]) -> dict[str, Any]:
    shown: list[str] = [way for way in names if way in mining and way not in SUMS]
    classes = sorted(mining["mined"]["cmr"], key=lambda label: -mining["mined"]["cmr"][label])
    series = {way: [mining[way]["cmr"][label] for label in classes] for way in shown}
    return plots.class_dots(classes, series, names, marks)


def _best_and_worst(cmr: dict[str, float], shown: int = 3) -> str:
    """Names the classes of which most and least was found."""
    ranked = sorted(cmr.items(), key=lambda entry: -entry[1])
    shown = max(1, min(shown, len(ranked) // 2))
    top, bottom = (
        ", ".join(f"{isolated(label)} {100 * share:.0f} %" for label, share in some)
        for some in (ranked[:shown], ranked[-shown:])
    )
    return f"Most found: {top}. Least: {bottom}."


def _epochs(lines: Iterable[dict[str, Any]]) -> Lines:
    return [line for line in lines if line["kind"] == "epoch"]


def _points(epochs: Sequence[dict[str, Any]], value: Callable[[dict[str, Any]], float | None]) -> plots.Curve:
    found = ((number, value(line)) for number, line in enumerate(epochs, start=1))
    return _with_gaps([(float(number), one) for number, one in found if one is not None])


def _figure_of(way: str, metric: str, line: dict[str, Any]) -> float | None:
    return line["mining"].get(way, {}).get(metric)


def _with_gaps(points: plots.Curve) -> plots.Curve:
    """Returns the points with NaN where an epoch or more is left out, so that no line is drawn across."""
    found: list[tuple[float, float]] = []
    for x, y in points:
        if found and x - found[-1][0] > 1.5:
            found.append((x, math.nan))
        found.append((x, y))
    return found


def _says(title: str, panel: plots.Panel) -> str:
    """Describes a plot to who cannot see it: the value of every line at its end."""
    unit = " %" if panel.percent else ""
    ends = [
        f"{panel.names.get(key, key)} {100 * points[-1][1]:.1f}{unit}"
        if panel.percent
        else f"{panel.names.get(key, key)} {points[-1][1]:.3g}"
        for key, points in panel.lines.items()
    ]
    ends += [f"chance {100 * panel.chance:.1f}{unit}"] if panel.chance is not None else []
    return f"{title} by epoch; at the end {', '.join(ends)}"
