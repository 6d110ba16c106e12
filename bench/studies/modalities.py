"""Measures the gain of each further modality, and CPR on IIC: every row under one budget, as one command each.

    python -m bench modalities modalities --videos LIST.csv --dataset ucf101 --with-sound --out FOLDER
    python -m bench modalities iic --videos LIST.csv --dataset ucf101 --out FOLDER
    python -m bench modalities modalities --videos LIST.csv --dataset utd_mhad_rgb --out FOLDER \\
        --rows rgb rgb+flow \\
        --warm-up-epochs 60 --cycle-epochs 10 --queue 32 --batch 8

LIST.csv has the columns path and label (or class), and optionally split, dataset and has_audio; a folder with one
folder a class will do too. Every step is resumable: stopped or killed, the same command continues it. FOLDER
gets data/, seed<n>/<row>/ (runs), result.json, result.md and report.html.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from cpr_kernels.train import TrainError
from cpr_kernels.train.data.decoding import FrameSettings
from cpr_kernels.train.data.manifest import Manifest
from cpr_kernels.train.data.prepare import prepare
from cpr_kernels.train.pages.report import last_epochs, write_report
from cpr_kernels.train.pretrain.config import Augment, Clips, Iic, Mining, Optim, TrainConfig
from cpr_kernels.train.pretrain.presets import iic
from cpr_kernels.train.pretrain.run_folder import encoder_files
from cpr_kernels.train.runtime.run_log import read_lines
from cpr_kernels.train.views.names import name_of_all_views

from ..harness.text import markdown, percents
from ..tables.readme import write_text
from .protocol import WARM_UP, run_study, train

THREE = ("rgb", "flow", "audio")
ORACLE = Mining(method="coclr", siblings="ignore", infonce_siblings="ignore")
MODALITIES: dict[str, dict[str, Any]] = {
    "rgb": {"views": ("rgb",), "mining": ORACLE},
    "rgb+flow": {"views": ("rgb", "flow"), "mining": ORACLE},
    "rgb+flow+audio": {"views": THREE, "mining": ORACLE},
    "audio, then the frozen together": {
        "views": THREE, "mining": replace(ORACLE, method="custom", schedule="audio:0.5,frozen:1"),
    },
    "cascade, frozen and trained in turn": {
        "views": THREE, "mining": replace(ORACLE, method="cpr", stages=3),
    },
}  # fmt: skip
BANK = Mining(method="cpr", stages=3, siblings="negative")
ON_IIC: dict[str, dict[str, Any]] = {
    "IIC": {"mining": replace(BANK, method="infonce")},
    "IIC + CPR, top 5": {"mining": BANK},
    "IIC + CPR, top 1 to 5": {"mining": replace(BANK, progressive=True)},
}
EXPERIMENTS = {"modalities": MODALITIES, "iic": ON_IIC}
FRAMES = {
    "tiny": FrameSettings(size=32, frames=40, min_frames=9, flow="draft", flow_bound=8.0),
    "cpu": FrameSettings(size=64, frames=65, min_frames=17, flow="draft", flow_bound=8.0),
    "gpu": FrameSettings(size=128, flow="fast"),
}


@dataclass(frozen=True)
class Budget:
    """What rows share: settings, the epochs of the warm-up that a seed's rows start from, and test clips of a video."""

    config: TrainConfig
    warm_up: int
    test_clips: int


def budget(experiment: str, scale: str, data: Path, out: Path) -> Budget:
    """Returns the budget of a scale. tiny: minutes, shows that all runs. cpu: hours on two cores. gpu: the
    papers' clips and networks.

    Each view is trained for as many epochs in every row. Rows of modalities take clips of a pair from different parts
    of the video. IIC starts from scratch as published where there are epochs for it; on a CPU from InfoNCE, since
    intra-negatives keep its loss at chance for the few epochs there are.
    """
    size = {
        "tiny": {"width": 0.05, "clips": Clips(frames=8, crop=32, batch=4, workers=0, apart=True)},
        "cpu": {"width": 0.25, "clips": Clips(frames=8, crop=64, batch=32, apart=True)},
        "gpu": {"clips": Clips(frames=32, crop=112, batch=64, apart=True, cache_mb=4096), "amp": "bf16"},
    }[scale]
    test_clips = {"tiny": 1, "cpu": 4, "gpu": 5}[scale]
    if experiment == "iic":
        settings = {**iic(), **size}
        warm_up, queue, epochs, cycle, negatives = {
            "tiny": (1, 8, 1, 1, 8), "cpu": (20, 384, 3, 1, 256), "gpu": (0, 2048, 120, 24, 1024),
        }[scale]  # fmt: skip
        batch = 16 if scale == "cpu" else settings["clips"].batch
        settings["clips"] = replace(
            settings["clips"], frames=16 if scale == "gpu" else 8, batch=batch, apart=False
        )
        settings.update(infonce_epochs=epochs, cycles=5, cycle_epochs=cycle, iic=Iic(negatives=negatives))
        settings["queue"] = queue  # the warm-up's: IIC's bank is as long as its data
        if scale == "cpu":
            settings["optim"] = replace(settings["optim"], lr=0.003, steps=(0.8,))
    else:
        warm_up, cycle, queue = {"tiny": (1, 1, 8), "cpu": (30, 5, 256), "gpu": (100, 25, 256)}[scale]
        settings = {
            **size, "infonce_epochs": 0, "cycles": 2, "cycle_epochs": cycle, "queue": queue,
            "optim": Optim(momentum=0.99, cycle_lr=2e-4, warmup=10),
        }  # fmt: skip
    settings["mining"] = Mining(topk=2 if scale == "tiny" else 5)
    return Budget(TrainConfig(data=data, out=out, **settings), warm_up, test_clips)


def listed(videos: Path, out: Path, dataset: str | None, with_sound: bool) -> Path:
    """Returns the list to prepare: `videos` itself, or its rows of one data set, of classes most of whose
    videos have sound.
    """
    if not (dataset or with_sound):
        return videos
    if not videos.is_file():
        raise TrainError(f"videos: --dataset and --with-sound need a CSV list, and {videos} is none")
    with videos.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if not dataset or row.get("dataset") == dataset]
    label = "label" if rows and "label" in rows[0] else "class"
    if with_sound:
        sounds: dict[str, list[bool]] = defaultdict(list)
        for row in rows:
            sounds[row[label]].append(row.get("has_audio") == "1")
        rows = [row for row in rows if mean(sounds[row[label]]) > 0.5]
    if not rows:
        raise TrainError(f"videos: {videos} has no row left (dataset {dataset}, with sound {with_sound})")
    out.mkdir(parents=True, exist_ok=True)
    lines = ["path,label,split"]
    lines += [
        f"{(videos.parent / row['path']).resolve()},{row[label]},{row.get('split', '')}" for row in rows
    ]
    write_text(out / "list.csv", "\n".join(lines) + "\n")
    return out / "list.csv"


def run(experiment: str, base: Budget, seeds: Sequence[int], rows: Sequence[str]) -> dict[str, Any]:
    """Trains all runs, one after the other; returns what result.json holds, which is written after each."""
    out = base.config.out
    results: dict[str, dict[str, Any]] = {row: {} for row in ([WARM_UP] if base.warm_up else [])}
    results |= {row: {} for row in rows}
    for seed in seeds:
        for row in results:
            config = (
                warm_up_config(base, experiment, seed, rows)
                if row == WARM_UP
                else row_config(base, experiment, seed, row)
            )
            print(f"seed {seed}, {row}", flush=True)
            train(config, base.test_clips)
            results[row][str(seed)] = figures_of(config.out, config.views)
            write_text(out / "result.json", json.dumps({"experiment": experiment, "rows": results}, indent=1))
            write_text(out / "result.md", tables(results))
    return results


def warm_up_config(base: Budget, experiment: str, seed: int, rows: Sequence[str]) -> TrainConfig:
    """Returns the config of InfoNCE of every view that a row has; of IIC's encoder, of its first view."""
    config = base.config
    if experiment == "iic":
        views = config.views[:1]
        config = replace(config, framework="moco", augment=Augment(), optim=Optim(momentum=0.99, warmup=10))
    else:
        views = max((MODALITIES[row]["views"] for row in rows), key=len)
    return replace(
        config, out=folder(config.out, seed, WARM_UP), seed=seed, views=views,
        mining=replace(ORACLE, topk=config.mining.topk), infonce_epochs=base.warm_up, cycles=0, cycle_epochs=0,
    )  # fmt: skip


def row_config(base: Budget, experiment: str, seed: int, row: str) -> TrainConfig:
    """Returns the config of a row's run, from its seed's warm-up, so that rows differ in what they mine only."""
    config, known = base.config, EXPERIMENTS[experiment][row]
    settings = {**known, "mining": replace(known["mining"], topk=config.mining.topk)}
    if base.warm_up:
        _, files = encoder_files(folder(config.out, seed, WARM_UP))[-1]
        views = settings.get("views", config.views[:1])  # IIC has one encoder for both views
        settings["init"] = {view: files[view] for view in views}
    return replace(config, out=folder(config.out, seed, row), seed=seed, **settings)


def folder(out: Path, seed: int, row: str) -> Path:
    """Returns the folder of a row's run."""
    name = "".join(c if c.isalnum() or c in "+-" else "_" for c in row.lower())
    return out / f"seed{seed}" / name


def figures_of(run_folder: Path, views: Sequence[str]) -> dict[str, Any]:
    """Returns retrieval and probe of the last encoders, and what was mined in the last epoch of every phase."""
    last = json.loads((run_folder / "eval.json").read_text())["phases"][-1]
    lines = read_lines(run_folder / "log.jsonl")
    epochs = last_epochs([line for line in lines if line["kind"] == "epoch"])
    missing: dict[str, float] = next((line["missing"] for line in lines if "missing" in line), {})
    together_name = name_of_all_views(tuple(views)) if len(views) > 1 else views[0]
    return {
        "recall": last["recall"], "probe": last["probe"], "together": together_name, "missing": missing,
        "mining": {line["phase"]: line["mining"] for line in epochs},
        "seconds": sum(line["seconds"] for line in lines if line["kind"] == "step"),
    }  # fmt: skip


def tables(results: dict[str, dict[str, Any]]) -> str:
    """Returns features and mining, a row each, in percent: the mean, and each seed's."""
    features, mined, lacking = [], [], []
    for row, of_seed in results.items():
        found = list(of_seed.values())
        for view in found[0]["recall"] if found else ():
            shares = [percents([one["recall"][view][k] for one in found]) for k in found[0]["recall"][view]]
            features.append([row, view, *shares, percents([one["probe"][view] for one in found])])
        for phase in found[0]["mining"] if found else ():
            ways = [one["mining"][phase] for one in found]
            own = [
                [way["mined"][figure] for way in ways if "mined" in way] for figure in ("pmr", "cmr_median")
            ]
            names = dict.fromkeys(name for way in ways for name in way if name != "mined")
            others = ", ".join(
                f"{name} {percents([way[name]['pmr'] for way in ways if name in way])}" for name in names
            )
            mined.append([row, phase, *map(percents, own), others])
        if found:
            lacking += [[row, view, percents([share])] for view, share in found[0]["missing"].items()]
    parts = [
        markdown(["row", "view", "R@1", "R@5", "R@10", "R@20", "probe"], features) if features else "",
        markdown(["row", "phase", "PMR", "median CMR", "PMR of other ways, same queue"], mined)
        if mined
        else "",
        markdown(["row", "view", "training videos without it, which score 0"], lacking) if lacking else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns 0 done, 2 a setting that cannot work, 130 stopped."""
    parser = argparse.ArgumentParser(prog="python -m bench modalities", description=(__doc__ or "").strip())
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("experiment", choices=list(EXPERIMENTS))
    parser.add_argument("--videos", type=Path, required=True, help="CSV list, or folder of class folders")
    parser.add_argument("--out", type=Path, required=True, help="folder of data, runs and results")
    parser.add_argument("--dataset", help="only rows of the list with this value in the column dataset")
    parser.add_argument(
        "--with-sound", action="store_true", help="only classes most of whose videos have sound"
    )
    parser.add_argument("--scale", choices=list(FRAMES), default="cpu")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--rows", nargs="+", help="some rows of the table only")
    parser.add_argument(
        "--warm-up-epochs",
        type=int,
        help="of the InfoNCE that a seed's rows start from; the scale's by default",
    )
    parser.add_argument("--infonce-epochs", type=int, help="of IIC before CPR; the scale's by default")
    parser.add_argument("--cycle-epochs", type=int, help="for each view and cycle; the scale's by default")
    parser.add_argument("--queue", type=int, help="entries; keep it well below the number of training videos")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args(argv)
    return run_study("modalities", lambda: _work(args))


def _changed(base: Budget, args: argparse.Namespace) -> Budget:
    """Returns the scale's budget with what the command line says otherwise."""
    config = base.config
    given = {"infonce_epochs": args.infonce_epochs, "cycle_epochs": args.cycle_epochs, "queue": args.queue}
    config = replace(
        config, device=args.device, clips=replace(config.clips, batch=args.batch or config.clips.batch),
        **{name: value for name, value in given.items() if value is not None},
    )  # fmt: skip
    return replace(
        base, config=config, warm_up=base.warm_up if args.warm_up_epochs is None else args.warm_up_epochs
    )


def _work(args: argparse.Namespace) -> str:
    """Prepares the data where there is none yet, trains all runs, writes their report and returns the tables."""
    known = EXPERIMENTS[args.experiment]
    rows = args.rows or list(known)
    if unknown := [row for row in rows if row not in known]:
        raise TrainError(f"rows: no row {unknown[0]!r}; expected some of {', '.join(known)}")
    data = args.out / "data"
    if not (data / "manifest.json").is_file():
        prepare(listed(args.videos, args.out, args.dataset, args.with_sound), data, FRAMES[args.scale])
    manifest = Manifest.load(data)
    print(f"{len(manifest.videos)} videos of {len(manifest.classes)} classes", flush=True)
    base = _changed(budget(args.experiment, args.scale, data, args.out), args)
    results = run(args.experiment, base, args.seeds, rows)
    write_report(
        [folder(args.out, args.seeds[0], row) for row in rows],
        args.out / "report.html",
        title="Gain of each modality" if args.experiment == "modalities" else "CPR on IIC",
        says=[f"Seed {args.seeds[0]} of {len(args.seeds)}; result.md has the tables of all."],
    )
    return tables(results)
