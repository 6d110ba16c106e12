"""Fine-tunes a classifier: trains the backbone with a lower rate than the new layer, and tests on whole videos."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ...files import relocated
from ...networks import new_encoder
from ...networks.inputs import channels_last
from ...progress import ProgressBar
from .. import Interrupted, TrainError
from ..batches.dataset import Batch, ClipDataset
from ..batches.loader import augmented, clip_batches
from ..batches.sampler import ClipSampler
from ..data.manifest import Manifest
from ..encoders.forward import calibrate_
from ..encoders.weights import load_encoder
from ..pretrain.config import Clips
from ..pretrain.run_folder import config_of, encoder_files, videos_hash
from ..runtime.checkpoint import load, save
from ..runtime.device import Amp, autocast, device_to_train_on
from ..runtime.files import read_json, write_atomically
from ..runtime.lock import exclusive
from ..runtime.run_log import RunLog
from ..runtime.signals import stop_flag
from ..runtime.trackers import Logger, check_logger
from ..views import chosen
from ..views.augment import Augment
from .classifier import Classifier, ClipSettings, save_classifier
from .video_scores import accuracy, fused, names_and_labels, scores_of, video_scores

CLASSIFIER = "classifier.safetensors"
PLACES = ("data", "run", "encoder")  # the settings that are paths of what it learns from


@dataclass(frozen=True)
class Finetune:
    """Train a classifier on top of a pretrained encoder, and test it on whole videos.

    The backbone learns too, at a tenth of the rate. Tested by the centre and by ten crops of evenly spaced clips,
    averaged; the folder gets classifier.safetensors, test.npz (class probabilities of every test video) and
    result.json. Several folders' probabilities are averaged by --fuse (two-stream).
    """

    data: Path
    """Data set made by `cpr prepare`; any, not only the one that the encoder learnt from (transfer)."""
    out: Path
    """Folder of the classifier. Stopped or killed, the same command resumes."""
    run: Path | None = None
    """Folder of a run made by `cpr pretrain`: its last encoder of the view."""
    encoder: Path | None = None
    """Or an encoder's file: of a run (encoders/*.safetensors), or a published CoCLR or CPR .pth.tar."""
    scratch: bool = False
    """Or begin with random weights, for comparison; needs --width."""
    view: str = "rgb"
    """The classifier's view."""
    epochs: int = 100
    lr: float = 1e-3
    """Learning rate of the new layer (Adam); falls to a tenth at 60 % and again at 80 % of the training."""
    backbone_lr: float = 0.1
    """The backbone's rate, as a share of `lr`; 0 leaves it as it is."""
    weight_decay: float = 1e-3
    dropout: float = 0.9
    """Share of the features that are left out in training."""
    batch: int = 32
    """Videos in a batch."""
    frames: int = 0
    """Consecutive frames of a clip; 0 takes the run's (without a run 32)."""
    crop: int = 0
    """Pixels of a clip's side; 0 takes the run's (without a run 128)."""
    clips: int = 10
    """Evenly spaced clips of each test video."""
    ten_crop: bool = True
    """Test ten crops of each clip as well as its centre."""
    fuse: tuple[Path, ...] = ()
    """Folders of other classifiers of the same data, whose probabilities are averaged with this one's."""
    width: float = 1.0
    """With --scratch: multiplies the network's channels."""
    amp: Amp = "off"
    """bf16: convolutions in bfloat16, on CUDA (not tried yet) or a CPU with AVX-512 BF16."""
    augment: Augment = field(default_factory=Augment)
    workers: int = -1
    cache_mb: int = 1024
    logger: Logger = "auto"
    """Where figures go beside log.jsonl: auto is TensorBoard where it is installed."""
    seed: int = 0
    device: str = "auto"

    def resolved(self) -> Finetune:
        """Returns the same settings with the clip's size filled in from the run."""
        given = config_of(self.run).clips if self.run is not None else Clips()
        return replace(self, frames=self.frames or given.frames, crop=self.crop or given.crop)

    def check(self) -> None:
        """Raises `TrainError` for the first setting that cannot work."""
        check_logger(self.logger)
        given = [name for name in ("run", "encoder") if getattr(self, name)] + ["scratch"] * self.scratch
        if len(given) != 1:
            raise TrainError(
                f"finetune: give exactly one of --run, --encoder and --scratch, got {' and '.join(given) or 'none'}"
            )
        for name, least in (("epochs", 1), ("batch", 2), ("clips", 1), ("frames", 8), ("crop", 32)):
            if getattr(self, name) < least:
                raise TrainError(f"{name}: must be at least {least}, got {getattr(self, name)}")
        for name in ("dropout", "backbone_lr"):
            if not 0 <= getattr(self, name) <= 1:
                raise TrainError(f"{name}: must lie in [0, 1], got {getattr(self, name)}")


def finetune(settings: Finetune) -> dict[str, Any]:
    """Trains or resumes, tests, and writes the folder; returns what `result.json` holds.

    On a CPU a resumed training gives the weights of one that was never stopped.

    Raises:
        TrainError: settings that cannot work, or a folder that holds something else.
        Interrupted: stopped by SIGINT or SIGTERM; the same command resumes.
    """
    settings = settings.resolved()
    settings.check()
    manifest = Manifest.load(settings.data)  # held, so that the two data sets do not decode it again
    out, wanted = settings.out, _refuse_another(settings, manifest)
    device = device_to_train_on(settings.device, settings.amp)
    manifest.need_classes(settings.data, "a classifier")
    train, test = _dataset(settings, "train"), _dataset(settings, "test")
    classifier = new_classifier(settings, train.manifest.classes).to(device)
    _refuse_before_training(classifier, test, settings)
    with exclusive(out, "train"):
        write_atomically(out / "finetune.json", json.dumps(wanted, indent=1).encode())
        _fit(classifier, train, settings, device)
    save_classifier(out / CLASSIFIER, classifier, data=str(settings.data), seed=settings.seed)
    scores = {"centre": video_scores(classifier, test, settings.clips, ten=False, amp=settings.amp)}
    if settings.ten_crop:
        scores["ten_crop"] = video_scores(classifier, test, settings.clips, ten=True, amp=settings.amp)
    names, labels = names_and_labels(test)
    with_scores = {name: values.numpy() for name, values in scores.items()}
    _save_npz(out / "test.npz", ids=names, labels=labels, **with_scores)
    result: dict[str, Any] = {
        "view": settings.view, "videos": len(labels), "clips": settings.clips,
        **{name: accuracy(values, torch.from_numpy(labels)) for name, values in scores.items()},
    }  # fmt: skip
    if settings.fuse:
        result["fused"] = fused([out, *settings.fuse])
    write_atomically(out / "result.json", json.dumps(result, indent=1).encode())
    return result


def _refuse_before_training(classifier: Classifier, test: ClipDataset, settings: Finetune) -> None:
    """Raises `TrainError` for what would otherwise be found hours later.

    That is an encoder of other clips, or folders of --fuse without a test, or tested on other videos.
    """
    view = test.views[settings.view]
    clip = view.plain(torch.from_numpy(test.test_crops(0, 1, settings.view, ten=False)).flatten(0, 1))
    try:
        with torch.no_grad():
            video = classifier.eval()(clip.to(next(classifier.parameters()).device))
    except RuntimeError as error:
        raise TrainError(
            f"view: the encoder does not take clips of {settings.view} ({str(error).splitlines()[0][:150]}); give the "
            "view that it was trained on"
        ) from None
    classifier.train()
    assert video.shape == (1, len(test.manifest.classes))
    for folder in settings.fuse:
        scores_of(folder, *names_and_labels(test), f"{settings.data} has for testing")


def new_classifier(settings: Finetune, classes: list[str]) -> Classifier:
    """Returns the classifier before its first step; its new weights follow from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        encoder = _encoder(settings)
        clip = ClipSettings(settings.view, settings.frames, settings.crop)
        return Classifier(encoder, classes, clip, settings.dropout)


def _fit(classifier: Classifier, dataset: ClipDataset, settings: Finetune, device: torch.device) -> None:
    sampler = ClipSampler(len(dataset), settings.batch, settings.seed)
    end = settings.epochs * sampler.steps_per_pass
    optimizer = _optimizer(classifier, settings)
    checkpoint, start = settings.out / "checkpoint.pt", 0
    if checkpoint.is_file():
        start = _restore(load(checkpoint), classifier, optimizer, sampler)
    classes = torch.tensor([video.label for video in dataset.manifest.videos], device=device)
    sampler.position = start
    cuda = [device] if device.type == "cuda" else []
    with (
        ProgressBar("finetune", end, done=start) as bar,
        stop_flag() as stop,
        torch.random.fork_rng(cuda),
        RunLog(settings.out, start, logger=settings.logger, settings=_as_json(settings)) as log,
    ):
        for step, batch in enumerate(
            clip_batches(dataset, sampler, settings.workers, end - start), start=start
        ):
            for group in optimizer.param_groups:
                group["lr"] = group["full_lr"] * decay(step / end)
            figures = _step(classifier, batch, classes, optimizer, settings, step)
            epoch = step // sampler.steps_per_pass
            log.step({"step": step, "phase": "finetune", "epoch": epoch}, figures)
            bar.advance(status=f"loss {figures['loss']:.2f}, right {100 * figures['top1']:.0f} %")
            if (step + 1) % sampler.steps_per_pass == 0 or stop or step == end - 1:
                log.flush()
                sampler.position = step + 1
                save(checkpoint, _snapshot(classifier, optimizer, sampler))
            if stop:
                raise Interrupted(f"stopped after step {step + 1} of {end}; the same command resumes")


def _step(
    classifier: Classifier, batch: Batch, classes: Tensor, optimizer: torch.optim.Adam, settings: Finetune,
    step: int,
) -> dict[str, float]:  # fmt: skip
    """Trains one step on both clips of each video. Dropout's draws follow from seed and step."""
    device, view = classes.device, settings.view
    rng = np.random.default_rng((settings.seed, 3, step))
    generator = torch.Generator().manual_seed(int(rng.integers(1 << 62)))
    torch.manual_seed(int(rng.integers(1 << 62)))
    clips = augmented(batch, chosen((view,)), settings.augment, generator, device)[view].flatten(0, 1)
    labels = classes[batch["video"].to(device)].repeat(2)
    if step == 0:
        calibrate_(
            classifier.encoder, channels_last(clips)
        )  # with --scratch only: others have their statistics
    classifier.train()
    if not settings.backbone_lr:
        classifier.encoder.eval()
    with autocast(device, settings.amp):
        logits = classifier(clips)
    loss = functional.cross_entropy(logits, labels)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    value = float(loss.detach())
    if not math.isfinite(value):
        raise TrainError(f"step {step}: the loss is not finite ({value}); lower --lr")
    return {"loss": value, "top1": (logits.argmax(dim=1) == labels).float().mean().item()}


def decay(progress: float) -> float:
    """Returns the rate's factor: 1, a tenth from 60 % of the training on, a hundredth from 80 %."""
    return 0.1 ** sum(progress >= share for share in (0.6, 0.8))


def _optimizer(classifier: Classifier, settings: Finetune) -> torch.optim.Adam:
    share = settings.backbone_lr
    classifier.encoder.requires_grad_(share > 0)
    groups = [{"params": list(classifier.linear.parameters()), "full_lr": settings.lr}]
    if share:
        groups.append({"params": list(classifier.encoder.parameters()), "full_lr": settings.lr * share})
    return torch.optim.Adam(groups, lr=settings.lr, weight_decay=settings.weight_decay)


def _encoder(settings: Finetune) -> nn.Module:
    if settings.scratch:
        return new_encoder("s3d", settings.width, 128)
    path = settings.encoder
    if settings.run is not None:
        phases = encoder_files(settings.run)
        if not phases:
            raise TrainError(
                f"run: {settings.run} has no encoder yet; they are saved at the end of each phase"
            )
        files = phases[-1][1]
        if settings.view not in files:
            raise TrainError(
                f"view: {settings.run} has no {settings.view} encoder; it has {', '.join(files)}"
            )
        path = files[settings.view]
    assert path is not None  # `check` has made sure of it
    return load_encoder(path)


def _dataset(settings: Finetune, split: str) -> ClipDataset:
    return ClipDataset(
        settings.data, settings.frames, settings.crop, views=(settings.view,), split=split,
        min_area=settings.augment.min_area, cache_mb=settings.cache_mb if split == "train" else 0,
    )  # fmt: skip


def _as_json(settings: Finetune) -> dict[str, Any]:
    return dict(json.loads(json.dumps(asdict(settings), default=str)))


def _refuse_another(settings: Finetune, manifest: Manifest) -> dict[str, Any]:
    """Returns the settings as plain values; refuses a folder made with others. How it is tested may change."""
    free = {"fuse", "clips", "ten_crop", "workers", "cache_mb", "logger", "device"}
    wanted = _as_json(settings)
    wanted |= {name: str(Path(wanted[name]).resolve()) for name in PLACES if wanted[name]}
    wanted["videos"] = videos_hash(manifest)
    path = settings.out / "finetune.json"
    if path.is_file():
        before = settings_of(settings.out)
        free |= {"videos"} | ({"data"} if before.get("videos") == wanted["videos"] else set())
        changed = [
            f"{name} {before.get(name)} -> {value}"
            for name, value in wanted.items() if name not in {*free, "out"} and before.get(name) != value
        ]  # fmt: skip
        if changed:
            raise TrainError(
                f"out: {settings.out} was made with other settings ({'; '.join(changed)}); give another --out"
            )
    elif (settings.out / "config.json").is_file():
        raise TrainError(f"out: {settings.out} holds a pretraining run; give another --out")
    return {**wanted, "folder": str(settings.out.resolve())}


def settings_of(folder: Path) -> dict[str, Any]:
    """Returns the settings that a fine-tuning was begun with, its paths where they are since it was moved."""
    before = read_json(folder / "finetune.json", "source", "run the same `cpr finetune` again")
    if not isinstance(before.get("data"), str):
        raise TrainError(
            f"source: {folder / 'finetune.json'} names no data set; run the same `cpr finetune` again"
        )
    recorded = before.pop("folder", None)
    found = {name: relocated(before[name], recorded, folder).resolve() for name in PLACES if before.get(name)}
    return {**before, **{name: str(path) for name, path in found.items()}}


def _snapshot(classifier: Classifier, optimizer: torch.optim.Adam, sampler: ClipSampler) -> dict[str, Any]:
    return {
        "model": classifier.state_dict(), "classes": classifier.classes, "optimizer": optimizer.state_dict(),
        "sampler": sampler.state_dict(),
    }  # fmt: skip


def _restore(
    state: dict[str, Any], classifier: Classifier, optimizer: torch.optim.Adam, sampler: ClipSampler
) -> int:
    if state["classes"] != classifier.classes:
        raise TrainError("data: its classes changed since this classifier was begun; give another --out")
    sampler.load_state_dict(state["sampler"])
    try:
        classifier.load_state_dict(state["model"])
    except RuntimeError as error:
        raise TrainError(
            f"out: its checkpoint is of another network ({' '.join(str(error).split())[:200]})"
        ) from None
    optimizer.load_state_dict(state["optimizer"])
    return sampler.position


def _save_npz(path: Path, **arrays: Any) -> None:
    import io

    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_atomically(path, buffer.getvalue())
