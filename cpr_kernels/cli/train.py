"""Runs the trainer's commands: each parses a dataclass of settings and returns an exit status."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..files import refuse_existing
from ..progress import result, waiting
from ..train import TrainError
from .arguments import common_options, parse, pop_option, positional_as_option

ADVANCED = ("optim", "augment", "iic")  # groups of options of `pretrain` that --help leaves out


@dataclass(frozen=True)
class Prepare:
    """Turn videos into a data set: small RGB frames and TV-L1 flow, in one LMDB.

    Videos are in one folder per class (FOLDER/<class>/<video>), optionally below or above folders of splits (train,
    val, test), in one folder without classes, or listed in a CSV with the columns path[,label,split,group,start,end]:
    rows with start and end (seconds) are segments, each a sample; ActivityNet's JSON lists segments too. Names like
    v_Archery_g01_c02 (UCF101) show which videos are cut from the same source, and give the official split 1. Links
    are followed; files whose ending is no video's, and broken, short and missing ones, are skipped and counted by
    reason. Stop it at any moment; the same command resumes.
    """

    videos: tuple[Path, ...]
    """Folder of videos or of folders of frames; or lists: CSV, `path label`, JSON of ActivityNet, Kinetics or
    Something-Something. Several are one data set.
    """
    out: Path
    """Folder of the data set."""
    root: Path | None = None
    """Folder that the paths in lists are below (default: the list's own)."""
    shard: str = ""
    """I/N stores the I-th of N parts of the videos, for N machines at once (a Slurm array) that share --out: who
    finishes last writes the manifest of all. A part that died is run again.
    """
    splits: Path | None = None
    """Folder of official split lists: trainlist01.txt, testlist01.txt and classInd.txt (UCF101), or
    <class>_test_split1.txt (HMDB51). Videos that they do not list are left out.
    """
    fold: int = 1
    """Which of the official splits, 1 to 3."""
    labels: Literal["auto", "folder", "none"] = "auto"
    """Whether folders (or the label column) are classes: auto where there are any; none takes all videos without
    classes, for pretraining, mining and search.
    """
    processes: int = 0
    """Decoding processes; 0 takes one per core."""
    size: int = 128
    """Shorter edge of the stored frames, in pixels."""
    frames: int = 300
    """Most frames kept of a video, from its start."""
    min_frames: int = 17
    """Videos with fewer frames are skipped."""
    fps_stride: int = 1
    """Keep every n-th frame."""
    fps: float = 0.0
    """Frames a second: keep the frame nearest in time to each instant, so that flow means the same motion in every
    video. 0 keeps each video's own rate.
    """
    flow: Literal["full", "fast", "draft"] = "full"
    """TV-L1 effort: full (OpenCV's default), fast (a third of its time) or draft (a seventh)."""
    flow_bound: float = 20.0
    """Flow is clipped to +- this many pixels a frame; less for small frames."""
    jpeg_quality: int = 95
    """1 to 100."""


@dataclass(frozen=True)
class Evaluate:
    """Measure the features of a run: retrieval of training videos by test videos, and a linear probe.

    Prints R@1, 5, 10 and 20 and the probe's accuracy by phase and view, and writes eval.json in the run's folder. No
    randomness; features are kept, so that a second time costs little. --data tests the transfer to another data set.
    """

    run: Path
    """Folder of a run made by `cpr pretrain`."""
    clips: int = 10
    """Evenly spaced clips of each video, whose features are averaged."""
    data: Path | None = None
    """Another prepared data set (transfer), measured into eval-<its name>.json, or where the run's own is, if it was
    moved.
    """
    last: bool = False
    """Only the final encoders, not those after each phase."""
    device: str = "auto"
    """auto takes CUDA where there is one."""


@dataclass(frozen=True)
class Report:
    """Write a self-contained report.html about one run, or several side by side: `cpr report RUN [RUN ...]`.

    Runs are evaluated first where they are not. The page of `cpr explore`, report_inside.html, is written beside it.
    """

    runs: list[Path]
    """Folders of runs."""
    out: Path = field(default=Path("report.html"))
    """The page to write."""
    force: bool = False
    """Replace --out and the page beside it if they are there."""
    title: str = "Cascade positive retrieval"
    baseline: Path | None = None
    """A run to compare the first one with: R@1 on the same test videos, with the difference's 95 % interval."""
    data: Path | None = None
    """Where the runs' data set is, if it was moved."""


def prepare(argv: list[str]) -> int:
    """Runs `cpr prepare`."""
    options = parse(Prepare, argv, "prepare")

    from ..train.data.decoding import FrameSettings
    from ..train.data.parts import parse_part
    from ..train.data.prepare import prepare as run_prepare
    from ..train.data.prepare import print_summary

    fields = {f.name: getattr(options, f.name) for f in dataclasses.fields(FrameSettings)}
    prepared = run_prepare(
        options.videos,
        options.out,
        FrameSettings(**fields),
        options.processes,
        (options.splits, options.fold) if options.splits else None,
        options.labels,
        options.root,
        parse_part(options.shard) if options.shard else None,
    )
    print_summary(prepared, options.out)
    manifest = prepared.manifest
    result({
        "data": options.out, "videos": len(manifest.videos), "classes": len(manifest.classes),
        "splits": Counter(video.split for video in manifest.videos),
        "stored": prepared.stored, "kept": prepared.kept, "skipped": len(manifest.skipped),
    })  # fmt: skip
    return 0


def pretrain(argv: list[str]) -> int:
    """Runs `cpr pretrain [--preset NAME] --data DATA ...` or `cpr pretrain --resume RUN`."""
    from ..progress import say
    from ..train.pretrain.config import TrainConfig
    from ..train.pretrain.loop import pretrain as run_pretrain
    from ..train.pretrain.presets import METHOD_PRESETS, PRESETS
    from ..train.pretrain.presets import preset as preset_settings
    from ..train.pretrain.run_folder import config_of
    from ..train.runtime.ranks import is_main_process

    resumed, rest = pop_option(argv, "--resume")
    preset, rest = pop_option(rest, "--preset")
    if resumed is not None:
        data, rest = pop_option(common_options(rest), "--data")
        if rest or preset:
            raise TrainError(
                f"resume: a run continues with its own settings; drop {' '.join(rest) or '--preset'}"
            )
        run = run_pretrain(config_of(Path(resumed), Path(data) if data else None), resume=True)
    else:
        renamed = re.compile(r"^--mining\.own[-_]drop\b")  # its name in version 0.1
        rest = [renamed.sub("--mining.drop-own-positive", word) for word in rest]
        defaults = preset_settings(preset or "paper")
        presets = [f"  {name}: {(make.__doc__ or '').strip()}" for name, make in PRESETS.items()]
        more = "\n".join([
            "Stop it at any moment; `cpr pretrain --resume RUN` continues exactly. On several GPUs: "
            "`torchrun --nproc-per-node N -m cpr_kernels pretrain ...`.",
            "\n--preset NAME:", *presets,
            f"  or a method, by itself or added as in small+coclr: {', '.join(METHOD_PRESETS)}",
        ])  # fmt: skip
        config = parse(TrainConfig, rest, "pretrain", defaults, more, ADVANCED)
        run = run_pretrain(config)
    if is_main_process():
        say(f"done: {run}; next: cpr evaluate --run {run}")
        result({"run": run, **json.loads((run / "log.jsonl").read_text().splitlines()[-1])})
    return 0


def evaluate(argv: list[str]) -> int:
    """Runs `cpr evaluate RUN`."""
    options = parse(Evaluate, positional_as_option(argv, "--run"), "evaluate")

    from ..progress import table
    from ..train.evaluate.retrieval import evaluate_run

    results = evaluate_run(options.run, options.clips, options.data, options.last, options.device)
    ks = list(next(iter(results[0]["recall"].values())))
    rows = [
        [
            one["phase"], view, *(f"{100 * share:.1f}" for share in shares.values()),
            f"{100 * one['probe'][view]:.1f}",
        ]
        for one in results for view, shares in one["recall"].items()
    ]  # fmt: skip
    result(results)
    table("retrieval and linear probe, %", ["after", "view", *(f"R@{k}" for k in ks), "probe"], rows)
    return 0


def finetune(argv: list[str]) -> int:
    """Runs `cpr finetune --run RUN --data DATA --out FOLDER`."""
    from ..progress import table
    from ..train.evaluate.finetune import Finetune
    from ..train.evaluate.finetune import finetune as run_finetune

    settings = parse(Finetune, argv, "finetune")
    found = run_finetune(settings)
    result(found)
    shown: dict[str, dict[str, float]] = {
        name: found[name] for name in ("centre", "ten_crop") if name in found
    }
    shown.update({f"fused, {name}": figures for name, figures in found.get("fused", {}).items()})
    rows = [
        [name.replace("_", " "), *(f"{100 * figures[key]:.1f}" for key in ("top1", "top5", "mean_class"))]
        for name, figures in shown.items()
    ]
    table(f"accuracy on {found['videos']} test videos, %", ["test", "top-1", "top-5", "mean class"], rows)
    return 0


def report(argv: list[str]) -> int:
    """Runs `cpr report RUN [RUN ...] --out PAGE`."""
    options = parse(Report, positional_as_option(argv, "--runs"), "report")
    inside = options.out.with_name(f"{options.out.stem}_inside.html")
    refuse_existing([options.out, inside], options.force)

    from ..train.data.manifest import Manifest
    from ..train.evaluate.retrieval import evaluate_run
    from ..train.pages.explorer.runs import explore
    from ..train.pages.report import write_report
    from ..train.pretrain.run_folder import config_of

    for run in [*options.runs, *([options.baseline] if options.baseline else [])]:
        if not (run / "eval.json").is_file() and Manifest.load(config_of(run, options.data).data).classes:
            evaluate_run(run, data=options.data)
    whole = all((run / "checkpoint.pt").is_file() for run in options.runs)
    linked = explore(options.runs, inside, data=options.data).name if whole else ""
    with waiting("draw the report"):
        page = write_report(
            options.runs, options.out, options.title, linked, data=options.data, baseline=options.baseline
        )
    result({"page": page}, str(page))
    return 0


def demo(argv: list[str]) -> int:
    """Runs `cpr demo [--videos FOLDER] [--out runs/demo]`."""
    from ..train.demo import Demo
    from ..train.demo import demo as run_demo

    page = run_demo(parse(Demo, argv, "demo"))
    result({"page": page}, str(page))
    return 0


def export(argv: list[str]) -> int:
    """Runs `cpr export SOURCE --out model.cpr`."""
    from ..train.export import Export
    from ..train.export import export as write_artifact

    out = write_artifact(parse(Export, positional_as_option(argv, "--source"), "export"))
    size = out.stat().st_size
    result({"file": out, "bytes": size}, f"{out} ({size / 1e6:.1f} MB); next: cpr predict {out} VIDEO ...")
    return 0


def update(argv: list[str]) -> int:
    """Runs `cpr update RUN --videos NEW --out RUN2`."""
    from ..train.update import Update, show
    from ..train.update import update as run_update

    settings = parse(Update, positional_as_option(argv, "--run"), "update")
    figures = run_update(settings)
    show(figures)
    result({"run": settings.out, **figures}, f"{settings.out}; next: cpr report {settings.out}")
    return 0
