"""Measures what one run retrieves better than another on the same test videos, and how sure that is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .. import TrainError
from ..data.manifest import Manifest
from ..pretrain.run_folder import config_of, encoder_files
from .features import Protocol, measured_videos
from .retrieval import measurable_views, measured_files, units_of

Z = 1.96  # standard errors on each side of a 95 % interval


@dataclass(frozen=True)
class Gain:
    """R@1 of a run and of its baseline in a view, as shares; their difference and its 95 % interval.

    by_class: {class: (R@1 of the run, of its baseline, number of test videos)}.
    """

    view: str
    run: float
    baseline: float
    low: float
    high: float
    by_class: dict[int, tuple[float, float, int]]

    @property
    def difference(self) -> float:
        """By how much the run's R@1 is higher."""
        return self.run - self.baseline


def paired_gains(run: Path, baseline: Path, protocol: Protocol, data: Path | None = None) -> list[Gain]:
    """Compares R@1 of the last encoders of two runs, video by video.

    The interval is that of a mean of paired differences, 1.96 standard errors wide on each side; videos of one source
    count as one observation, since their clips succeed and fail together. It knows nothing of other seeds. Only videos
    that have a view are compared in it.

    Raises:
        TrainError: runs of different views.
    """
    config, other = config_of(run, data), config_of(baseline, data)
    if config.views != other.views:
        raise TrainError(
            f"baseline: must have the run's views {', '.join(config.views)}, got {', '.join(other.views)}"
        )
    manifest = Manifest.load(config.data)
    videos = [manifest.videos[i] for i in measured_videos(manifest, "test", protocol)]
    sources, classes = torch.tensor([v.group for v in videos]), torch.tensor([v.label for v in videos])
    right = [right_by_video(folder, protocol, config.data) for folder in (run, baseline)]
    gains = []
    for view in right[0]:
        both = torch.stack([of[view] for of in right])
        has = both.isfinite().all(dim=0)
        gains.append(_gain(view, both[:, has], sources[has], classes[has]))
    return gains


def _gain(view: str, right: Tensor, sources: Tensor, classes: Tensor) -> Gain:
    """Returns the gain of the first row of `right` [2, M] over the second; `sources` and `classes` are of columns."""
    difference = right[0] - right[1]
    error, middle = clustered_standard_error(difference, sources), difference.mean().item()
    by_class = {
        int(label): (*right[:, classes == label].mean(dim=1).tolist(), int((classes == label).sum()))
        for label in classes.unique()
    }
    run, baseline = right.mean(dim=1).tolist()
    return Gain(view, run, baseline, middle - Z * error, middle + Z * error, by_class)


def clustered_standard_error(values: Tensor, clusters: Tensor) -> float:
    """Returns the standard error of the mean of `values` [M] whose members of one cluster [M] depend on each other.

    It is sqrt(sum over clusters of (sum of the members' deviations)^2) / M, times sqrt(G / (G - 1)) for G clusters.
    """
    _, of = clusters.unique(return_inverse=True)
    count = int(of.max()) + 1
    if count < 2:
        return float("inf")
    sums = torch.zeros(count, dtype=torch.float64).index_add_(0, of, (values - values.mean()).double())
    return (sums.square().sum() * count / (count - 1)).sqrt().item() / len(values)


def right_by_video(run: Path, protocol: Protocol, data: Path | None = None) -> dict[str, Tensor]:
    """Returns {view: [M]} of a run's last encoders, a number for each test video, in the order of `measured_videos`.

    It is 1.0 where the nearest training video has the test video's class, 0.0 where not, NaN where it lacks the view.
    """
    config = config_of(run, data)
    files = encoder_files(run)[-1][1]
    kept = {view: files[view] for view in measurable_views(config.data, config.views)}
    found = measured_files(kept, config.data, protocol, run / "features")
    right = {}
    for view, splits in units_of(found, protocol).items():
        has = {split: rows.any(dim=1) for split, rows in splits.items()}
        nearest = (splits["test"] @ splits["train"][has["train"]].T).argmax(dim=1)
        same = found.labels["train"][has["train"]][nearest] == found.labels["test"]
        right[view] = same.double().where(has["test"], torch.nan)
    return right
