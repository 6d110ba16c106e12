"""Runs everything in one command: frames and flow, InfoNCE, cascade co-training and its baseline, retrieval, report."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from ..progress import say
from . import TrainError
from .data.decoding import FrameSettings
from .data.manifest import Manifest
from .data.prepare import prepare, print_summary
from .data.synthetic import SyntheticSettings, generate
from .evaluate.retrieval import evaluate_run
from .pages.explorer.runs import explore
from .pages.report import write_report
from .pretrain.config import Clips, Mining, Optim, TrainConfig
from .pretrain.loop import pretrain
from .pretrain.run_folder import config_of, encoder_files
from .runtime.files import read_json, write_atomically
from .views.augment import Augment

T = TypeVar("T")
FRAMES = FrameSettings(size=48, frames=60, min_frames=9, flow="draft", flow_bound=8.0)
CLIPS = 4  # of a video, whose features are averaged in retrieval


@dataclass(frozen=True)
class Demo:
    """Mine positives from real video files, learn from them, and write a report to look at.

    Without --videos it draws a small labelled clip set whose classes need both views. InfoNCE is trained first; from
    there once with positives mined by the cascade, and once as long without any, to compare. Run again, it resumes
    where it was stopped.
    """

    videos: Path | None = None
    """Your own videos: a folder with one folder per class, or a CSV (path,label[,split,group])."""
    out: Path = Path("runs/demo")
    """Folder of all results; the report is out/report.html."""
    infonce_epochs: int = 13
    """Epochs of InfoNCE pretraining, both views together."""
    cycle_epochs: int = 10
    """Epochs of cascade co-training, for each view."""
    seed: int = 0


def demo(settings: Demo) -> Path:
    """Runs or continues the demo; returns the report's path."""
    out = settings.out
    timings = _Timings(out / "timings.json")
    videos = settings.videos
    if videos is None:
        videos = out / "videos"
        drawn = (out / "data" / "manifest.json").is_file()  # perhaps by an older version, which drew others
        if not drawn:
            timings.measure(
                "draw the clips", lambda: generate(out / "videos", SyntheticSettings(seed=settings.seed))
            )
    prepared = timings.measure("decode and TV-L1 flow", lambda: prepare(videos, out / "data", FRAMES))
    print_summary(prepared, out / "data")
    run, baseline = out / "run", out / "infonce"
    config = _pretrained(
        run, lambda: demo_config(settings, prepared.manifest), "pretrain and co-train", timings
    )
    _pretrained(baseline, lambda: baseline_config(config, baseline), "the same length of InfoNCE", timings)
    if prepared.manifest.classes:
        for folder in (run, baseline):
            timings.measure("retrieval", partial(evaluate_run, folder, clips=CLIPS))
    write_atomically(run / "timings.json", json.dumps(timings.seconds).encode())
    inside = explore([run], out / "report_inside.html").name
    title = "Cascade positive retrieval: demo"
    report = write_report([run], out / "report.html", title, inside, baseline=baseline)
    say(f"report: {report}")
    return report


def _pretrained(run: Path, first: Callable[[], TrainConfig], part: str, timings: _Timings) -> TrainConfig:
    """Runs a new training by the config that `first` returns, or the rest of the one in `run`; returns its config."""
    resume = (run / "config.json").is_file()
    config = config_of(run) if resume else first()
    timings.measure(part, lambda: pretrain(config, resume=resume))
    return config


def demo_config(settings: Demo, manifest: Manifest) -> TrainConfig:
    """Returns a setting that two cores finish in a few minutes; batch and queue shrink with a small data set."""
    frames = 8
    long_enough = [video.split for video in manifest.videos if video.frames >= frames]
    usable, testing = long_enough.count("train"), long_enough.count("test")
    if usable < 16 or (manifest.classes and testing < 1):
        raise TrainError(
            f"videos: {usable} for training and {testing} for testing, with at least {frames + 1} frames each, are "
            "too few; give 16 and 1 or more (a class is split only if its videos come from two sources or more)"
        )
    batch = min(32, usable // 4)
    queue = min(384, (usable * 3 // 4) // batch * batch)
    stages = 5 if queue >= 96 else 3
    return TrainConfig(
        data=settings.out / "data",
        out=settings.out / "run",
        infonce_epochs=settings.infonce_epochs,
        cycles=1,
        cycle_epochs=settings.cycle_epochs,
        queue=queue,
        backbone="conv4",
        width=0.25,
        clips=Clips(frames=frames, crop=48, batch=batch),
        mining=Mining(
            stages=stages, topk=min(5, queue // 2 ** (stages - 1)), drop_own_positive=0.5,
            infonce_siblings="positive",
        ),
        optim=Optim(momentum=0.97, cycle_lr=3e-3, warmup=10),
        augment=Augment(min_area=0.5, blur=0.0),
        seed=settings.seed,
    )  # fmt: skip


def baseline_config(config: TrainConfig, out: Path) -> TrainConfig:
    """Returns the same training from the run's own InfoNCE encoders on, its cycles without mined positives."""
    return replace(
        config, out=out, infonce_epochs=0, init=encoder_files(config.out)[0][1],
        mining=replace(config.mining, method="infonce"),
    )  # fmt: skip


class _Timings:
    """Keeps the seconds of each part in a file, so that a resumed demo adds to what was spent before."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seconds: dict[str, float] = (
            read_json(path, "out", "delete it", dict[str, float]) if path.is_file() else {}
        )

    def measure(self, name: str, work: Callable[[], T]) -> T:
        began = time.monotonic()
        try:
            return work()
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - began
            write_atomically(self.path, json.dumps(self.seconds).encode())
