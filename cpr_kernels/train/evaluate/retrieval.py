"""Measures features by test-to-train retrieval and a linear probe, without randomness."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from msgspec import Meta
from torch import Tensor, nn

from ... import retrieval_recall_at_k
from ...progress import say, waiting
from .. import TrainError
from ..data.manifest import Manifest
from ..pretrain.run_folder import config_of, encoder_files, is_own_data
from ..runtime.files import write_atomically
from ..views import chosen
from ..views.names import name_of_all_views
from .features import SPLITS, Measured, Protocol, cached_features, measured, unit_features
from .probe import probe

Recall = dict[str, dict[int, float]]  # {view, and both or all: {k: share}}


@dataclass(frozen=True)
class Phase:
    """Holds what was measured after a phase: {view: {k: share}}, and {view: accuracy} of the probe."""

    phase: str
    recall: dict[str, dict[str, float]]
    probe: dict[str, float]


@dataclass(frozen=True)
class Evaluation:
    """Holds the fields of `eval.json`."""

    protocol: Protocol
    phases: Annotated[list[Phase], Meta(min_length=1)]


def retrieval(
    data: Path, encoders: Mapping[str, nn.Module], protocol: Protocol, device: str = "cpu"
) -> Recall:
    """Returns R@k by view, and of all views' summed cosines when there are several."""
    return recall_of(measured(data, encoders, protocol, device), protocol)


def units_of(found: Measured, protocol: Protocol) -> dict[str, dict[str, Tensor]]:
    """Returns {view: {split: rows}} as retrieval compares them, and the concatenation of several views by its name."""
    unit = {view: unit_features(splits, protocol) for view, splits in found.features.items()}
    if len(unit) > 1:
        unit[name_of_all_views(tuple(unit))] = {
            split: torch.cat([unit[view][split] for view in found.features], dim=1) for split in SPLITS
        }
    return unit


def recall_of(found: Measured, protocol: Protocol) -> Recall:
    """Returns R@k by view, on the videos that have it, and of all views' sum when there are several.

    In the sum, a view that a video lacks counts 0.
    """
    recall = {}
    for view, splits in units_of(found, protocol).items():
        has = {split: rows.any(dim=1) for split, rows in splits.items()}
        test, train = (
            (splits[split][has[split]], found.labels[split][has[split]]) for split in ("test", "train")
        )
        recall[view] = retrieval_recall_at_k(test[0], train[0], test[1], train[1], protocol.ks)
    return recall


def probe_of(found: Measured) -> dict[str, float]:
    """Returns the top-1 accuracy of a linear probe by view, on videos that have it, and of all views concatenated."""
    features = dict(found.features)
    if len(features) > 1:
        whole = {split: torch.cat([features[view][split] for view in features], dim=1) for split in SPLITS}
        features[name_of_all_views(tuple(features))] = whole
    accuracy = {}
    for view, splits in features.items():
        has = {split: rows.any(dim=1) for split, rows in splits.items()}
        train, test = (
            (splits[split][has[split]], found.labels[split][has[split]]) for split in ("train", "test")
        )
        with waiting(f"linear probe, {view}"):
            accuracy[view] = probe(*train, *test)
    return accuracy


def measured_files(
    files: Mapping[str, Path], data: Path, protocol: Protocol, cache: Path, device: str = "auto"
) -> Measured:
    """Returns the features of every video by one encoder per view, from `cache` where they are known."""
    features: dict[str, dict[str, Tensor]] = {}
    labels: dict[str, Tensor] = {}
    for view, path in files.items():
        features[view], labels = cached_features(path, view, data, protocol, cache, device)
    return Measured(features, labels)


def evaluate_files(
    files: Mapping[str, Path], data: Path, protocol: Protocol, cache: Path, device: str = "auto"
) -> dict[str, Any]:
    """Returns R@k and linear probe of one encoder per view."""
    found = measured_files(files, data, protocol, cache, device)
    return {"recall": recall_of(found, protocol), "probe": probe_of(found)}


def measurable_views(data: Path, views: Sequence[str]) -> tuple[str, ...]:
    """Returns the views that some training and some test video of a data set have; prints which are left out.

    Raises:
        TrainError: none is left.
    """
    videos, kept = Manifest.load(data).videos, []
    for name, view in chosen(views).items():
        without = [
            split for split in SPLITS
            if any(v.split == split for v in videos) and not any(view.has(v) for v in videos if v.split == split)
        ]  # fmt: skip
        if without:
            say(f"no {' and no '.join(without)} video of {data} has {name}: not measured there")
        else:
            kept.append(name)
    if not kept:
        raise TrainError(f"data: {data} has no {' and no '.join(views)} to test with")
    return tuple(kept)


def evaluate_run(
    run: Path, clips: int = 10, data: Path | None = None, last: bool = False, device: str = "auto"
) -> list[dict[str, Any]]:
    """Measures R@k and linear probe after every phase of a run, and of the encoders that it started from.

    Writes `eval.json` in its folder, or `eval-<name>.json` where `data` holds other videos (transfer).

    `last` measures the final encoders only. Features are kept in the run's folder `features`.

    Raises:
        TrainError: no encoder yet, or a data set without classes or test videos.
    """
    config = config_of(run)
    phases = encoder_files(run)
    if not phases:
        raise TrainError(f"run: {run} has no encoder yet; they are saved at the end of each phase")
    if len(config.init) == len(config.views):
        phases.insert(0, ("start", dict(config.init)))
    if last:
        phases = phases[-1:]
    protocol = Protocol(config.clips.frames, config.clips.crop, clips)
    source = data or config.data
    Manifest.load(source).need_classes(source, "measuring retrieval and the probe")
    views = measurable_views(source, config.views)
    results = [
        {
            "phase": phase,
            **evaluate_files(
                {view: files[view] for view in views}, source, protocol, run / "features", device
            ),
        }
        for phase, files in phases
    ]
    body = {"data": str(source), "protocol": asdict(protocol), "phases": results}
    own = data is None or is_own_data(run, data)
    name = "eval.json" if own else f"eval-{source.resolve().name}.json"
    write_atomically(run / name, json.dumps(body, indent=1).encode())
    return results
