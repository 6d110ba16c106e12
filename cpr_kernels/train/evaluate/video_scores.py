"""Scores whole videos with classifiers: class probabilities, accuracy, and that of several classifiers fused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ...progress import track
from ...reading.arrays import npz_headers, read_npz
from .. import TrainError
from ..batches.dataset import ClipDataset
from ..runtime.device import Amp, autocast
from .classifier import Classifier


def video_scores(
    classifier: Classifier, dataset: ClipDataset, clips: int, *, ten: bool, amp: Amp = "off"
) -> Tensor:
    """Returns class probabilities [videos, classes] of a split, averaged over clips and crops, on the CPU."""
    device = next(classifier.parameters()).device
    view = dataset.views[classifier.clip.view]
    mirrors = (False, True) if ten else (False,)
    mode, rows = classifier.training, []
    classifier.eval()
    with torch.no_grad():
        for position in track(range(len(dataset)), "test, ten crops" if ten else "test", "video"):
            crops = torch.from_numpy(dataset.test_crops(position, clips, view.name, ten))
            parts = [
                functional.softmax(classifier(view.plain(some.to(device), mirror)).float(), dim=1)
                for mirror in mirrors
                for some in _cast(crops.flatten(0, 1), 32, device, amp)
            ]
            rows.append(torch.cat(parts).mean(dim=0).cpu())
    classifier.train(mode)
    return torch.stack(rows)


def _cast(clips: Tensor, most: int, device: torch.device, amp: Amp) -> Iterator[Tensor]:
    """Yields some clips at a time, each under autocast."""
    for some in clips.split(most):
        with autocast(device, amp):
            yield some


def accuracy(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """Returns top-1, top-5 and mean-class accuracy of scores [M, C] against labels [M], shares in 0..1."""
    ranked = scores.topk(min(5, scores.shape[1]), dim=1).indices
    right = ranked == labels[:, None]
    first = right[:, 0].float()
    classes = [first[labels == label].mean() for label in labels.unique()]
    return {
        "top1": first.mean().item(),
        "top5": right.any(dim=1).float().mean().item(),
        "mean_class": torch.stack(classes).mean().item(),
    }


def fused(folders: Sequence[Path]) -> dict[str, dict[str, float]]:
    """Returns the accuracy of several classifiers' mean probabilities on the same test videos (two-stream fusion).

    Raises:
        TrainError: a folder without a test, or another set of videos.
    """
    first = _scores_in(folders[0])
    others = [scores_of(folder, first["ids"], first["labels"], str(folders[0])) for folder in folders[1:]]
    loaded = [first, *others]
    labels = torch.from_numpy(first["labels"])
    kinds = [kind for kind in ("centre", "ten_crop") if all(kind in file for file in loaded)]
    return {
        kind: accuracy(torch.from_numpy(np.mean([file[kind] for file in loaded], axis=0)), labels)
        for kind in kinds
    }


def scores_of(folder: Path, ids: np.ndarray, labels: np.ndarray, whose: str) -> dict[str, Any]:
    """Returns what a folder's test.npz holds, checked to be of these videos, in this order.

    Raises:
        TrainError: no test there, or of other videos than `whose`.
    """
    found = _scores_in(folder)
    if not np.array_equal(found["ids"], ids) or not np.array_equal(found["labels"], labels):
        raise TrainError(f"fuse: {folder} was tested on other videos than {whose}")
    return found


def _scores_in(folder: Path) -> dict[str, Any]:
    path = Path(folder) / "test.npz"
    if not path.is_file():
        raise TrainError(f"fuse: {folder} holds no test.npz; finish `cpr finetune` there first")
    try:
        names = npz_headers(path)
        wanted = {"ids": ("U", 1), "labels": ("iu", 1)}
        scores = {name: ("f", 2) for name in names if name not in wanted}
        return dict(read_npz(path, wanted | scores))
    except (ValueError, OSError) as error:
        raise TrainError(
            f"fuse: {path} is damaged ({error}); run the same `cpr finetune` there again"
        ) from None


def names_and_labels(test: ClipDataset) -> tuple[np.ndarray, np.ndarray]:
    """Returns names and labels of the test videos, in order."""
    videos = [test.manifest.videos[i] for i in test.videos]
    return np.array([video.id for video in videos]), np.array([video.label for video in videos])
