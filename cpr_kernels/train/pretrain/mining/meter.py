"""Measures the mined positives: PMR and CMR of several schedules, side by side on the same queue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .... import Schedule, coclr_schedule, oracle_schedule
from ....metrics import ClassMiningRecall, PositiveMiningRecall, median_recall
from ...data.manifest import Manifest
from ...views.names import name_of_all_views


def baseline_schedules(views: Sequence[str], topk: int) -> dict[str, Schedule]:
    """Returns the schedules that every run is compared with: each single view, and the sum of all of them."""
    singles = {view: coclr_schedule(view, topk) for view in views}
    return {**singles, name_of_all_views(views): oracle_schedule(views, topk)} if len(views) > 1 else singles


class MiningMeter:
    """Measures PMR and CMR of named schedules over an epoch; labels are read here only.

    Without classes there is nothing to measure by: `update` must not be called, and the summary is empty.

    The queue's label column holds each entry's video (its index in the manifest); class and source follow
    from it.
    """

    def __init__(self, manifest: Manifest, names: list[str], device: torch.device) -> None:
        self.classes = manifest.classes
        self.class_of = torch.tensor([video.label for video in manifest.videos], device=device)
        is_train = torch.tensor([video.split == "train" for video in manifest.videos], device=device)
        counted = torch.where(is_train, self.class_of, -1)
        self.pmr = {name: PositiveMiningRecall().to(device) for name in names}
        self.cmr = {name: ClassMiningRecall(counted).to(device) for name in names}
        self.first = {name: PositiveMiningRecall().to(device) for name in names}

    def update(self, name: str, indices: Tensor, videos: Tensor, entries: Tensor) -> float:
        """Adds a step: mined [B, k], the queries' videos [B], the entries' videos [N]; returns the step's PMR."""
        key_labels = torch.where(entries >= 0, self.class_of[entries.clamp(min=0)], -1)
        query_labels = self.class_of[videos]
        before = (self.pmr[name].hits.clone(), self.pmr[name].mined.clone())
        self.pmr[name].update(indices, query_labels, key_labels)
        self.first[name].update(indices[:, :1], query_labels, key_labels)
        self.cmr[name].update(indices, query_labels, key_labels, entries)
        hits, mined = self.pmr[name].hits - before[0], self.pmr[name].mined - before[1]
        return float(hits / mined) if mined else float("nan")

    def summary(self) -> dict[str, dict[str, object]]:
        """Returns {name: PMR, R@1 (PMR of the best pick), median CMR, CMR per class} since the last reset."""
        result: dict[str, dict[str, object]] = {}
        for name in self.pmr:
            if int(self.pmr[name].mined):
                per_class = self.cmr[name].per_class()
                result[name] = {
                    "pmr": float(self.pmr[name].hits / self.pmr[name].mined),
                    "r1": float(self.first[name].hits / self.first[name].mined),
                    "cmr_median": median_recall(per_class),
                    "cmr": {self.classes[label]: recall for label, recall in per_class.items()},
                }
        return result

    def reset(self) -> None:
        """Starts the next epoch."""
        for metric in (*self.pmr.values(), *self.first.values(), *self.cmr.values()):
            metric.reset()

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Returns the counts so far, so that a run can resume inside an epoch."""
        return {
            name: {
                "hits": self.pmr[name].hits,
                "mined": self.pmr[name].mined,
                "found": self.cmr[name].found,
                "first_hits": self.first[name].hits,
                "first_mined": self.first[name].mined,
            }
            for name in self.pmr
        }

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Loads the counts of a `state_dict`."""
        for name, counts in state.items():
            self.pmr[name].hits.copy_(counts["hits"])
            self.pmr[name].mined.copy_(counts["mined"])
            self.cmr[name].found.copy_(counts["found"])
            self.first[name].hits.copy_(counts["first_hits"])
            self.first[name].mined.copy_(counts["first_mined"])
