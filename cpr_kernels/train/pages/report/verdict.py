"""Says how good a run is: its figures against a baseline with their intervals, by class, and several runs compared."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ....plot_style import Mark, mark_of
from ... import TrainError
from ...data.manifest import Manifest
from ...evaluate.features import Protocol, measured_videos
from ...evaluate.paired_gain import Gain, paired_gains
from ...pretrain.config import TrainConfig
from ...pretrain.phases import make_plan
from .. import plots
from .names import SUMS, method_key, method_name, view_name, way_marks
from .trends import last_epochs


def against(section: dict[str, Any], baseline: Path, other: TrainConfig, data: Path | None) -> dict[str, Any]:
    """Returns R@1 of a section's run beside its baseline's, the sum of the views first.

    Keys: "name", "as_long" (the epochs of both after pretraining are the same), "gains", "tiles" (one a view),
    "sentence", "classes".
    """
    config, classes = section["config"], section["manifest"].classes
    epochs = [
        [(phase.name, phase.epochs) for phase in make_plan(one) if not phase.pretrains]
        for one in (config, other)
    ]
    gains = sorted(
        paired_gains(section["run"], baseline, section["protocol"], data),
        key=lambda gain: gain.view not in SUMS,
    )
    ends = [end for gain in gains for end in (gain.low, gain.high, gain.difference, 0.01)]
    widest = max(abs(end) for end in ends if math.isfinite(end))
    name = method_name(other) + (" of the same length" if epochs[0] == epochs[1] else "")
    return {
        "name": name, "as_long": epochs[0] == epochs[1], "gains": gains,
        "tiles": [tile(gain, widest) for gain in gains], "sentence": sentence(gains, name),
        "classes": by_class(gains, classes, config, other),
    }  # fmt: skip


def tile(gain: Gain, widest: float) -> dict[str, Any]:
    """Returns a gain as the page draws it: ends of its interval in % of a strip that reaches from -widest to widest."""
    place = {
        name: 50 + 48 * max(-1.0, min(1.0, value / widest)) if math.isfinite(value) else None
        for name, value in (("low", gain.low), ("middle", gain.difference), ("high", gain.high))
    }
    return {"name": view_name(gain.view), "gain": gain, "verdict": verdict(gain), "place": place}


def verdict(gain: Gain) -> str:
    """Returns better or worse where the interval leaves 0 out, else unclear."""
    return "better" if gain.low > 0 else "worse" if gain.high < 0 else "unclear"


def sentence(gains: Sequence[Gain], name: str) -> str:
    """Returns in words where a run is better than its baseline, where worse, and where that is unclear."""
    found: dict[str, list[str]] = {}
    for gain in gains:
        found.setdefault(verdict(gain), []).append(view_name(gain.view))
    words = {"better": f"Better than {name}", "worse": f"Worse than {name}", "unclear": "No difference shown"}
    return " ".join(f"{words[key]}: {', '.join(found[key])}." for key in words if key in found)


def by_class(
    gains: Sequence[Gain], classes: Sequence[str], config: TrainConfig, other: TrainConfig
) -> list[dict[str, Any]]:
    """Returns, for each gain, R@1 of both runs in every class as `plots.class_dots`, and the view's name.

    All are in one order, of the first gain's largest difference.
    """
    order = sorted(gains[0].by_class, key=lambda one: (_difference(gains[0], one), one))
    marks = {"run": way_marks(config)["mined"], "baseline": mark_of(method_key(other))}
    if marks["run"].colour == marks["baseline"].colour:  # the same method twice
        marks["baseline"] = mark_of("infonce")
    names, found = {"run": "this run", "baseline": method_name(other)}, []
    for gain in gains:
        shown = [one for one in order if one in gain.by_class]
        series = {key: [gain.by_class[one][i] for one in shown] for i, key in enumerate(names)}
        facts = [f"{signed(-_difference(gain, one), 0)} (n {gain.by_class[one][2]})" for one in shown]
        dots = plots.class_dots([classes[one] for one in shown], series, names, marks, facts)
        found.append({"view": view_name(gain.view), **dots})
    return found


def _difference(gain: Gain, label: int) -> float:
    run, baseline, _ = gain.by_class[label]
    return baseline - run


def signed(share: float, digits: int = 1) -> str:
    """Returns a difference of shares in points, with a real minus sign."""
    shown = f"{100 * share:+.{digits}f}"
    return shown.lstrip("+-") if float(shown) == 0 else shown.replace("-", "−")


def mined_tile(section: dict[str, Any], marks: Mapping[str, Mark]) -> dict[str, Any] | None:
    """Returns PMR of a run's own mining at the end, and of the other ways; None where nothing was measured."""
    mined = [line["mining"] for line in last_epochs(section["epochs"]) if "mined" in line["mining"]]
    if not mined or section["chance"] is None:
        return None
    ways = [
        {"name": name, "pmr": mined[-1][way]["pmr"], "mark": marks[way]}
        for way, name in section["names"].items() if way in mined[-1]
    ]  # fmt: skip
    says = ", ".join(f"{way['name']} {100 * way['pmr']:.1f} %" for way in ways[1:])
    return {"pmr": ways[0]["pmr"], "ways": ways[::-1], "says": says, "chance": section["chance"]}


def chance_of_recall(manifest: Manifest, protocol: Protocol) -> list[float]:
    """Returns R@k of a random order of the training videos, for every k of the protocol."""
    label = {
        split: [manifest.videos[i].label for i in measured_videos(manifest, split, protocol)]
        for split in ("train", "test")
    }
    of_class, total, shares = Counter(label["train"]), len(label["train"]), []
    for k in protocol.ks:
        missed = [
            math.comb(total - of_class[one], min(k, total)) / math.comb(total, min(k, total))
            for one in label["test"]
        ]
        shares.append(1 - sum(missed) / len(missed))
    return shares


def compared(sections: Sequence[dict[str, Any]], baseline: Path | None, data: Path | None) -> dict[str, Any]:
    """Returns a row per run with its last phase's mining, retrieval and probe, and R@1 paired with the first's.

    With a baseline it is the one that all are paired with. A run on other videos or views has no difference, and
    `why` says so.
    """
    first = sections[0]
    reference = baseline or first["run"]
    rows, lines, methods = [], {}, [method_key(section["config"]) for section in sections]
    for section in sections:
        mined = [line["mining"]["mined"] for line in section["epochs"] if "mined" in line["mining"]]
        last = section["evaluation"][-1] if section["evaluation"] else {"recall": {}}
        rows.append({
            "title": section["title"], "id": section["id"],
            "method": section["names"]["mined"] if section["config"].cycles else "none: pretraining only",
            "pmr": mined[-1]["pmr"] if mined else None, "cmr": mined[-1]["cmr_median"] if mined else None,
            "r1": {view: shares["1"] for view, shares in last["recall"].items()}, "probe": last.get("probe", {}),
            **_paired(section, first, reference, data),
        })  # fmt: skip
        if mined:
            lines[section["title"]] = [(number, way["pmr"]) for number, way in enumerate(mined, start=1)]
    marks = {}
    if len(set(methods)) == len(methods):
        marks = {section["title"]: mark_of(method) for section, method in zip(sections, methods)}
    panel = plots.Panel("PMR, %", lines, chance=first["chance"], marks=marks)
    return {
        "rows": rows, "plot": plots.curves(panel) if lines else "",
        "reference": "the baseline" if baseline else first["title"],
    }  # fmt: skip


def _paired(
    section: dict[str, Any], first: dict[str, Any], reference: Path, data: Path | None
) -> dict[str, Any]:
    if not section["evaluation"]:
        return {"gain": None, "why": "no classes"}
    if section["run"] == reference:
        return {"gain": None, "why": "the others are compared with it"}
    if section["config"].data != first["config"].data or section["protocol"] != first["protocol"]:
        return {"gain": None, "why": "measured on other videos or clips"}
    try:
        gains = paired_gains(section["run"], reference, section["protocol"], data)
    except TrainError:
        return {"gain": None, "why": "has other views"}
    return {"gain": gains[-1], "why": ""}


def lead(section: dict[str, Any], several: bool) -> list[str]:
    """Returns short sentences on a run: R@1 from start to end; of one among several, what is right among the mined."""
    said = []
    mined = [line["mining"] for line in last_epochs(section["epochs"]) if "mined" in line["mining"]]
    if mined and (several or section["chance"] is None):
        shown = [way for way in section["names"] if way in mined[-1]]
        shares = [f"{section['names'][way]} {100 * mined[-1][way]['pmr']:.0f} %" for way in shown]
        chance = f", chance {100 * section['chance']:.0f} %" if section["chance"] is not None else ""
        said.append(f"Right among the mined at the end: {', '.join(shares)}{chance}.")
    measured = section["evaluation"]
    if not measured:
        return [*said, "The videos have no classes: mining and retrieval are shown, not measured."]
    phases = measured if len(measured) == 1 else [measured[0], measured[-1]]
    steps = [
        f"{view} " + " to ".join(f"{100 * phase['recall'][view]['1']:.1f}" for phase in phases) + "\u00a0%"
        for view in phases[0]["recall"]
    ]
    return [*said, f"R@1 after {' and after '.join(phase['phase'] for phase in phases)}: {', '.join(steps)}."]
