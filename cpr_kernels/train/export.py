"""Runs `cpr export`: writes a finished training as one file that works without the trainer."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import __version__
from ..deploy import artifact
from ..deploy.model import RECORDS
from ..deploy.network import Network, weights_of, why_not_described
from ..deploy.program import MOST_CLIPS, program_of
from ..files import refuse_existing
from ..progress import say, waiting
from . import TrainError
from .batches.dataset import ClipDataset
from .data.manifest import Manifest
from .encoders.weights import encoder_facts, load_encoder
from .evaluate.classifier import load_classifier
from .evaluate.features import Protocol, encode
from .evaluate.finetune import CLASSIFIER, settings_of
from .pretrain.run_folder import config_of, encoder_files
from .views import chosen


@dataclass(frozen=True)
class Export:
    """Write one file that holds a trained model and works without the trainer: `cpr export SOURCE --out model.cpr`.

    SOURCE is a folder of `cpr finetune` (classes and embeddings) or of `cpr pretrain` (embeddings of its last
    encoders). The file is a zip: weights as safetensors, a manifest with the network, the preprocessing, the class
    names and hashes, and a torch.export program with a free batch size and the normalisation inside. Use it by `cpr
    predict`, `index` and `search`, by `cpr_kernels.deploy.Model`, or anywhere by `torch.export.load`.
    """

    source: Path
    """Folder made by `cpr finetune` or `cpr pretrain`."""
    out: Path = Path("model.cpr")
    """The file to write."""
    views: tuple[str, ...] = ()
    """Of a run, the views to take part; all that are cut from frames by default."""
    clips: int = 10
    """Evenly spaced clips that are looked at in each part of a video, averaged."""
    center: int = 200
    """Training videos whose mean feature is taken off, as retrieval tests do; 0 takes off nothing."""
    data: Path | None = None
    """Where the data set is that SOURCE learnt from, if it was moved."""
    onnx: bool = False
    """Also write model.onnx into the file; needs onnx and onnxscript."""
    force: bool = False
    """Replace --out if it is there."""

    def check(self) -> None:
        """Raises `TrainError` for the first setting that cannot work, `ValueError` where `out` is there already."""
        for name, least in (("clips", 1), ("center", 0)):
            if getattr(self, name) < least:
                raise TrainError(f"{name}: must be at least {least}, got {getattr(self, name)}")
        refuse_existing([self.out], self.force)
        if not self.source.is_dir():
            raise TrainError(f"source: {self.source} is not a folder of `cpr finetune` or `cpr pretrain`")


@dataclass(frozen=True)
class _Trained:
    """Holds what is exported: the networks, the size of their clips, and the data set that they learnt from."""

    encoders: dict[str, nn.Module]
    linear: nn.Linear | None
    classes: list[str]
    frames: int
    crop: int
    data: Path


def export(settings: Export) -> Path:
    """Writes the artifact; returns its path.

    Raises:
        TrainError: nothing trained there, a view that an artifact cannot be fed, or a data set that is gone.
        ValueError: a file that is there already.
    """
    settings.check()
    source, out = settings.source, settings.out
    is_classifier = (source / CLASSIFIER).is_file()
    trained = _classifier(source, settings) if is_classifier else _run(source, settings)
    _refuse_views(trained.encoders)
    views = chosen(tuple(trained.encoders))
    model = Network(trained.encoders, {name: view.plain for name, view in views.items()}, trained.linear)
    for name, centre in _centres(trained, settings.center).items():
        getattr(model, f"centre_{name}").copy_(centre)
    frames = Manifest.load(trained.data).settings
    records = {name: view.stored for name, view in views.items()}
    example = tuple(
        torch.randint(0, 256, (2, trained.frames, trained.crop, trained.crop, RECORDS[record])).to(
            torch.uint8
        )
        for record in records.values()
    )
    with waiting("export the program"):
        members = {artifact.PROGRAM: program_of(model, example), artifact.WEIGHTS: weights_of(model)}
    if settings.onnx:
        members[artifact.ONNX] = onnx_of(model, example, list(records))
    with torch.no_grad():
        embedding = model(*example)[0].shape[1]
    manifest = {
        "kind": "classifier" if trained.classes else "encoder",
        "cpr_kernels": __version__,
        "torch": str(torch.__version__),
        "source": source.name,
        "views": _described(trained.encoders, records),
        "inputs": [f"{name}: uint8 [M, {', '.join(map(str, clip.shape[1:]))}]" for name, clip in zip(records, example)],
        "outputs": ["embedding: float32 [M, E]", *["probabilities: float32 [M, C]"] * bool(trained.classes)],
        "clip": {
            "frames": trained.frames, "crop": trained.crop, "size": frames.size, "fps_stride": frames.fps_stride,
            "fps": frames.fps, "limit": frames.frames, "clips": settings.clips, "flow": frames.flow,
            "flow_bound": frames.flow_bound,
        },
        "embedding": embedding,
        "classes": trained.classes,
    }  # fmt: skip
    artifact.write(out, manifest, members)
    return out


def _described(encoders: Mapping[str, nn.Module], records: Mapping[str, str]) -> list[dict[str, Any]]:
    """Returns the manifest's views, with each encoder's architecture and size where these describe it."""
    views = [{"name": name, "record": record} for name, record in records.items()]
    if reason := why_not_described(tuple(encoders), tuple(encoders.values())):
        say(f"stored as a program only ({reason}): whoever uses this file must trust it (--trust)")
        return views
    return [{**view, **encoder_facts(encoder)} for view, encoder in zip(views, encoders.values())]


def onnx_of(model: nn.Module, example: Sequence[Tensor], names: Sequence[str]) -> bytes:
    """Returns the model as ONNX, inputs named after the views, batch size free.

    Raises:
        TrainError: onnx or onnxscript is missing.
    """
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise TrainError(f"onnx: {error.name} is not installed: pip install onnx onnxscript") from error
    batch = torch.export.Dim("clips", min=1, max=MOST_CLIPS)
    outputs = ["embedding", "probabilities"][: 1 + (getattr(model, "linear", None) is not None)]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model, tuple(example), input_names=list(names), output_names=outputs, dynamo=True, verbose=False,
            dynamic_shapes=(tuple({0: batch} for _ in example),),
        )  # fmt: skip
    assert program is not None
    return bytes(program.model_proto.SerializeToString())


def _classifier(folder: Path, settings: Export) -> _Trained:
    classifier = load_classifier(folder / CLASSIFIER)
    clip = classifier.clip
    return _Trained(
        {clip.view: classifier.encoder}, classifier.linear, classifier.classes, clip.frames, clip.crop,
        settings.data or Path(settings_of(folder)["data"]),
    )  # fmt: skip


def _run(folder: Path, settings: Export) -> _Trained:
    names = settings.views
    if not (folder / "config.json").is_file():
        raise TrainError(
            f"source: {folder} holds neither a classifier of `cpr finetune` nor a run of `cpr pretrain`"
        )
    config = config_of(folder, settings.data)
    phases = encoder_files(folder)
    if not phases:
        raise TrainError(f"source: {folder} has no encoder yet; they are saved at the end of each phase")
    if unknown := [view for view in names if view not in config.views]:
        raise TrainError(f"views: {folder} has no view {unknown[0]!r}; it has {', '.join(config.views)}")
    known = chosen(config.views)
    views = names or [view for view in config.views if known[view].stored in RECORDS]
    if left := [view for view in config.views if view not in views]:
        say(f"left out: {', '.join(left)}")
    encoders = {view: load_encoder(phases[-1][1][view]) for view in views}
    return _Trained(encoders, None, [], config.clips.frames, config.clips.crop, config.data)


def _refuse_views(encoders: Mapping[str, nn.Module]) -> None:
    for name, view in chosen(tuple(encoders)).items():
        if view.stored not in RECORDS:
            raise TrainError(
                f"views: {name} is made of {view.stored}, and an artifact is fed by {' and '.join(RECORDS)} only; "
                "leave it out by --views"
            )


def _centres(trained: _Trained, videos: int) -> dict[str, Tensor]:
    """Returns the mean feature of some training videos, evenly spread, by view; zeros for none."""
    if not videos:
        sizes: dict[str, Any] = {view: encoder.feature_size for view, encoder in trained.encoders.items()}
        return {view: torch.zeros(int(size)) for view, size in sizes.items()}
    dataset = ClipDataset(
        trained.data, trained.frames, trained.crop, views=tuple(trained.encoders), cache_mb=0
    )
    apart = max(1, math.ceil(len(dataset.videos) / videos))
    dataset.videos = dataset.videos[::apart]
    protocol = Protocol(trained.frames, trained.crop, clips=2)
    features = encode(dataset, trained.encoders, protocol, torch.device("cpu"))
    return {view: rows.mean(dim=0) for view, rows in features.items()}
