"""Runs an artifact: takes videos, returns embeddings and class probabilities."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..errors import TrainError
from ..video import Frame, Frames, TimedFrames, UnreadableVideo, centre_square, flow_estimator, timed_frames
from . import artifact
from .artifact import ArtifactError
from .network import rebuilt
from .program import load_program

BATCH = 8  # clips in one call of the model
RECORDS = {"rgb": 3, "flow": 2}  # records that clips are cut from, and their channels


@dataclass(frozen=True)
class ClipBatch:
    """Holds clips of a video: `rgb` [M, T, S, S, 3], `flow` [M, T, S, S, 2] where a view needs it, and their times.

    The records are uint8; `times` are the seconds at which each clip begins and ends.
    """

    records: dict[str, Tensor]
    times: list[tuple[float, float]]


class Model:
    """Loads a model of `cpr export`, without the trainer, and runs it.

    The network is rebuilt from its description and the weights; nothing of the file is run as code. `trust` takes the
    exported program instead, which views and networks of your own need: loading one can run code, whatever is checked.

    Args:
        path: the artifact.
        trust: load the exported program; only of people you trust.

    Attributes:
        manifest: the artifact's description of itself.
        classes: names of the classes; empty for an encoder.
        embedding: length of an embedding.
        id: SHA-256 of the weights, which an index stores.

    Example:
        >>> model = Model("model.cpr")
        >>> seen = model.video("clip.mp4")
        >>> seen.probabilities, seen.embeddings.shape

    Raises:
        ArtifactError: missing, damaged, of another version, not what its manifest says, or without a description of
            its network and without `trust`.
    """

    def __init__(self, path: str | Path, trust: bool = False) -> None:
        self.path = Path(path)
        self.manifest, members = artifact.read(self.path)
        self.classes = list(self.manifest.classes)
        self.embedding = self.manifest.embedding
        self.id = self.manifest.files[artifact.WEIGHTS].sha256
        self.views = self.manifest.views
        if self.manifest.clip is None:
            raise ArtifactError(
                f"artifact: {path} was made by `cpr adapt`: it takes tables of embeddings, not videos; "
                "give `cpr predict` a table, or use cpr_kernels.deploy.Adapter"
            )
        self.clip = self.manifest.clip
        if unknown := [view.record for view in self.views if view.record not in RECORDS]:
            raise ArtifactError(
                f"artifact: {path} is fed by {unknown[0]}, which this cpr_kernels cannot read"
            )
        try:
            self._module = self._program(members) if trust else self._network(members)
        except (ValueError, TrainError) as error:
            raise ArtifactError(f"artifact: {path} cannot be used: {error}") from error
        self._module.requires_grad_(False)
        self._check()

    def _network(self, members: dict[str, bytes]) -> Any:
        """Returns the network that the manifest describes, with the stored weights."""
        if not self.manifest.described:
            raise ValueError(
                "it describes no network, only an exported program, and loading that can run code; export it again, "
                "or, if you trust who made it, load it with --trust (in Python: Model(path, trust=True))"
            )
        described = {view.name: (view.architecture, view.width, view.embedding) for view in self.views}
        if len(described) < len(self.views):
            raise ValueError("it has a view twice")
        return rebuilt(described, len(self.classes), members[artifact.WEIGHTS])

    def _program(self, members: dict[str, bytes]) -> Any:
        """Returns the module of the exported program."""
        if artifact.PROGRAM not in members:
            raise ValueError(f"it holds no {artifact.PROGRAM}; load it without trust")
        return load_program(members[artifact.PROGRAM])

    def _check(self) -> None:
        """Raises `ArtifactError` where the program's outputs for a clip of zeros are not those of the manifest."""
        frames, side = self.clip.frames, self.clip.crop
        blank = {
            name: torch.zeros(1, frames, side, side, channels, dtype=torch.uint8)
            for name, channels in RECORDS.items()
        }
        try:
            embeddings, probabilities = self(ClipBatch(blank, [(0.0, 0.0)]))
        except (RuntimeError, ValueError, TypeError, AssertionError, KeyError) as error:
            raise ArtifactError(
                f"artifact: the model of {self.path} does not take the clips that its manifest describes: "
                f"{' '.join(str(error).split())[:200]}"
            ) from error
        got = (embeddings.shape[1], 0 if probabilities is None else probabilities.shape[1])
        if got != (self.embedding, len(self.classes)):
            raise ArtifactError(
                f"artifact: the manifest of {self.path} promises {self.embedding} numbers and {len(self.classes)} "
                f"classes, its model gives {got[0]} and {got[1]}"
            )

    @torch.no_grad()
    def __call__(self, clips: ClipBatch) -> tuple[Tensor, Tensor | None]:
        """Returns embeddings [M, E] of length 1 and, from a classifier, class probabilities [M, C]; float32."""
        found: list[tuple[Tensor, ...]] = []
        for start in range(0, len(clips.times), BATCH):
            inputs = [clips.records[view.record][start : start + BATCH] for view in self.views]
            found.append(self._module(*inputs))
        embeddings = torch.cat([part[0] for part in found])
        return embeddings, torch.cat([part[1] for part in found]) if self.classes else None

    def video(self, path: str | Path, clips: int | None = None) -> VideoPrediction:
        """Predicts a video, from `clips` evenly spaced clips of each part of `clip.limit` frames.

        Args:
            path: the video file.
            clips: the artifact's own number by default, as in the test after training.

        Raises:
            UnreadableVideo: missing, broken, or shorter than one clip.
        """
        embeddings, probabilities, times = [], [], []
        frames = self._frames(Path(path))
        for part in self._read(frames, clips or self.clip.clips):
            vectors, shares = self(part)
            embeddings.append(vectors)
            times += part.times
            if shares is not None:
                probabilities.append(shares)
        scores = torch.cat(probabilities) if probabilities else None
        return VideoPrediction(scores, torch.cat(embeddings), times, frames.note)

    def read(self, path: Path, clips: int) -> Iterator[ClipBatch]:
        """Yields the clips of a video, part by part."""
        return self._read(self._frames(path), clips)

    def _frames(self, path: Path) -> TimedFrames:
        clip = self.clip
        return timed_frames(path, clip.size, clip.fps_stride, clip.fps)

    def _read(self, decoded: TimedFrames, clips: int) -> Iterator[ClipBatch]:
        found = False
        count = 0
        for frames, flow, times in self._parts(decoded):
            count += len(frames) + 1
            usable = len(frames) - self.clip.frames
            if usable >= 0:
                found = True
                yield self._cut(frames, flow, times, np.linspace(0, usable, clips).round().astype(int))
        if not found:
            raise UnreadableVideo(f"too short: {count} frames, at least {self.clip.frames + 1} are needed")

    def _parts(self, decoded: TimedFrames) -> Iterator[tuple[list[Frame], list[Frame], list[float]]]:
        """Yields frames, flow and seconds of at most `clip.limit` frames at a time.

        The last frame only ends the flow before it, as in the prepared data.
        """
        wants_flow = any(view.record == "flow" for view in self.views)
        between = flow_estimator(self.clip.flow, self.clip.flow_bound) if wants_flow else None
        held: list[tuple[Frame, float]] = []
        flow: list[Frame] = []
        for frame, second in decoded:
            if held:
                if held[-1][0].shape != frame.shape:
                    raise UnreadableVideo("the frame size changes inside the video")
                if between is not None:
                    flow.append(np.stack(np.split(between(held[-1][0], frame), 2), axis=-1))
            held.append((frame, second))
            if len(held) == self.clip.limit:
                yield [image for image, _ in held[:-1]], flow, [second for _, second in held]
                held, flow = [], []
        if held:
            yield [image for image, _ in held[:-1]], flow, [second for _, second in held]

    def _cut(self, frames: list[Frame], flow: list[Frame], times: list[float], starts: Any) -> ClipBatch:
        length, side = self.clip.frames, self.clip.crop
        kept: dict[str, list[Frames]] = {"rgb": [], **({"flow": []} if flow else {})}
        for start in starts:
            for record, source in (("rgb", frames), ("flow", flow)):
                if record in kept:
                    kept[record].append(centre_square(np.stack(source[start : start + length]), side))
        spans = [(times[start], times[start + length]) for start in starts]
        return ClipBatch({record: torch.from_numpy(np.stack(parts)) for record, parts in kept.items()}, spans)


@dataclass(frozen=True)
class VideoPrediction:
    """Holds what a model predicts for one video, by clip and for the whole.

    clip_probabilities: [M, C] or None. embeddings: [M, E], of length 1. times: begin and end of each clip in seconds
    from the video's first frame on. note: what is to be said of the file's times; empty where all is well.
    """

    clip_probabilities: Tensor | None
    embeddings: Tensor
    times: list[tuple[float, float]]
    note: str = ""

    @property
    def probabilities(self) -> Tensor | None:
        """Returns the mean over the clips, [C]; None from an encoder."""
        return None if self.clip_probabilities is None else self.clip_probabilities.mean(dim=0)

    @property
    def embedding(self) -> Tensor:
        """Returns the mean of the clips' embeddings, [E], of length 1."""
        return functional.normalize(self.embeddings.mean(dim=0), dim=0)
