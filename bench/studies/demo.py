"""Repeats the demo with several seeds and ways of mining: is the cascade better than no positives, and by how much?

    python -m bench demo --out FOLDER [--seeds 0 1 2 3 4]

Each seed draws its own clips and trains one InfoNCE warm-up; every method starts from it and trains as long. Every run
is resumable: stopped or killed, the same command continues it. FOLDER gets seed<n>/, demo.json and demo.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from cpr_kernels.train.data.prepare import prepare
from cpr_kernels.train.data.synthetic import SyntheticSettings, generate
from cpr_kernels.train.demo import CLIPS, FRAMES, Demo, demo_config
from cpr_kernels.train.pretrain.run_folder import encoder_files

from ..harness.text import markdown as table
from ..tables.readme import write_text
from .protocol import WARM_UP, figures_of, run_study, train

METHODS: dict[str, dict[str, Any]] = {
    "infonce": {"method": "infonce"},
    "one view": {"method": "coclr"},
    "cascade": {},
}
VIEWS = ("rgb", "flow", "both")
COMPARED = (("cascade", "infonce"), ("cascade", "one view"))
STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}

Results = Mapping[str, Mapping[str, Any]]  # {method: {seed: what `figures_of` returns}}


def run_seed(out: Path, seed: int, demo: Demo, clips: SyntheticSettings) -> dict[str, Any]:
    """Draws a seed's clips, trains the warm-up and every method from it; returns {method: figures}."""
    folder = out / f"seed{seed}"
    generate(folder / "videos", clips)
    prepared = prepare(folder / "videos", folder / "data", FRAMES)
    config = demo_config(replace(demo, out=folder, seed=seed), prepared.manifest)
    train(replace(config, out=folder / WARM_UP, cycles=0, cycle_epochs=0), CLIPS)
    start = encoder_files(folder / WARM_UP)[-1][1]
    figures = {WARM_UP: figures_of(folder / WARM_UP)}
    for name, mining in METHODS.items():
        run = folder / name.replace(" ", "-")
        mined = replace(config.mining, **mining)
        train(replace(config, out=run, infonce_epochs=0, init=start, mining=mined), CLIPS)
        figures[name] = figures_of(run)
    return figures


def student(degrees: int) -> float:
    """Returns the two-sided 95 % quantile of Student's t; from 10 degrees of freedom on to within 1 %."""
    return STUDENT.get(degrees, 1.96 + 2.5 / degrees)


def paired(results: Results, better: str, worse: str, *views: str) -> tuple[float, float, float]:
    """Returns the mean over seeds of the difference of R@1, of several views their mean, its standard error, and half
    its 95 % interval (t).
    """

    def recall(method: str, seed: str) -> float:
        return mean(results[method][seed]["recall"][view]["1"] for view in views)

    differences = [recall(better, seed) - recall(worse, seed) for seed in results[better]]
    if len(differences) < 2:
        return mean(differences), float("nan"), float("nan")
    error = stdev(differences) / len(differences) ** 0.5
    return mean(differences), error, student(len(differences) - 1) * error


def markdown(document: Mapping[str, Any]) -> str:
    """Returns the tables: R@1 and PMR by method, and paired differences of R@1."""
    results: Results = document["results"]
    rows = []
    for name, seeds in results.items():
        recall = [f"{100 * mean(run['recall'][view]['1'] for run in seeds.values()):.1f}" for view in VIEWS]
        mined = [
            [
                run["mining"][view]["mined"]["pmr"]
                for run in seeds.values()
                if "mined" in run["mining"].get(view, {})
            ]
            for view in ("rgb", "flow")
        ]
        rows.append([name, *recall, *(f"{100 * mean(pmr):.1f}" if pmr else "" for pmr in mined)])
    columns = ["R@1, %", *VIEWS, "PMR, RGB trained", "PMR, flow trained"]
    differences = []
    for better, worse in COMPARED:
        cells = []
        for views in (*((view,) for view in VIEWS), VIEWS):
            gain, error, half = (100 * value for value in paired(results, better, worse, *views))
            cells.append(f"{gain:+.1f} ± {half:.1f} (se {error:.1f})")
        differences.append([f"{better} - {worse}", *cells])
    count = len(document["seeds"])
    return (
        f"{count} seeds, each with its own clips; mean over seeds.\n\n{table(columns, rows)}\n\n"
        f"Paired differences of R@1 in points: mean ± half the 95 % interval (standard error), over {count} seeds.\n\n"
        f"{table(['difference', *VIEWS, 'mean of the three'], differences)}\n"
    )


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns 0 done, 2 a setting that cannot work, 130 stopped."""
    parser = argparse.ArgumentParser(prog="python -m bench demo", description=(__doc__ or "").strip())
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, required=True, help="folder of all runs and results")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    args = parser.parse_args(argv)
    return run_study("demo", lambda: _work(args.out, args.seeds, Demo(), SyntheticSettings()))


def _work(out: Path, seeds: Sequence[int], demo: Demo, clips: SyntheticSettings) -> str:
    results: dict[str, dict[str, Any]] = {}
    text = ""
    for seed in seeds:
        for name, figures in run_seed(out, seed, demo, replace(clips, seed=seed)).items():
            results.setdefault(name, {})[str(seed)] = figures
        document = {
            "infonce epochs": demo.infonce_epochs, "epochs a view": demo.cycle_epochs, "torch": torch.__version__,
            "seeds": list(map(int, results[WARM_UP])), "results": results,
        }  # fmt: skip
        text = markdown(document)
        write_text(out / "demo.json", json.dumps(document, indent=1) + "\n")
        write_text(out / "demo.md", text)
    return text
