"""Runs `cpr update`: trains a finished run further with new videos, and measures what it forgets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..progress import say, table, waiting
from . import TrainError
from .batches.dataset import ClipDataset
from .data.layouts import Labels
from .data.manifest import Manifest, Video
from .data.parts import parts_in
from .data.prepare import prepare
from .data.sources import Source, group_of, list_sources
from .data.store import FrameStore, record_key
from .data.workers import content_hash
from .encoders.weights import load_encoder
from .evaluate.features import Measured, Protocol, measured
from .evaluate.retrieval import recall_of
from .pretrain.config import TrainConfig, same_settings
from .pretrain.loop import pretrain
from .pretrain.run_folder import WarmStart, config_of, encoder_files
from .runtime.files import read_json, write_atomically
from .runtime.lock import exclusive

NOTE, FIGURES = "goes_on.json", "update.json"
Figures = dict[str, dict[str, dict[str, float]]]  # {old, new: {view: {k: share}}}


@dataclass(frozen=True)
class Update:
    """Train a finished run further with new videos: `cpr update RUN --videos NEW --out RUN2`.

    Only the new videos are decoded; they and a copy of the run's data set become RUN2/data. Encoders, momentum encoders
    and queue start where RUN stopped, and --old-share of every batch are old videos, so that they are not forgotten.
    Retrieval by old and by new test videos, among all training videos, is measured before and after. Stopped or killed,
    the same command resumes.
    """

    run: Path
    """Folder of a finished run."""
    videos: Path
    """The new videos: a folder with one folder per class, or a CSV, as for `cpr prepare`."""
    out: Path
    """Folder of the new run; RUN stays as it is."""
    data: Path | None = None
    """Where RUN's data set is, if it was moved."""
    old_share: float = 0.5
    """Share of each batch that are old videos; 0 trains on new ones only."""
    epochs: int = 10
    """Passes over the new videos, for each phase: InfoNCE where RUN had nothing else, else one cycle."""
    lr: float | None = None
    """Learning rate; by default the run's own, in the cycles."""
    batch: int | None = None
    """Videos in a batch; the run's own by default."""
    clips: int = 10
    """Evenly spaced clips of each video when retrieval is measured."""
    processes: int = 0
    """Decoding processes; 0 takes one per core."""

    def check(self) -> None:
        """Raises `TrainError` for the first setting that cannot work."""
        if not 0 <= self.old_share < 1:
            raise TrainError(f"old-share: must lie in [0, 1), got {self.old_share}")
        for name in ("epochs", "clips"):
            if getattr(self, name) < 1:
                raise TrainError(f"{name}: must be at least 1, got {getattr(self, name)}")
        if self.out.resolve() == self.run.resolve():
            raise TrainError("out: give a folder of its own; the run that is updated stays as it is")
        if not (self.run / "checkpoint.pt").is_file():
            raise TrainError(
                f"run: {self.run} has no checkpoint.pt; finish it with `cpr pretrain --resume {self.run}`"
            )


def update(settings: Update) -> dict[str, Figures]:
    """Runs or resumes an update; returns {before, after: retrieval}, which `update.json` in the folder holds too.

    Raises:
        TrainError: settings that cannot work, videos that cannot be used, or a folder that holds something else.
        Interrupted: stopped by SIGINT or SIGTERM; the same command resumes.
    """
    settings.check()
    before, out = config_of(settings.run, settings.data), settings.out
    config = config_of_update(before, settings)
    begun = (out / "config.json").is_file()
    if begun and not same_settings(config_of(out), config):
        raise TrainError(
            f"out: {out} was begun with other settings; give another --out, or the settings it has"
        )
    old = Manifest.load(before.data)
    join_data(before.data, settings, old)
    note = WarmStart(str(settings.run), len(old.videos), settings.old_share)
    note.save(out / NOTE)
    advice = "delete it, and it is measured again"
    figures = read_json(out / FIGURES, "out", advice, dict[str, Figures]) if (out / FIGURES).is_file() else {}
    if "before" not in figures:
        figures["before"] = retrieval_of(settings.run, config, note, settings.clips)
        write_atomically(out / FIGURES, json.dumps(figures, indent=1).encode())
    pretrain(config, resume=begun)
    figures["after"] = retrieval_of(out, config, note, settings.clips)
    write_atomically(out / FIGURES, json.dumps(figures, indent=1).encode())
    return figures


def config_of_update(before: TrainConfig, settings: Update) -> TrainConfig:
    """Returns the run's settings for `epochs` more epochs: one cycle where it had cycles, else InfoNCE."""
    cycles = bool(before.cycles and before.cycle_epochs)
    optim = before.optim
    if settings.lr is not None:
        optim = replace(optim, lr=settings.lr, cycle_lr=None)
    clips = before.clips if settings.batch is None else replace(before.clips, batch=settings.batch)
    return replace(
        before, data=settings.out / "data", out=settings.out, init={}, goes_on=settings.out / NOTE,
        infonce_epochs=0 if cycles else settings.epochs, cycles=int(cycles), cycle_epochs=settings.epochs,
        mining=replace(before.mining, progressive=False), optim=optim, clips=clips,
    )  # fmt: skip


def join_data(before: Path, settings: Update, old: Manifest) -> Manifest:
    """Joins old and new videos in one data set at OUT/data: old ones first, with the numbers that they had."""
    data = settings.out / "data"
    labels: Labels = "auto" if old.classes else "none"
    sources = list_sources(settings.videos, labels=labels).sources
    if parts_in(before):
        raise TrainError(
            f"run: its data set {before} is in parts, which cannot be added to; prepare it in one part"
        )
    _refuse_same_names(sources, FrameStore(before), {video.id for video in old.videos}, settings.videos)
    if not (data / "data.mdb").is_file():
        _copy(before, data)
    fresh = prepare(settings.videos, data, old.settings, settings.processes, labels=labels).manifest
    joined = union(old, fresh)
    joined.save(data)
    added = joined.videos[len(old.videos) :]
    if not any(video.split == "train" for video in added):
        raise TrainError(
            f"videos: {settings.videos} holds no new video to train on; all are known, or for testing"
        )
    say(f"{len(old.videos)} old videos, {len(added)} new, {len(fresh.skipped)} files skipped")
    return joined


def union(old: Manifest, fresh: Manifest) -> Manifest:
    """Returns one manifest: classes and groups of the same name are the same, new ones come after the old."""
    classes = [*old.classes, *(name for name in fresh.classes if name not in old.classes)]
    groups = {_group(video, old.classes): video.group for video in old.videos}
    after = max(groups.values(), default=-1) + 1
    known = {video.id for video in old.videos}
    videos = list(old.videos)
    for video in fresh.videos:
        if video.id not in known:
            name = _group(video, fresh.classes)
            group = groups.setdefault(name, after + video.group)
            label = classes.index(fresh.classes[video.label]) if video.label >= 0 else video.label
            videos.append(replace(video, label=label, group=group))
    return Manifest(old.settings, classes, videos, sorted({*old.skipped, *fresh.skipped}))


def retrieval_of(run: Path, config: TrainConfig, note: WarmStart, clips: int) -> Figures:
    """Returns R@k of a run's last encoders, by old and by new test videos, among all training videos, old and new.

    It is empty where the videos have no classes.
    """
    if not Manifest.load(config.data).classes:
        return {}
    files = encoder_files(run)[-1][1]
    encoders = {view: load_encoder(files[view]) for view in config.views}
    protocol = Protocol(config.clips.frames, config.clips.crop, clips)
    found = measured(config.data, encoders, protocol, config.device)
    tested = ClipDataset(
        config.data, protocol.frames, protocol.crop, views=config.views, split="test", cache_mb=0
    ).videos
    is_old = torch.tensor(tested) < note.old_videos
    return {
        name: _string_keys(recall_of(_select_test_rows(found, rows), protocol))
        for name, rows in (("old", is_old), ("new", ~is_old)) if bool(rows.any())
    }  # fmt: skip


def show(figures: Mapping[str, Figures]) -> None:
    """Prints the table: before and after, by old and by new videos."""
    if not figures["after"]:
        say("the videos have no classes: retrieval is not measured")
        return
    rows = [
        [f"{name} videos, {when}", view, *(f"{100 * share:.1f}" for share in shares.values())]
        for name in ("old", "new") for when in ("before", "after")
        for view, shares in figures[when].get(name, {}).items()
    ]  # fmt: skip
    ks = next(iter(next(iter(figures["before"].values())).values()))
    table("retrieval among all training videos, %", ["test", "view", *(f"R@{k}" for k in ks)], rows)
    if "new" not in figures["after"]:
        say("none of the new videos is for testing (a class is split from two sources on): not measured")


def _select_test_rows(found: Measured, rows: torch.Tensor) -> Measured:
    """Returns the features with only these test rows."""
    features = {
        view: {"train": splits["train"], "test": splits["test"][rows]}
        for view, splits in found.features.items()
    }
    return replace(found, features=features, labels={**found.labels, "test": found.labels["test"][rows]})


def _string_keys(recall: Mapping[str, Mapping[int, float]]) -> dict[str, dict[str, float]]:
    return {view: {str(k): share for k, share in shares.items()} for view, shares in recall.items()}


def _group(video: Video, classes: list[str]) -> str:
    whole = video.file == video.id
    return group_of(classes[video.label] if whole and video.label >= 0 else "", video.file)


def _refuse_same_names(sources: list[Source], store: FrameStore, known: set[str], videos: Path) -> None:
    """Raises `TrainError` for a new file with an old one's name, which would replace it in the data set."""
    for source in sources:
        entry: dict[str, Any] | None = (
            store.get_json(record_key("entry", source.id)) if source.id in known else None
        )
        if entry is not None and source.path.is_file():
            status = source.path.stat()
            same = (entry["bytes"], entry["changed_ns"]) == (status.st_size, status.st_mtime_ns)
            if not same and (
                not entry.get("content_sha256") or entry["content_sha256"] != content_hash(source)
            ):
                raise TrainError(
                    f"videos: {source.id} of {videos} has the name of another video that the run learnt from; rename it"
                )
    store.close()


def _copy(before: Path, data: Path) -> None:
    """Copies a data set, whole or not at all."""
    part = data.with_name(f".{data.name}.part")
    with exclusive(part, "copy"):
        for name in ("data.mdb", "lock.mdb"):
            (part / name).unlink(missing_ok=True)
        with waiting(f"copy {before}"):
            FrameStore(before).env.copy(str(part))
        if data.is_dir() and not any(data.iterdir()):
            data.rmdir()
        part.replace(data)
