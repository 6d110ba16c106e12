"""Tabulates the settings of runs: what differs between them first, then what is the same, by group."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from ...data.manifest import Manifest
from ...pretrain.config import TrainConfig
from ...pretrain.phases import make_plan
from ...runtime.files import read_json

Settings = dict[tuple[str, str], str]  # {(group, name): value}
PLACES = ("data", "out")


def settings_of(
    run: Path, config: TrainConfig, manifest: Manifest, lines: Iterable[Mapping[str, Any]]
) -> Settings:
    """Returns all settings of a run and what it took, in words; `lines` are those of its log."""
    counts = {split: sum(video.split == split for video in manifest.videos) for split in ("train", "test")}
    rows = {
        ("data", "videos"): f"{counts['train']} train, {counts['test']} test",
        ("data", "classes"): str(len(manifest.classes)),
        ("data", "files skipped"): str(len(manifest.skipped)),
    }
    rows |= {("data", name): shown(value) for name, value in asdict(manifest.settings).items()}
    for phase in make_plan(config):
        mining = f", mining {phase.schedule}" if phase.schedule else ", mining by a tuned plan" * phase.tuned
        rows["phases", phase.name] = f"{phase.epochs} epochs of {' and '.join(phase.train)}{mining}"
    rows |= flat(config)
    steps = [line["seconds"] for line in lines if line["kind"] == "step"]
    each = f", {sum(steps) / len(steps):.2f} s each" if steps else ""
    rows["time", "training steps"] = f"{len(steps)} in {sum(steps):.0f} s{each}"
    spent = run / "timings.json"
    timings = read_json(spent, "run", "delete it", dict[str, float]) if spent.is_file() else {}
    return rows | {("time", name): f"{seconds:.0f} s" for name, seconds in timings.items()}


def flat(config: TrainConfig) -> Settings:
    """Returns the fields of a config; those of a part such as `mining` are its group, the others are `training`."""
    rows: Settings = {}
    for name, value in asdict(config).items():
        if isinstance(value, Mapping) and name != "init":
            rows |= {(name, key): shown(one) for key, one in value.items()}
        elif name not in PLACES:
            rows["training", name] = shown(value)
    return rows


def shown(value: Any) -> str:
    """Returns a setting's value in words."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {one}" for key, one in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None or value == "" else str(value)


def table(runs: Sequence[Settings], config: TrainConfig) -> dict[str, Any]:
    """Returns rows that differ, [{"name", "values"}], and groups of the others, {group: [{"name", "value", "set"}]}.

    Of what differs, mining comes first. `set` marks a setting of the first run that is not the default. What a run
    took counts as no difference.
    """
    keys = list(dict.fromkeys(key for run in runs for key in run))
    differ = [
        {"name": f"{group}: {name}", "values": [run.get((group, name), "–") for run in runs]}
        for group, name in sorted(keys, key=lambda key: ("mining", "training", key[0]).index(key[0]))
        if len({run.get((group, name)) for run in runs}) > 1 and group != "time"
    ]
    usual = flat(TrainConfig(data=config.data, out=config.out))
    groups: dict[str, list[dict[str, Any]]] = {}
    for group, name in keys:
        values = [run.get((group, name), "–") for run in runs]
        if len(set(values)) == 1 or group == "time":
            value = values[0] if len(set(values)) == 1 else " · ".join(values)
            is_set = usual.get((group, name), value) != value
            groups.setdefault(group, []).append({"name": name, "value": value, "set": is_set})
    return {"differ": differ, "groups": groups}


def versions() -> list[tuple[str, str]]:
    """Returns the versions of what made the page, and the machine."""
    names = ("cpr_kernels", "torch", "av", "opencv-contrib-python-headless", "numpy", "lmdb")
    found = []
    for name in names:
        try:
            found.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            found.append((name, "not installed as a package"))
    return [
        *found,
        ("python", platform.python_version()),
        ("machine", f"{platform.machine()}, {platform.system()}"),
    ]
