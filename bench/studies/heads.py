"""Compares the papers' ways of mining where many runs can be afforded: heads over tables of real embeddings.

    python -m bench heads FOLDER --out OUT [--head residual] [--study factors] [--seeds 0 1 2 3 4]

FOLDER holds .npz tables as for `bench tuning`; those of at least 1,000 rows and 10 classes take part. Each seed draws
which groups (or rows) are trained on and which are the test, trains a common InfoNCE warm-up by `cpr adapt`'s trainer,
and every method continues from it with the same batches and the same noise, so that differences are paired. OUT keeps
a file a table and seed: stopped, the same command continues. It gets NAME.json, NAME.md and NAME.svg; given a NAME.json
in place of FOLDER, the command draws its NAME.svg anew. `--study factors` compares no ways of mining: it changes
settings of the 7-stage cascade, one at a time.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from cpr_kernels.networks.heads import HeadKind, new_heads
from cpr_kernels.train.adapt import AdaptConfig, Heads, HeadTrainer, Table
from cpr_kernels.train.adapt.measure import hits, recall
from cpr_kernels.train.runtime.files import write_atomically

from ..harness.machine import commit, cpu_model, versions
from ..plans.tuning import Table as Labelled
from ..plans.tuning import read
from ..tables.readme import write_text
from .heads_plot import draw
from .heads_tables import has_claims, markdown

LEAST_ROWS, LEAST_CLASSES = 1_000, 10
TRAIN_SHARE = 4 / 7  # of the groups: 4 of UCF101's 7
QUEUE, QUEUE_SHARE = 1024, 0.6  # entries, and of the rows to train on at most
RAW, INFONCE = "raw", "infonce"
METHODS: dict[str, dict[str, Any]] = {
    INFONCE: {"method": "infonce"},
    "coclr": {"method": "coclr"},
    "cpr-3": {"method": "cpr3"},
    "cpr-5": {"method": "cpr5"},
    "cpr-7": {"method": "cpr7"},
    "cpr-7, r 0.8": {"method": "cpr7", "ratio": 0.8},
    "cpr-7, progressive": {"method": "cpr7", "progressive": True},
    "joint": {"method": "joint"},
    "tuned": {"method": "auto"},
    "ubernce": {"method": "ubernce"},
}
CPR_7 = {"method": "cpr7"}
FACTORS: dict[str, dict[str, Any]] = {  # the 7-stage cascade, and one setting changed at a time
    INFONCE: {"method": "infonce"},
    "cpr-7": CPR_7,
    "cpr-7, online queries": {**CPR_7, "query": "online"},
    "cpr-7, own positive dropped 0.9": {**CPR_7, "drop_own_positive": 0.9},
    "cpr-7, both of these": {**CPR_7, "query": "online", "drop_own_positive": 0.9},
    "cpr-7, top 1": {**CPR_7, "topk": 1},
    "cpr-7, top 10": {**CPR_7, "topk": 10},
    "cpr-7, temperature 0.2": {**CPR_7, "temperature": 0.2},
    "infonce, temperature 0.2": {"method": "infonce", "temperature": 0.2},
    "cpr-7, rate x 3": {**CPR_7, "rate": 3.0},
    "infonce, rate x 3": {"method": "infonce", "rate": 3.0},
    "cpr-7, momentum 0.9": {**CPR_7, "momentum": 0.9},
}
STUDIES = {"methods": METHODS, "factors": FACTORS}
SETTINGS: dict[HeadKind, AdaptConfig] = {
    "projection": AdaptConfig(head="projection", lr=1e-3, dropout=0.2),
    "residual": AdaptConfig(),
}

Document = dict[str, Any]


def split(table: Labelled, seed: int) -> tuple[Table, Table]:
    """Returns the rows to train on and those of the test: whole groups, or single rows where there are no groups."""
    groups = torch.arange(len(table.labels)) if table.groups is None else table.groups
    names = groups.unique()
    drawn = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed))
    trained = torch.isin(groups, names[drawn[: round(TRAIN_SHARE * len(names))]])
    whole = Table(table.views, table.ids, table.labels)
    return whole[trained], whole[~trained]


def queue_of(rows: int) -> int:
    """Returns the size of the queue for so many rows to train on."""
    return min(QUEUE, 1 << (int(QUEUE_SHARE * rows).bit_length() - 1))


def tested(heads: Heads, train: Table, test: Table) -> dict[str, Any]:
    """Returns R@k by view, and how many rows of each test source have their nearest training row of their class."""
    assert train.labels is not None and test.labels is not None
    found = hits(heads.embeddings(test.views), heads.embeddings(train.views), test.labels, train.labels)
    _, places = test.sources.unique(return_inverse=True)
    of_source = {view: _sums(right[:, 0], places) for view, right in found.items()}
    return {"recall": recall(found), "hits": of_source}


def _sums(right: Tensor, places: Tensor) -> list[int]:
    return torch.zeros(int(places.max()) + 1, dtype=torch.int64).index_add_(0, places, right.long()).tolist()


def changed(base: AdaptConfig, changes: Mapping[str, Any]) -> AdaptConfig:
    """Returns the settings with changes to fields, and `rate`, which multiplies the learning rate."""
    fields = {name: value for name, value in changes.items() if name != "rate"}
    return replace(base, lr=base.lr * changes.get("rate", 1.0), **fields)


def run_seed(
    table: Labelled, config: AdaptConfig, methods: Mapping[str, Mapping[str, Any]], known: Mapping[str, Any]
) -> Document:
    """Returns a seed's results by methods {name: settings}; those of the methods in `known` are taken from there."""
    train, test = split(table, config.seed)
    base = replace(config, method="infonce", queue=queue_of(len(train)))
    names, counts = test.sources.unique(return_counts=True)
    found: Document = {
        "rows": [len(train), len(test)], "sources": names.tolist(), "counts": counts.tolist(), "queue": base.queue,
        "methods": dict(known),
    }  # fmt: skip
    if RAW not in found["methods"]:
        identity = new_heads("residual", train.means(), 1, 1, 0)
        found["methods"][RAW] = tested(identity, train, test)
    if not set(methods) - set(found["methods"]):
        return found
    warm = HeadTrainer(train, base)
    for _ in range(base.warm_up):
        warm.run_epoch()
    for method, changes in methods.items():
        if method not in found["methods"]:
            trainer = HeadTrainer(train, changed(base, changes))
            trainer.load_state_dict(warm.state_dict())
            epochs = [trainer.run_epoch() for _ in range(base.epochs)]
            mined = [epoch.pmr for epoch in epochs if epoch.pmr is not None]
            plan = None if trainer.plan is None else trainer.plan.describe()
            found["methods"][method] = {
                **tested(trainer.heads, train, test), "pmr": mean(mined) if mined else None, "plan": plan,
            }  # fmt: skip
    return found


def takes_part(table: Labelled) -> bool:
    """Returns whether a table is large enough."""
    return len(table.labels) >= LEAST_ROWS and len(table.labels.unique()) >= LEAST_CLASSES


def run(
    paths: Sequence[Path],
    config: AdaptConfig,
    seeds: Sequence[int],
    out: Path,
    name: str,
    study: str = "methods",
) -> None:
    """Runs tables and seeds, one after the other, and publishes all that OUT holds after each table.

    study: which of `STUDIES`.

    Raises:
        ValueError: no table that is large enough, or results of other settings.
    """
    settings = {k: v for k, v in asdict(config).items() if k not in ("method", "seed", "queue")}
    made = {"settings": settings, "commit": commit(), "cpu": cpu_model(), "versions": versions()}
    for path in paths:
        table = read(path)
        if not takes_part(table):
            print(
                f"{path.stem}: left out, fewer than {LEAST_ROWS:,} rows or {LEAST_CLASSES} classes",
                flush=True,
            )
            continue
        for seed in seeds:
            kept = out / name / table.name / f"seed{seed}.json"
            known: Document = json.loads(kept.read_text()) if kept.is_file() else made
            if known["settings"] != settings:
                raise ValueError(f"--out: {kept} was made with other settings; give another --out or --name")
            body = run_seed(table, replace(config, seed=seed), STUDIES[study], known.get("methods", {}))
            write_atomically(kept, json.dumps({**made, **known, **body}).encode())
            print(f"{table.name}, seed {seed}: {_line(body)}", flush=True)
        publish(collected(out / name), out, name)
    if not any((out / name).glob("*/seed*.json")):
        raise ValueError(f"no table of {LEAST_ROWS:,} rows and {LEAST_CLASSES} classes among {len(paths)}")


def collected(folder: Path) -> Document:
    """Returns what NAME.json holds: every table and seed in a folder, and what they were made with."""
    tables: Document = {}
    document: Document = {"commits": [], "tables": tables}
    for path in sorted(folder.glob("*/seed*.json")):
        body = json.loads(path.read_text())
        document.update({key: body.pop(key) for key in ("settings", "cpu", "versions")})
        document["commits"] = sorted({*document["commits"], body.pop("commit")})
        tables.setdefault(path.parent.name, {})[path.stem.removeprefix("seed")] = body
    return document


def publish(document: Document, out: Path, name: str) -> None:
    """Writes the result as JSON (without the hits of every source) and Markdown, and of the papers' methods a plot."""
    short = json.loads(json.dumps(document))
    for seeds in short["tables"].values():
        for body in seeds.values():
            del body["sources"], body["counts"]
            for found in body["methods"].values():
                del found["hits"]
    write_text(out / f"{name}.json", json.dumps(short, indent=1) + "\n")
    write_text(out / f"{name}.md", markdown(document, name))
    if has_claims(document):
        draw(short, out / f"{name}.svg")


def _line(body: Document) -> str:
    return ", ".join(
        f"{method} {100 * list(found['recall'].values())[-1][1]:.1f}"
        for method, found in body["methods"].items()
    )


def main(argv: Sequence[str]) -> int:
    """Runs the arena on the tables of a folder.

    Raises:
        ValueError: no table that is large enough, or results of other settings.
    """
    parser = argparse.ArgumentParser(
        prog="python -m bench heads",
        description="Train heads over tables of embeddings with every way of mining, and compare them in pairs.",
    )
    parser.add_argument(
        "folder",
        type=Path,
        help="folder of .npz tables with views, label and perhaps group; or a NAME.json to draw",
    )
    parser.add_argument("--out", type=Path, default=None, help="folder of the results")
    parser.add_argument("--head", choices=list(SETTINGS), default="projection", help="what is trained")
    parser.add_argument(
        "--study", choices=list(STUDIES), default="methods", help="ways of mining, or settings of one of them"
    )
    parser.add_argument(
        "--name", default=None, help="what the results are called (default: as the head; factors: factors)"
    )
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=list(range(5)), help="of splits, heads and noise"
    )
    parser.add_argument("--tables", nargs="+", default=None, metavar="NAME", help="only these tables")
    parser.add_argument("--epochs", type=int, nargs=2, metavar=("WARM_UP", "METHOD"), help="default: 6 25")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    if args.folder.suffix == ".json":
        draw(json.loads(args.folder.read_text()), args.folder.with_suffix(".svg"))
        print(args.folder.with_suffix(".svg"))
        return 0
    if args.out is None:
        raise ValueError("--out: give the folder of the results")
    torch.set_num_threads(args.threads)
    paths = [
        path for path in sorted(args.folder.glob("*.npz")) if args.tables is None or path.stem in args.tables
    ]
    if not paths:
        raise ValueError(f"{args.folder}: holds no such .npz table")
    config = SETTINGS[args.head]
    name = args.name or (args.head if args.study == "methods" else args.study)
    if args.epochs:
        config = replace(config, warm_up=args.epochs[0], epochs=args.epochs[1])
    run(paths, config, args.seeds, args.out, name, args.study)
    print((args.out / f"{name}.md").read_text())
    return 0
