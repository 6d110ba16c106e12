"""Encodes the videos of a data set: one averaged feature per video and view, cached in the run's folder."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ...networks.inputs import channels_last
from ...progress import say, track
from ...reading.arrays import read_npz
from ...reading.seals import file_hash
from .. import TrainError
from ..batches.dataset import ClipDataset
from ..data.manifest import Manifest
from ..encoders.weights import load_encoder, weights_hash
from ..runtime.device import device_of
from ..runtime.files import write_atomically
from ..views import chosen

SPLITS = ("train", "test")


@dataclass(frozen=True)
class Protocol:
    """Defines how features are measured.

    clips: evenly spaced clips of each video, whose features are averaged; frames, crop: their size (centre
    square). center: subtract the training features' mean from all. ks: R@k is the share of test videos with a
    training video of their class among their k nearest, by cosine.
    """

    frames: int = 32
    crop: int = 112
    clips: int = 10
    center: Literal["none", "train"] = "train"
    ks: tuple[int, ...] = (1, 5, 10, 20)


@dataclass(frozen=True)
class Measured:
    """Holds features of both splits, {view: {split: [M, F]}}, and {split: labels [M]}.

    Features are all 0 where a video lacks the view.
    """

    features: dict[str, dict[str, Tensor]]
    labels: dict[str, Tensor]


def measured(
    data: Path, encoders: Mapping[str, nn.Module], protocol: Protocol, device: str = "cpu"
) -> Measured:
    """Returns the features of every video of both splits."""
    features: dict[str, dict[str, Tensor]] = {view: {} for view in encoders}
    labels = {}
    for split in SPLITS:
        dataset = _dataset(data, tuple(encoders), split, protocol)
        for view, rows in encode(dataset, encoders, protocol, device_of(device)).items():
            features[view][split] = rows
        labels[split] = torch.tensor([dataset.manifest.videos[i].label for i in dataset.videos])
    return Measured(features, labels)


def measured_videos(manifest: Manifest, split: str, protocol: Protocol) -> list[int]:
    """Returns the indices of the videos that the rows of a split are of, in order."""
    return [
        i
        for i, video in enumerate(manifest.videos)
        if video.split == split and video.frames >= protocol.frames
    ]


def unit_features(splits: Mapping[str, Tensor], protocol: Protocol) -> dict[str, Tensor]:
    """Returns centred and L2-normalised features of both splits, as retrieval compares them.

    All 0, a missing view, stays 0.
    """
    has = {split: rows.any(dim=1, keepdim=True) for split, rows in splits.items()}
    mean = splits["train"][has["train"][:, 0]].mean(dim=0) if protocol.center == "train" else 0.0
    return {
        split: torch.where(has[split], functional.normalize(rows - mean, dim=1), 0)
        for split, rows in splits.items()
    }


def _dataset(data: Path, views: tuple[str, ...], split: str, protocol: Protocol) -> ClipDataset:
    dataset = ClipDataset(
        data, protocol.frames, protocol.crop, views=views, split=split, cache_mb=0, keep_lacking=True
    )
    if dataset.left_out:
        say(f"{dataset.left_out} {split} videos have fewer than {protocol.frames} frames: left out")
    videos = [dataset.manifest.videos[i] for i in dataset.videos]
    for name, view in dataset.views.items():
        if lacking := sum(not view.has(video) for video in videos):
            say(
                f"{lacking} of {len(videos)} {split} videos have no {name}: left out of its own figures, 0 in the sum"
            )
    return dataset


@torch.no_grad()
def encode(
    dataset: ClipDataset,
    encoders: Mapping[str, nn.Module],
    protocol: Protocol,
    device: torch.device,
    batch: int = 8,
) -> dict[str, Tensor]:
    """Returns {view: [M, F]}: pooled backbone features of every video of a split, on the CPU.

    They are averaged over the video's clips; 0 where a video lacks the view.
    """
    modes = {view: encoder.training for view, encoder in encoders.items()}
    views = chosen(tuple(encoders))
    parts: dict[str, list[Tensor]] = {view: [] for view in encoders}
    sizes: dict[str, Any] = {view: encoder.feature_size for view, encoder in encoders.items()}
    try:
        for encoder in encoders.values():
            encoder.eval().to(device)
        for start in track(range(0, len(dataset), batch), "encode", "batch"):
            positions = range(start, min(start + batch, len(dataset)))
            cut = [dataset.evenly_spaced(position, protocol.clips) for position in positions]
            videos = [dataset.manifest.videos[dataset.videos[position]] for position in positions]
            for view, encoder in encoders.items():
                held = [row for row, video in enumerate(videos) if views[view].has(video)]
                features: Any = encoder.features
                pooled = torch.zeros(len(cut), sizes[view])
                if held:
                    frames = torch.cat([torch.from_numpy(cut[row][view]) for row in held]).to(device)
                    rows = features(channels_last(views[view].plain(frames)))
                    pooled[held] = rows.view(len(held), protocol.clips, -1).mean(dim=1).cpu()
                parts[view].append(pooled)
    finally:
        for view, encoder in encoders.items():
            encoder.train(modes[view])
    return {view: torch.cat(rows) for view, rows in parts.items()}


def cached_features(
    path: Path, view: str, data: Path, protocol: Protocol, cache: Path, device: str = "auto"
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Returns {split: features [M, F]} and {split: labels [M]} of an encoder's file, computed once.

    They are kept in `cache` under a hash of the encoder's weights, the data set's manifest, the view and the
    protocol: of other weights, never under the same name.
    """
    manifest = Path(data) / "manifest.json"
    what = [weights_hash(path), file_hash(manifest) if manifest.is_file() else "", view]
    what += [str(asdict(protocol)[name]) for name in ("frames", "crop", "clips")]
    kept = cache / f"{hashlib.sha256(' '.join(what).encode()).hexdigest()[:32]}.npz"
    if kept.is_file():
        arrays = _read_features(kept)
    else:
        found = measured(data, {view: load_encoder(path)}, protocol, device)
        arrays = {f"features_{split}": found.features[view][split] for split in SPLITS}
        arrays.update({f"labels_{split}": found.labels[split] for split in SPLITS})
        buffer = io.BytesIO()
        np.savez(buffer, **{name: value.numpy() for name, value in arrays.items()})  # type: ignore[arg-type]
        write_atomically(kept, buffer.getvalue())
    return (
        {split: arrays[f"features_{split}"] for split in SPLITS},
        {split: arrays[f"labels_{split}"] for split in SPLITS},
    )


def _read_features(path: Path) -> dict[str, Tensor]:
    """Returns the tables that `cached_features` kept; the file's own checksums find damage.

    Raises:
        TrainError: a damaged file.
    """
    wanted = {f"features_{split}": ("f", 2) for split in SPLITS} | {
        f"labels_{split}": ("iu", 1) for split in SPLITS
    }
    try:
        arrays = {name: torch.from_numpy(array) for name, array in read_npz(path, wanted).items()}
        for split in SPLITS:
            if len(arrays[f"features_{split}"]) != len(arrays[f"labels_{split}"]):
                raise ValueError(f"its {split} features and labels differ in number")
        return arrays
    except (ValueError, OSError) as error:
        raise TrainError(f"features: {path} is damaged ({error}); delete it, and it is made again") from None
