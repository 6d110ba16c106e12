"""How good are the features? Test-to-train retrieval: no training, no randomness, the same numbers every
time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from .. import retrieval_recall_at_k
from . import TrainError
from .checkpoint import encoder_files, load_encoder
from .clips import ClipDataset
from .loop import config_of
from .model import channels_last
from .progress import console, progress_bar
from .quality import together
from .store import write_atomically
from .views import chosen

Recall = dict[str, dict[int, float]]  # {view, and both or all: {k: share}}


@dataclass(frozen=True)
class Protocol:
    """How retrieval is measured.

    clips: evenly spaced clips of each video, whose features are averaged; frames, crop: their size (centre
    square). center: subtract the training features' mean from all. ks: R@k is the share of test videos with a
    training video of their class among their k nearest, by cosine.
    """

    frames: int = 32
    crop: int = 112
    clips: int = 10
    center: Literal["none", "train"] = "train"
    ks: tuple[int, ...] = (1, 5, 10, 20)


def retrieval(
    data: Path, encoders: Mapping[str, nn.Module], protocol: Protocol, device: str = "cpu"
) -> Recall:
    """R@k by view, and of all views together when there are several (the sum of their cosines).

    A view is measured on the videos that have it; in the sum, a view that a video lacks counts 0.
    """
    features: dict[str, dict[str, Tensor]] = {}
    has: dict[str, dict[str, Tensor]] = {}
    labels: dict[str, Tensor] = {}
    for split in ("train", "test"):
        dataset = ClipDataset(
            data, protocol.frames, protocol.crop, views=tuple(encoders), split=split, cache_mb=0
        )
        videos = [dataset.manifest.videos[i] for i in dataset.videos]
        has[split] = {
            name: torch.tensor([view.has(v) for v in videos]) for name, view in dataset.views.items()
        }
        _tell_left_out(dataset, split, has[split])
        features[split] = encode(dataset, encoders, protocol, torch.device(device))
        labels[split] = torch.tensor([video.label for video in videos])
    recall = {}
    for view in encoders:
        here = {split: has[split][view] for split in features}
        mean = features["train"][view][here["train"]].mean(dim=0) if protocol.center == "train" else 0.0
        for split in features:
            centred = functional.normalize(features[split][view] - mean, dim=1)
            features[split][view] = torch.where(here[split][:, None], centred, 0)
        recall[view] = retrieval_recall_at_k(
            features["test"][view][here["test"]], features["train"][view][here["train"]],
            labels["test"][here["test"]], labels["train"][here["train"]], protocol.ks,
        )  # fmt: skip
    if len(encoders) > 1:
        test, train = (
            torch.cat([features[split][view] for view in encoders], dim=1) for split in ("test", "train")
        )
        recall[together(tuple(encoders))] = retrieval_recall_at_k(
            test, train, labels["test"], labels["train"], protocol.ks
        )
    return recall


def _tell_left_out(dataset: ClipDataset, split: str, has: Mapping[str, Tensor]) -> None:
    if dataset.left_out:
        console().print(
            f"{dataset.left_out} {split} videos have fewer than {dataset.frames} frames: left out"
        )
    if dataset.without:
        console().print(f"{dataset.without} {split} videos have no {' and no '.join(has)}: left out")
    for view, held in has.items():
        if lacking := int((~held).sum()):
            console().print(
                f"{lacking} of {len(held)} {split} videos have no {view}: left out of its R@k, 0 in the sum"
            )


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
                    pooled = torch.zeros(len(cut), int(sizes[view]))
                    if held:
                        frames = torch.cat([torch.from_numpy(cut[row][view]) for row in held]).to(device)
                        rows = features(channels_last(views[view].plain(frames)))
                        pooled[held] = rows.view(len(held), protocol.clips, -1).mean(dim=1).cpu()
                    parts[view].append(pooled)
    finally:
        for view, encoder in encoders.items():
            encoder.train(modes[view])
    return {view: torch.cat(rows) for view, rows in parts.items()}


def evaluate_run(
    run: Path, clips: int = 10, data: Path | None = None, last: bool = False
) -> list[dict[str, Any]]:
    """R@k after every phase of a run, and of what it started from; writes `eval.json` in its folder.

    `last` measures the final encoders only.
    """
    config = config_of(run)
    phases = encoder_files(run)
    if not phases:
        raise TrainError(f"run: {run} has no encoder yet; they are saved at the end of each phase")
    if len(config.init) == len(config.views):
        phases.insert(0, ("start", config.init))
    if last:
        phases = phases[-1:]
    protocol = Protocol(config.clips.frames, config.clips.crop, clips)
    results = []
    for phase, files in phases:
        encoders = {view: load_encoder(files[view]) for view in config.views}
        recall = retrieval(data or config.data, encoders, protocol)
        results.append({"phase": phase, "recall": recall})
    body = {"data": str(data or config.data), "protocol": asdict(protocol), "phases": results}
    write_atomically(run / "eval.json", json.dumps(body, indent=1).encode())
    return results
