"""Measures what each view adds: test videos whose nearest training video turns right when a view is added."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.manifest import Manifest
from ..pretrain.config import TrainConfig
from ..pretrain.run_folder import encoder_files
from ..views.names import label
from .features import SPLITS, Protocol, measured_videos, unit_features
from .retrieval import measurable_views, measured_files

NEAREST = 3  # training videos shown for a query


def gain_per_modality(
    run: Path,
    config: TrainConfig,
    protocol: Protocol,
    clip: Callable[[int], Mapping[str, Any]],
    shown: int,
) -> list[dict[str, Any]]:
    """Returns one step per view after the first: how many test videos' nearest neighbours turn right and wrong by it.

    A step also has examples that turn right, a class at most once, with their neighbours by every set of views.

    clip: from a video's index to its pictures. shown: examples of a step. The features are those of `cpr evaluate`.
    """
    manifest, files = Manifest.load(config.data), encoder_files(run)[-1][1]
    views_of = measurable_views(config.data, config.views)
    measured = measured_files(
        {view: files[view] for view in views_of}, config.data, protocol, run / "features"
    )
    unit = {view: unit_features(splits, protocol) for view, splits in measured.features.items()}
    videos = {split: measured_videos(manifest, split, protocol) for split in SPLITS}
    sets = [views_of[:count] for count in range(1, len(views_of) + 1)]
    names = [" and ".join(label(view) for view in views) for views in sets]
    nearest = [neighbours(unit, views) for views in sets]
    classes = {split: torch.tensor([manifest.videos[i].label for i in videos[split]]) for split in SPLITS}
    right = [classes["train"][rows[:, 0]] == classes["test"] for rows in nearest]
    steps = []
    for number in range(1, len(sets)):
        better, worse = right[number] & ~right[number - 1], right[number - 1] & ~right[number]
        examples: dict[int, int] = {}  # class: row of the test split
        for row in better.nonzero()[:, 0].tolist():
            examples.setdefault(int(classes["test"][row]), row)
        queries = []
        for row in list(examples.values())[:shown]:
            own = int(classes["test"][row])
            ways = []
            for name, rows in zip(names, nearest):
                found = [videos["train"][int(place)] for place in rows[row]]
                picks = [{**clip(video), "right": manifest.videos[video].label == own} for video in found]
                ways.append({"name": name, "picks": picks, "right": sum(bool(p["right"]) for p in picks)})
            queries.append({"clip": clip(videos["test"][row]), "ways": ways})
        steps.append({
            "title": f"{label(views_of[number])} added to {names[number - 1]}",
            "better": int(better.sum()), "worse": int(worse.sum()), "of": len(better), "queries": queries,
        })  # fmt: skip
    return steps


def neighbours(unit: Mapping[str, Mapping[str, Tensor]], views: tuple[str, ...]) -> Tensor:
    """Returns the nearest training rows [M, NEAREST] of each test row by the views' summed cosines.

    Equal cosines keep the lower row first.
    """
    test, train = (torch.cat([unit[view][split] for view in views], dim=1) for split in ("test", "train"))
    return (test @ train.T).argsort(dim=1, descending=True, stable=True)[:, :NEAREST]
