"""Compares the papers' methods in one command: every method under one budget, from each seed's common InfoNCE warm-up.

    python -m bench protocol --data DATA --out FOLDER [--preset cpu|small|flow|centred-flow|gpu] [--seeds 0 1]
                             [--amp bf16] [--drop-own-positive 0.9]

DATA is a set made by `cpr prepare`. Every run is resumable: stopped or killed, the same command continues it.
FOLDER gets seed<n>/<method>/ (runs), protocol.json, protocol.md, curves.svg and report.html.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from cpr_kernels.train import Interrupted, TrainError
from cpr_kernels.train.data.manifest import Manifest
from cpr_kernels.train.evaluate.features import Protocol, measured_videos
from cpr_kernels.train.evaluate.paired_gain import right_by_video
from cpr_kernels.train.evaluate.retrieval import evaluate_run
from cpr_kernels.train.pages.plots import Panel, save_curves
from cpr_kernels.train.pages.report import last_epochs, write_report
from cpr_kernels.train.pretrain.config import Clips, Mining, Optim, TrainConfig, with_absolute_paths
from cpr_kernels.train.pretrain.loop import pretrain
from cpr_kernels.train.pretrain.phases import make_plan, total_steps
from cpr_kernels.train.pretrain.run_folder import config_of, encoder_files
from cpr_kernels.train.runtime.run_log import read_lines
from cpr_kernels.train.views.augment import Augment

from ..tables.readme import write_text
from .protocol_tables import diagnosis, markdown

WARM_UP = "warm-up"
METHODS: dict[str, dict[str, Any]] = {
    "infonce": {"method": "infonce"},
    "coclr": {"method": "coclr"},
    "cpr-3": {"method": "cpr", "stages": 3},
    "cpr-7": {"method": "cpr", "stages": 7},
    "tuned": {"method": "auto"},
    "cpr-7-progressive": {"method": "cpr", "stages": 7, "progressive": True},
    "ubernce": {"method": "ubernce"},
    "cpr-7-drop-own": {"method": "cpr", "stages": 7, "drop_own_positive": 0.9},
    "ubernce-drop-own": {"method": "ubernce", "drop_own_positive": 0.9},
}
USUAL = [name for name in METHODS if not name.endswith("drop-own")]
PRESETS = ("cpu", "small", "flow", "centred-flow", "gpu")
PROGRESSIVE_CYCLES = 5  # top-1 to top-5, in as many epochs as the others take


@dataclass(frozen=True)
class Budget:
    """One setting for all methods: the warm-up, then `cycles` of `cycle_epochs` for each view.

    cycle_min_area: least share of the frame that a clip's crop keeps in the cycles; as in the warm-up by default.
    """

    config: TrainConfig
    clips_per_video: int
    cycle_min_area: float | None = None


def budget(preset: str, data: Path, out: Path, device: str) -> Budget:
    """Returns the budget of a preset. cpu: a reduced setting for two cores, hours for 1,256 videos. small: a small
    network trained briefly, minutes for 437 videos. flow: the same trained long, then flow alone with positives mined
    with RGB. centred-flow: the view `centred_flow` instead, and cycles twice as long, at twice the rate, on crops of
    half the frame or more, the own pair always a positive. gpu: the full S3D on 32 x 112 x 112.
    """
    ignored = Mining(topk=5, siblings="ignore", infonce_siblings="ignore")
    common = TrainConfig(data=data, out=out, mining=ignored, device=device)
    if preset == "gpu":
        return Budget(
            replace(
                common, infonce_epochs=100, cycles=1, cycle_epochs=25, queue=512, amp="bf16",
                clips=Clips(frames=32, crop=112, batch=64, cache_mb=4096),
                optim=Optim(momentum=0.99, cycle_lr=2e-4, warmup=50),
            ),
            clips_per_video=5,
        )  # fmt: skip
    if preset == "small":
        return Budget(
            replace(
                common, infonce_epochs=30, cycles=1, cycle_epochs=10, queue=320, backbone="conv4", width=0.25,
                clips=Clips(frames=8, crop=48, batch=32), augment=Augment(min_area=0.5, blur=0.0),
                optim=Optim(momentum=0.97, warmup=10),
            ),
            clips_per_video=4,
        )  # fmt: skip
    if preset in ("flow", "centred-flow"):
        old = preset == "flow"
        motion = "flow" if old else "centred_flow"
        return Budget(
            replace(
                common, views=("rgb", motion), infonce_epochs=100, cycles=1, cycle_epochs=50 if old else 100,
                cycle_views=(motion,), queue=384, backbone="conv4", width=0.5,
                mining=replace(ignored, drop_own_positive=0.9 if old else 0.0),
                clips=Clips(frames=8, crop=48, batch=32, cache_mb=4096),
                optim=Optim(momentum=0.99, cycle_lr=1e-3 if old else 2e-3, warmup=10), augment=Augment(blur=0.0),
            ),
            clips_per_video=4, cycle_min_area=None if old else 0.5,
        )  # fmt: skip
    return Budget(
        replace(
            common, infonce_epochs=30, cycles=1, cycle_epochs=5, queue=384, width=0.25,
            clips=Clips(frames=8, crop=64, batch=32, cache_mb=4096),
            optim=Optim(momentum=0.99, cycle_lr=2e-4, warmup=10),
        ),
        clips_per_video=4,
    )  # fmt: skip


def warm_up_config(base: TrainConfig, out: Path, seed: int) -> TrainConfig:
    """Returns the config of InfoNCE of both views, from scratch."""
    return replace(base, out=out / f"seed{seed}" / WARM_UP, cycles=0, cycle_epochs=0, seed=seed)


def method_config(base: Budget, out: Path, seed: int, method: str) -> TrainConfig:
    """Returns the config of a method's cycles, from the seed's warm-up."""
    config = base.config
    if base.cycle_min_area is not None:
        config = replace(config, augment=replace(config.augment, min_area=base.cycle_min_area))
    folder = out / f"seed{seed}"
    phases = encoder_files(folder / WARM_UP)
    settings = METHODS[method]
    changes: dict[str, Any] = {}
    if settings.get("progressive"):
        total = config.cycles * config.cycle_epochs
        if total % PROGRESSIVE_CYCLES:
            raise TrainError(
                f"cycle-epochs: {total} epochs a view do not divide into {PROGRESSIVE_CYCLES} cycles of the "
                "progressive method; use a multiple"
            )
        changes = {"cycles": PROGRESSIVE_CYCLES, "cycle_epochs": total // PROGRESSIVE_CYCLES}
    return replace(
        config, out=folder / method, seed=seed, infonce_epochs=0, init=phases[-1][1],
        mining=replace(config.mining, **settings), **changes,
    )  # fmt: skip


def _what_counts(config: TrainConfig) -> TrainConfig:
    """Returns the settings that a result depends on: not the machine's, and not IIC's queue, which is as long
    as its data; without other positives, as in the warm-up and in InfoNCE, the own pair is never left out.
    """
    queue = 0 if config.framework == "iic" else config.queue
    alone = config.cycles == 0 or config.mining.method == "infonce"
    drop = 0.0 if alone else config.mining.drop_own_positive
    return replace(
        with_absolute_paths(config),
        device="",
        queue=queue,
        mining=replace(config.mining, drop_own_positive=drop),
        clips=replace(config.clips, workers=0, cache_mb=0),
    )


def train(config: TrainConfig, clips: int) -> None:
    """Runs, continues, or leaves alone what is finished; then measures its last encoders."""
    known = (config.out / "config.json").is_file()
    if known:
        before = config_of(config.out)
        if _what_counts(before) != _what_counts(config):
            raise TrainError(
                f"out: {config.out} was made with other settings; repeat its arguments, or give another --out"
            )
        config = before
    finished = (config.out / "eval.json").is_file()
    if not finished:
        pretrain(config, resume=known)
        evaluate_run(config.out, clips=clips, last=True, device=config.device)


def figures_of(run: Path) -> dict[str, Any]:
    """Returns what a finished run came to: retrieval and probe, and the mining of each phase's last epoch."""
    evaluation = json.loads((run / "eval.json").read_text())["phases"][-1]
    epochs = [line for line in read_lines(run / "log.jsonl") if line["kind"] == "epoch"]
    mined: dict[str, Any] = {}
    for line in last_epochs(epochs):  # a later cycle's phase of a view replaces an earlier one's
        view = line["phase"].partition("-")[2] or "infonce"
        mined[view] = line["mining"]
    curve = [line["mining"]["mined"]["pmr"] for line in epochs if "mined" in line["mining"]]
    watched = [
        {
            "phase": line["phase"],
            "pmr": line["mining"]["mined"]["pmr"],
            "agreement": line["agreement"]["mined"],
        }
        for line in epochs
        if "mined" in line["mining"] and "mined" in line.get("agreement", {})
    ]
    steps = [line for line in read_lines(run / "log.jsonl") if line["kind"] == "step"]
    return {
        "recall": evaluation["recall"], "probe": evaluation["probe"], "mining": mined, "pmr_by_epoch": curve,
        "watched": watched,
        "trained_steps": len(steps), "seconds": sum(line["seconds"] for line in steps),
        "right": _right(run),
    }  # fmt: skip


def _right(run: Path) -> dict[str, str]:
    """Returns {view: a digit for each test video}, 1 where its nearest training video has its class, - without view."""
    settings = json.loads((run / "eval.json").read_text())["protocol"]
    protocol = Protocol(**{**settings, "ks": tuple(settings["ks"])})
    return {
        view: "".join("-" if value.isnan() else str(int(value)) for value in of_videos)
        for view, of_videos in right_by_video(run, protocol).items()
    }


def _of_other_sittings(base: Budget, out: Path) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Returns the results and the diagnoses that protocol.json holds, perhaps of runs that were trained elsewhere."""
    file = out / "protocol.json"
    if not file.is_file():
        return {}, {}
    before = json.loads(file.read_text())
    if before["budget"] != described(base):
        raise TrainError(f"out: {file} has runs of another budget; give another --out")
    return before["results"], before["diagnosis"]


def sources_of_test_videos(base: Budget) -> list[int]:
    """Returns the source of each test video, in the order of the digits of `right`."""
    manifest, clips = Manifest.load(base.config.data), base.config.clips
    protocol = Protocol(clips.frames, clips.crop, base.clips_per_video)
    return [manifest.videos[i].group for i in measured_videos(manifest, "test", protocol)]


def run_protocol(base: Budget, out: Path, seeds: Sequence[int], methods: Sequence[str]) -> dict[str, Any]:
    """Trains all runs, one after the other; returns what protocol.json holds."""
    results, queues = _of_other_sittings(base, out)
    results = {name: {} for name in (WARM_UP, *methods)} | results
    for seed in seeds:
        warm_up = warm_up_config(base.config, out, seed)
        train(warm_up, base.clips_per_video)
        results[WARM_UP][str(seed)] = figures_of(warm_up.out)
        queues[str(seed)] = diagnosis(warm_up.out, base.config)
        for method in methods:
            config = method_config(base, out, seed, method)
            print(
                f"seed {seed}, {method}: {total_steps(make_plan(config), 1)} epochs and filling steps",
                flush=True,
            )
            train(config, base.clips_per_video)
            results[method][str(seed)] = figures_of(config.out)
            write_document(base, out, results, queues)
    return write_document(base, out, results, queues)


def described(base: Budget) -> dict[str, Any]:
    """Returns what protocol.md says of a budget."""
    config = base.config
    told = {
        "views": list(config.views), "warm-up epochs": config.infonce_epochs, "epochs a view":
        config.cycles * config.cycle_epochs, "queue": config.queue, "frames": config.clips.frames,
        "pixels": config.clips.crop, "width": config.width, "batch": config.clips.batch, "top-k":
        config.mining.topk, "ratio": config.mining.ratio, "test clips a video": base.clips_per_video,
    }  # fmt: skip
    if config.amp != "off":
        told["convolutions"] = config.amp
    if config.cycle_views:
        told["views trained in cycles"] = list(config.cycle_views)
    if config.mining.drop_own_positive or base.cycle_min_area is not None:
        told["own positive dropped"] = config.mining.drop_own_positive
    if base.cycle_min_area is not None:
        told["rate in cycles"] = config.optim.cycle_lr
        told["least crop"] = config.augment.min_area
        told["least crop in cycles"] = base.cycle_min_area
    return told


def write_document(
    base: Budget, out: Path, results: dict[str, dict[str, Any]], queues: dict[str, Any]
) -> dict[str, Any]:
    """Writes protocol.json, protocol.md and the curves of what is finished so far; `queues`: each seed's diagnosis."""
    names = [name for name in (WARM_UP, *METHODS) if name in results]
    results = {name: dict(sorted(results[name].items(), key=lambda of: int(of[0]))) for name in names} | {
        name: of_seed for name, of_seed in results.items() if name not in names
    }
    document = {
        "budget": described(base), "torch": torch.__version__, "seeds": sorted(map(int, queues)),
        "results": results, "diagnosis": queues, "sources": sources_of_test_videos(base),
    }  # fmt: skip
    write_text(out / "protocol.json", json.dumps(document, indent=1) + "\n")
    write_text(out / "protocol.md", markdown(document))
    lines = {}
    for method, of_seed in results.items():
        curves = [found["pmr_by_epoch"] for found in of_seed.values() if found["pmr_by_epoch"]]
        if curves:
            shortest = min(map(len, curves))
            lines[method] = [(i + 1.0, mean(curve[i] for curve in curves)) for i in range(shortest)]
    if lines:
        save_curves(out / "curves.svg", Panel("PMR in %, mean over seeds", lines))
    return document


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns 0 done, 2 a setting that cannot work, 130 stopped."""
    parser = argparse.ArgumentParser(prog="python -m bench protocol", description=(__doc__ or "").strip())
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--data", type=Path, required=True, help="a prepared data set")
    parser.add_argument("--out", type=Path, required=True, help="folder of all runs and results")
    parser.add_argument("--preset", choices=PRESETS, default="cpu")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=USUAL)
    parser.add_argument("--infonce-epochs", type=int, help="of the warm-up; the preset's by default")
    parser.add_argument("--cycle-epochs", type=int, help="for each view; the preset's by default")
    parser.add_argument("--queue", type=int, help="entries; keep it well below the number of training videos")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--workers", type=int, default=-1)
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--amp", choices=("off", "bf16"), help="the preset's by default; bf16 is a budget of its own"
    )
    parser.add_argument(
        "--drop-own-positive",
        type=float,
        help="chance in 0..1, where other positives exist; the preset's by default",
    )
    args = parser.parse_args(argv)
    return run_study("protocol", lambda: _work(args))


def run_study(name: str, work: Callable[[], str]) -> int:
    """Prints the tables that `work` returns; returns 0 done, 2 a setting that cannot work, 130 stopped."""
    try:
        tables = work()
    except Interrupted as stopped:
        print(f"{stopped} (or the same `python -m bench {name}` command)", file=sys.stderr)
        return 130
    except (TrainError, OSError) as error:
        print(f"bench {name}: {error}", file=sys.stderr)
        return 2
    print(tables)
    return 0


def _work(args: argparse.Namespace) -> str:
    """Trains all runs, writes their report and returns the tables."""
    base = _changed(budget(args.preset, args.data, args.out, args.device), args)
    document = run_protocol(base, args.out, args.seeds, args.methods)
    folders = [args.out / f"seed{args.seeds[0]}" / name for name in (WARM_UP, *args.methods)]
    write_report(
        folders, args.out / "report.html", title="One budget, every method",
        says=[f"Seed {args.seeds[0]} of {len(args.seeds)}; protocol.md has the tables of all."],
    )  # fmt: skip
    return markdown(document)


def _changed(base: Budget, args: argparse.Namespace) -> Budget:
    config = base.config
    clips = replace(config.clips, batch=args.batch or config.clips.batch, workers=args.workers)
    names = ("infonce_epochs", "cycle_epochs", "queue", "amp")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    config = replace(config, clips=clips, **given)
    if args.drop_own_positive is not None:
        config = replace(config, mining=replace(config.mining, drop_own_positive=args.drop_own_positive))
    config.check()
    return replace(base, config=config)
