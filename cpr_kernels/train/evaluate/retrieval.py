"""How good are the features? Test-to-train retrieval and a linear probe: no randomness, the same numbers every
time.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ... import retrieval_recall_at_k
from .. import TrainError
from ..batches.dataset import ClipDataset
from ..data.store import Manifest, write_atomically
from ..encoders.published import encoder_files, load_encoder
from ..encoders.weights import file_hash, weights_hash
from ..pretrain.co_training import channels_last
from ..pretrain.loop import config_of
from ..pretrain.mining_meter import together
from ..runtime.device import device_of
from ..runtime.progress import console, progress_bar
from ..views import chosen
from .probe import probe

Recall = dict[str, dict[int, float]]  # {view, and both or all: {k: share}}
SPLITS = ("train", "test")


@dataclass(frozen=True)
class Protocol:
    """How features are measured.

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
    """Features of both splits: {view: {split: [M, F]}}, all 0 where a video lacks the view, and {split: labels [M]}."""

    features: dict[str, dict[str, Tensor]]
    labels: dict[str, Tensor]


def retrieval(
    data: Path, encoders: Mapping[str, nn.Module], protocol: Protocol, device: str = "cpu"
) -> Recall:
    """R@k by view, and of all views together when there are several (the sum of their cosines)."""
    return recall_of(measured(data, encoders, protocol, device), protocol)


def measured(
    data: Path, encoders: Mapping[str, nn.Module], protocol: Protocol, device: str = "cpu"
) -> Measured:
    """Features of every video of both splits."""
    features: dict[str, dict[str, Tensor]] = {view: {} for view in encoders}
    labels = {}
    for split in SPLITS:
        dataset = _dataset(data, tuple(encoders), split, protocol)
        for view, rows in encode(dataset, encoders, protocol, device_of(device)).items():
            features[view][split] = rows
        labels[split] = torch.tensor([dataset.manifest.videos[i].label for i in dataset.videos])
    return Measured(features, labels)


def recall_of(found: Measured, protocol: Protocol) -> Recall:
    """R@k by view, on the videos that have it, and of all views together when there are several: there a view that a
    video lacks counts 0.
    """
    unit = {view: unit_features(splits, protocol) for view, splits in found.features.items()}
    if len(unit) > 1:
        unit[together(tuple(unit))] = {
            split: torch.cat([unit[view][split] for view in found.features], dim=1) for split in SPLITS
        }
    recall = {}
    for view, splits in unit.items():
        has = {split: rows.any(dim=1) for split, rows in splits.items()}
        test, train = (
            (splits[split][has[split]], found.labels[split][has[split]]) for split in ("test", "train")
        )
        recall[view] = retrieval_recall_at_k(test[0], train[0], test[1], train[1], protocol.ks)
    return recall


def probe_of(found: Measured) -> dict[str, float]:
    """Top-1 accuracy of a linear probe by view, on the videos that have it, and of all views' features side by side."""
    features = dict(found.features)
    if len(features) > 1:
        whole = {split: torch.cat([features[view][split] for view in features], dim=1) for split in SPLITS}
        features[together(tuple(features))] = whole
    accuracy = {}
    for view, splits in features.items():
        has = {split: rows.any(dim=1) for split, rows in splits.items()}
        train, test = (
            (splits[split][has[split]], found.labels[split][has[split]]) for split in ("train", "test")
        )
        accuracy[view] = probe(*train, *test)
    return accuracy


def unit_features(splits: Mapping[str, Tensor], protocol: Protocol) -> dict[str, Tensor]:
    """Centred and L2-normalised features of both splits, as retrieval compares them; all 0 stay 0: a missing view."""
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
        console().print(
            f"{dataset.left_out} {split} videos have fewer than {protocol.frames} frames: left out"
        )
    videos = [dataset.manifest.videos[i] for i in dataset.videos]
    for name, view in dataset.views.items():
        if lacking := sum(not view.has(video) for video in videos):
            console().print(
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
    """{view: [M, F]}: pooled backbone features of every video of a split, averaged over its clips, on the
    CPU; 0 where a video lacks the view.
    """
    modes = {view: encoder.training for view, encoder in encoders.items()}
    views = chosen(tuple(encoders))
    parts: dict[str, list[Tensor]] = {view: [] for view in encoders}
    sizes: dict[str, Any] = {view: encoder.feature_size for view, encoder in encoders.items()}
    try:
        for encoder in encoders.values():
            encoder.eval().to(device)
        with progress_bar() as bar:
            for start in bar.track(range(0, len(dataset), batch), description="encode"):
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
    """{split: features [M, F]} and {split: labels [M]} of an encoder's file, computed once.

    They are kept in `cache` under a hash of the encoder's weights, the data set's manifest, the view and the
    protocol: of other weights, never under the same name.
    """
    manifest = Path(data) / "manifest.json"
    what = [weights_hash(path), file_hash(manifest) if manifest.is_file() else "", view]
    what += [str(asdict(protocol)[name]) for name in ("frames", "crop", "clips")]
    kept = cache / f"{hashlib.sha256(' '.join(what).encode()).hexdigest()[:32]}.npz"
    if kept.is_file():
        with np.load(kept) as file:
            arrays = {name: torch.from_numpy(file[name]) for name in file.files}
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


def evaluate_files(
    files: Mapping[str, Path], data: Path, protocol: Protocol, cache: Path, device: str = "auto"
) -> dict[str, Any]:
    """R@k and linear probe of one encoder a view."""
    features: dict[str, dict[str, Tensor]] = {}
    labels: dict[str, Tensor] = {}
    for view, path in files.items():
        features[view], labels = cached_features(path, view, data, protocol, cache, device)
    found = Measured(features, labels)
    return {"recall": recall_of(found, protocol), "probe": probe_of(found)}


def measurable(data: Path, views: Sequence[str]) -> tuple[str, ...]:
    """The views that some training and some test video of a data set have; which are left out is said.

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
            console().print(f"no {' and no '.join(without)} video of {data} has {name}: not measured there")
        else:
            kept.append(name)
    if not kept:
        raise TrainError(f"data: {data} has no {' and no '.join(views)} to test with")
    return tuple(kept)


def evaluate_run(
    run: Path, clips: int = 10, data: Path | None = None, last: bool = False, device: str = "auto"
) -> list[dict[str, Any]]:
    """R@k and linear probe after every phase of a run, and of what it started from; writes `eval.json` in its
    folder, or `eval-<name>.json` for another data set `data` (transfer).

    `last` measures the final encoders only. Features are kept in the run's folder `features`.
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
    views = measurable(source, config.views)
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
    name = "eval.json" if data is None else f"eval-{Path(data).name}.json"
    write_atomically(run / name, json.dumps(body, indent=1).encode())
    return results
