"""Runs one command of the harness: the table of commands, and what each answers."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

COMMANDS = {  # name: (the module with its `main(argv)`, what it does)
    "measure": (
        "bench.ops.measure",
        "Measures every op against its peers, answers checked first (the default).",
    ),
    "cascade": ("bench.ops.measure", "Measures mining only."),
    "loss": ("bench.ops.measure", "Measures the MIL-NCE loss only, forward and backward."),
    "enqueue": ("bench.ops.measure", "Measures writing a batch into the queue only."),
    "train_step": ("bench.ops.measure", "Measures the training step without encoders only."),
    "step": (
        "bench.studies.step",
        "Measures a whole training step of S3D part by part, beside one with the published forms.",
    ),
    "between": (
        "bench.ops.between",
        "Measures mining between torch's own products: cold caches, threads that sleep or spin.",
    ),
    "miner": ("bench.ops.miner", "Measures the whole step of a tuned miner against the paper's cascade."),
    "readme": (
        "bench.tables.readme",
        "Rewrites the tables of README.md and docs/benchmarks.md from the kept results.",
    ),
    "scale": ("bench.scale.run", "Measures queues of 1e5 entries and more: exact, in shares and by FAISS."),
    "prepare": (
        "bench.data.speed",
        "Measures where preparing videos spends its time: decoding, flow at every effort, JPEGs.",
    ),
    "startup": (
        "bench.data.startup",
        "Measures how long a data set of 240,000 videos takes to be listed, prepared again and opened.",
    ),
    "sharded": ("bench.sharded.model_tables", "Prints a cost model of a queue shared by many ranks."),
    "demo": (
        "bench.studies.demo",
        "Repeats the demo with several seeds, with and without mining, and compares.",
    ),
    "protocol": ("bench.studies.protocol", "Trains every mining method under one budget and compares them."),
    "modalities": ("bench.studies.modalities", "Trains with one, two and three modalities, and CPR on IIC."),
    "tuning": (
        "bench.plans.tuning",
        "Compares the plan tuned without labels with fixed schedules, on tables with labels.",
    ),
    "heads": (
        "bench.studies.heads",
        "Trains heads over tables of embeddings with every way of mining, and compares them in pairs.",
    ),
    "coverage": (
        "bench.plans.coverage",
        "Keeps the surest of the mined pairs, by signs without labels: PMR against coverage.",
    ),
    "weights": (
        "bench.plans.weights",
        "Weighs the views of tuned plans by their agreement, and compares PMR with equal weights.",
    ),
    "drawn": (
        "bench.plans.drawn",
        "Tunes on drawn tables that are hard to choose for: noise, near copies, shared nuisance.",
    ),
    "drift": (
        "bench.plans.drift",
        "Mines by one plan in a queue whose keys drift, refitted at several intervals.",
    ),
    "pictures": ("bench.studies.pictures", "Makes the pictures of README.md and docs/ from a demo's pages."),
    "screenshots": (
        "bench.tables.screenshots",
        "Takes pictures of a report or an explorer in Chromium: its main states, on desk, phone, dark and paper.",
    ),
    "gpu-tune": ("bench.studies.gpu_tune", "Times the CUDA planner's alternatives on a GPU."),
}


def usage() -> str:
    """Returns what ``python -m bench --help`` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {sentence}" for name, (_, sentence) in COMMANDS.items()]
    return "\n".join([
        "usage: python -m bench [COMMAND] ...", "", "The benchmarks of cpr_kernels.", "", *lines, "",
        "`python -m bench COMMAND --help` lists the options of one; options without a command are those of `measure`.",
    ])  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; the exit status is 1 after a wrong answer, 2 after a wrong argument."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] in (["-h"], ["--help"], ["help"]):
        print(usage())
        return 0
    name = "measure" if not words or words[0].startswith("-") else words.pop(0)
    if name not in COMMANDS:
        print(f"bench: no command {name!r}; expected one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    module, _ = COMMANDS[name]
    try:
        if module == "bench.ops.measure" and name != "measure":
            if any(word.partition("=")[0] == "--op" for word in words):
                raise ValueError(f"--op: `{name}` names the op already; leave --op out, or use `measure`")
            words += ["--op", name]
        return int(importlib.import_module(module).main(words))
    except ValueError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
