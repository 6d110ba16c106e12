"""The trainer's commands: each a function from arguments to an exit status, built from the dataclasses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from . import TrainError
from .command import by_place, guarded, parse, taken
from .use import COMMANDS as USE_COMMANDS


@dataclass(frozen=True)
class Prepare:
    """Turn videos into a data set: small RGB frames and TV-L1 flow, in one LMDB.

    Videos lie in one folder a class (FOLDER/<class>/<video>, optionally below train and test), or are listed
    in a CSV with the columns path,label[,split,group]. Names like v_Archery_g01_c02 (UCF101) tell which
    videos are cut from the same source, and give the official split 1. Broken, short and missing files are
    skipped and listed. Stop it at any moment; the same command goes on.
    """

    videos: Path
    """Folder of videos, or CSV."""
    out: Path
    """Folder of the data set."""
    splits: Path | None = None
    """Folder of official split lists: trainlist01.txt, testlist01.txt and classInd.txt (UCF101), or
    <class>_test_split1.txt (HMDB51). Videos that they do not list are left out.
    """
    fold: int = 1
    """Which of the official splits, 1 to 3."""
    processes: int = 0
    """Decoding processes; 0 takes one a core."""
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
    """TV-L1 effort: full (OpenCV's default), fast (a quarter of its time) or draft (a ninth)."""
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
    """Another prepared data set (transfer), measured into eval-<its name>.json; the run's own by default."""
    last: bool = False
    """Only the final encoders, not those after each phase."""
    device: str = "auto"
    """auto takes CUDA where there is one."""


@dataclass(frozen=True)
class Report:
    """Write a self-contained report.html about one run, or several side by side: `cpr report RUN [RUN ...]`.

    Runs are evaluated first where they are not. Beside it lies report_inside.html, the page of `cpr explore`.
    """

    runs: list[Path]
    """Folders of runs."""
    out: Path = field(default=Path("report.html"))
    """The page to write."""
    title: str = "Cascade positive retrieval"


def prepare(argv: list[str]) -> int:
    """`cpr prepare`."""
    options = parse(Prepare, argv, "prepare")

    def work() -> None:
        from .prepare import prepare as run_prepare
        from .prepare import print_summary
        from .videos import FrameSettings

        fields = {f.name: getattr(options, f.name) for f in dataclasses.fields(FrameSettings)}
        print_summary(
            run_prepare(
                options.videos,
                options.out,
                FrameSettings(**fields),
                options.processes,
                (options.splits, options.fold) if options.splits else None,
            ),
            options.out,
        )

    return guarded(work)


def pretrain(argv: list[str]) -> int:
    """`cpr pretrain [--preset NAME] --data DATA ...` or `cpr pretrain --resume RUN`."""

    def work() -> None:
        from .config import METHOD_PRESETS, PRESETS, TrainConfig
        from .config import preset as preset_settings
        from .loop import config_of
        from .loop import pretrain as run_pretrain
        from .parallel import speaks
        from .progress import console

        resumed, rest = taken(argv, "--resume")
        preset, rest = taken(rest, "--preset")
        if resumed is not None:
            if rest or preset:
                raise TrainError(
                    f"resume: a run goes on with its own settings; drop {' '.join(rest) or '--preset'}"
                )
            run = run_pretrain(config_of(Path(resumed)), resume=True)
        else:
            defaults = preset_settings(preset or "paper")
            presets = [f"  {name}: {(make.__doc__ or '').strip()}" for name, make in PRESETS.items()]
            more = "\n".join([
                "Stop it at any moment; `cpr pretrain --resume RUN` goes on exactly. On several GPUs: "
                "`torchrun --nproc-per-node N -m cpr_kernels pretrain ...`.",
                "\n--preset NAME:", *presets,
                f"  or a method, alone or added as in small+coclr: {', '.join(METHOD_PRESETS)}",
            ])  # fmt: skip
            config = parse(TrainConfig, rest, "pretrain", defaults, more)
            run = run_pretrain(config)
        if speaks():
            console().print(f"done: {run}; next: cpr evaluate --run {run}")

    return guarded(work)


def evaluate(argv: list[str]) -> int:
    """`cpr evaluate --run RUN`."""
    options = parse(Evaluate, by_place(argv, "--run"), "evaluate")

    def work() -> None:
        from .evaluate import evaluate_run
        from .progress import table

        results = evaluate_run(options.run, options.clips, options.data, options.last, options.device)
        ks = list(next(iter(results[0]["recall"].values())))
        rows = [
            [
                result["phase"], view, *(f"{100 * share:.1f}" for share in shares.values()),
                f"{100 * result['probe'][view]:.1f}",
            ]
            for result in results for view, shares in result["recall"].items()
        ]  # fmt: skip
        table("retrieval and linear probe, %", ["after", "view", *(f"R@{k}" for k in ks), "probe"], rows)

    return guarded(work)


def finetune(argv: list[str]) -> int:
    """`cpr finetune --run RUN --data DATA --out FOLDER`."""

    def work() -> None:
        from .finetune import Finetune
        from .finetune import finetune as run_finetune
        from .progress import table

        settings = parse(Finetune, argv, "finetune")
        result = run_finetune(settings)
        shown: dict[str, dict[str, float]] = {
            name: result[name] for name in ("centre", "ten_crop") if name in result
        }
        shown.update({f"fused, {name}": figures for name, figures in result.get("fused", {}).items()})
        rows = [
            [name.replace("_", " "), *(f"{100 * figures[key]:.1f}" for key in ("top1", "top5", "mean_class"))]
            for name, figures in shown.items()
        ]
        table(
            f"accuracy on {result['videos']} test videos, %", ["test", "top-1", "top-5", "mean class"], rows
        )

    return guarded(work)


def report(argv: list[str]) -> int:
    """`cpr report --runs RUN [RUN ...] --out PAGE`."""
    options = parse(Report, by_place(argv, "--runs"), "report")

    def work() -> None:
        from .evaluate import evaluate_run
        from .explore import explore
        from .report import write_report

        for run in options.runs:
            if not (run / "eval.json").is_file():
                evaluate_run(run)
        inside = ""
        if all((run / "checkpoint.pt").is_file() for run in options.runs):
            inside = explore(options.runs, options.out.with_name(f"{options.out.stem}_inside.html")).name
        print(write_report(options.runs, options.out, options.title, inside))

    return guarded(work)


def demo(argv: list[str]) -> int:
    """`cpr demo [--videos FOLDER] [--out runs/demo]`."""

    def work() -> None:
        from .demo import Demo
        from .demo import demo as run_demo

        print(run_demo(parse(Demo, argv, "demo")))

    return guarded(work)


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "prepare": prepare,
    "pretrain": pretrain,
    "evaluate": evaluate,
    "finetune": finetune,
    "report": report,
    "demo": demo,
    **USE_COMMANDS,
}
