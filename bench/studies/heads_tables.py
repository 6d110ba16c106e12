"""Tables of `bench heads`: R@1 by method, paired differences with intervals, and which of the papers' claims hold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import mean
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cpr_kernels.train.adapt.measure import ALL

from ..harness.text import markdown as table

RESAMPLES = 2000
MINED = (
    "coclr",
    "cpr-3",
    "cpr-5",
    "cpr-7",
    "cpr-7, r 0.8",
    "joint",
    "tuned",
)  # all mine `topk` from the first epoch on
CLAIMS = (  # (what is said, better, worse)
    ("one-view mining is better than InfoNCE", "coclr", "infonce"),
    ("3 stages are better than one view", "cpr-3", "coclr"),
    ("7 stages are better than 3", "cpr-7", "cpr-3"),
    ("7 stages are better than one view", "cpr-7", "coclr"),
    ("ratio 0.5 is better than 0.8", "cpr-7", "cpr-7, r 0.8"),
    ("growing positives are better than 5 throughout", "cpr-7, progressive", "cpr-7"),
    ("the joint score is better than the cascade", "joint", "cpr-7"),
    ("the tuned plan is better than the cascade", "tuned", "cpr-7"),
    ("the tuned plan is better than the joint score", "tuned", "joint"),
    ("labels are better than the tuned plan", "ubernce", "tuned"),
    ("the tuned plan is better than the raw embeddings", "tuned", "raw"),
)

Seeds = Mapping[str, Mapping[str, Any]]  # {seed: what `run_seed` returns}


class Interval(NamedTuple):
    """Holds a paired difference of R@1, its 95 % interval, and in which share of resamples it is above 0."""

    mean: float
    low: float
    high: float
    above: float

    def __str__(self) -> str:
        return f"{100 * self.mean:+.1f} [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"


class Resampled:
    """Resamples seeds and sources together (Owen 2007, the pigeonhole bootstrap): both are drawn with replacement.

    A test source is in the tests of several seeds, so that resampling seeds by themselves would take repeated
    looks at one source for independent ones. The interval of a difference counts both.

    Args:
        seeds: of one table.
        seed: of the resamples.
    """

    def __init__(self, seeds: Seeds, seed: int = 0) -> None:
        self.seeds = seeds
        names = torch.cat([torch.tensor(body["sources"]) for body in seeds.values()]).unique()
        self.places = {
            key: torch.searchsorted(names, torch.tensor(body["sources"])) for key, body in seeds.items()
        }
        self.names = len(names)
        generator = torch.Generator().manual_seed(seed)
        self.of_seeds = self._weights(len(seeds), generator)
        self.of_sources = self._weights(self.names, generator)
        self._rows = self._weighed(self._spread({key: body["counts"] for key, body in seeds.items()}))
        self._found: dict[tuple[str, str], Tensor] = {}

    def _weights(self, count: int, generator: torch.Generator) -> Tensor:
        """Returns how often each of `count` things is drawn, [R + 1, count]; the first row is each once."""
        drawn = torch.randint(count, (RESAMPLES, count), generator=generator)
        weights = torch.zeros(RESAMPLES, count, dtype=torch.float64)
        weights.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
        return torch.cat([torch.ones(1, count, dtype=torch.float64), weights])

    def _spread(self, of_seed: Mapping[str, Any]) -> Tensor:
        """Returns one number a test source as [seeds, sources], 0 where a source is not in a seed's test."""
        rows = torch.zeros(len(self.seeds), self.names, dtype=torch.float64)
        for i, (key, values) in enumerate(of_seed.items()):
            rows[i, self.places[key]] = torch.tensor(values, dtype=torch.float64)
        return rows

    def recalls(self, method: str, view: str) -> Tensor:
        """Returns R@1 over all seeds, [R + 1]: as it is, then of each resample."""
        if (method, view) not in self._found:
            hits = {key: body["methods"][method]["hits"][view] for key, body in self.seeds.items()}
            self._found[method, view] = self._weighed(self._spread(hits)) / self._rows
        return self._found[method, view]

    def _weighed(self, numbers: Tensor) -> Tensor:
        return (self.of_seeds @ numbers * self.of_sources).sum(dim=1)

    def pmr(self, method: str) -> Tensor:
        """Returns the mean PMR over seeds, [R + 1]."""
        of_seed = torch.tensor([float(body["methods"][method]["pmr"]) for body in self.seeds.values()])
        return (self.of_seeds @ of_seed.double()) / self.of_seeds.sum(dim=1)

    def difference(self, better: str, worse: str, view: str) -> Interval:
        """Returns the paired difference of R@1 of two methods."""
        return interval(self.recalls(better, view) - self.recalls(worse, view))

    def correlation(self, view: str) -> Interval:
        """Returns the rank correlation of PMR with R@1 over the methods :data:`MINED`, as an interval."""
        pmr = torch.stack([self.pmr(method) for method in MINED])
        gained = torch.stack([self.recalls(method, view) for method in MINED])
        pair = [_centred_ranks(pmr), _centred_ranks(gained)]
        lengths = [ranks.norm(dim=0) for ranks in pair]
        return interval((pair[0] * pair[1]).sum(dim=0) / (lengths[0] * lengths[1]))


def _centred_ranks(numbers: Tensor) -> Tensor:
    """Returns the rank of each of M numbers in its column [M, R], less the mean; equal numbers share theirs."""
    above = (numbers[:, None] > numbers).double() + 0.5 * (numbers[:, None] == numbers).double()
    ranks = above.sum(dim=1)
    return ranks - ranks.mean(dim=0)


def interval(resampled: Tensor) -> Interval:
    """Returns the first number with the 95 % percentile interval of the others; those without a row are left out."""
    others = resampled[1:][resampled[1:].isfinite()].double()
    if not len(others):
        return Interval(float(resampled[0]), math.nan, math.nan, math.nan)
    low, high = others.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Interval(float(resampled[0]), low, high, float((others > 0).double().mean()))


def views_of(seeds: Seeds) -> list[str]:
    """Returns the views of a table, all of them together first."""
    found = list(next(iter(seeds.values()))["methods"]["raw"]["recall"])
    return [ALL, *(view for view in found if view != ALL)]


def methods_table(seeds: Seeds) -> str:
    """Returns R@1 of raw and InfoNCE in percent, the others as differences from InfoNCE with intervals."""
    resampled, views = Resampled(seeds), views_of(seeds)
    methods = next(iter(seeds.values()))["methods"]
    rows = []
    for method in methods:
        mined = [body["methods"][method].get("pmr") for body in seeds.values()]
        cells = [f"{100 * float(resampled.recalls(method, view)[0]):.1f}" for view in views]
        gains = [
            "" if method == "infonce" else str(resampled.difference(method, "infonce", view))
            for view in views
        ]
        pmr = f"{mean(mined):.3f}" if all(value is not None for value in mined) else "–"
        rows.append([method, pmr, *(cell for pair in zip(cells, gains) for cell in pair)])
    header = ["method", "PMR", *(cell for view in views for cell in (f"R@1 {view}", "above InfoNCE"))]
    return table(header, rows)


def claims_table(tables: Mapping[str, Seeds]) -> str:
    """Returns a row a claim: the difference of R@1 of all views by table, bold where its interval is above 0."""
    resampled = {name: Resampled(seeds) for name, seeds in tables.items()}
    rows = []
    for claim, better, worse in CLAIMS:
        found = [of.difference(better, worse, ALL) for of in resampled.values()]
        rows.append([claim, *(f"**{gap}**" if gap.low > 0 else str(gap) for gap in found)])
    correlated = [of.correlation(ALL) for of in resampled.values()]
    rows.append([
        "PMR ranks methods as R@1 does (Spearman)",
        *(f"{of.mean:.2f} [{of.low:.2f}, {of.high:.2f}]" for of in correlated),
    ])  # fmt: skip
    return table(["claim", *resampled], rows)


def changes_table(tables: Mapping[str, Seeds]) -> str:
    """Returns a row a method named `BASE, CHANGE`: R@1 of all views above BASE, and above InfoNCE so changed."""
    resampled = {name: Resampled(seeds) for name, seeds in tables.items()}
    methods = _methods(tables)
    rows = []
    for method in methods:
        base, _, change = method.partition(", ")
        if not change or base not in methods:
            continue
        same = f"infonce, {change}"
        beside = same if same in methods else "infonce"
        cells = []
        for of in resampled.values():
            gap = of.difference(method, base, ALL)
            cells.append(f"**{gap}**" if gap.low > 0 or gap.high < 0 else str(gap))
            cells.append("" if base == "infonce" else str(of.difference(method, beside, ALL)))
        rows.append([base, change, *cells])
    header = ["method", "change", *(cell for name in tables for cell in (name, "above InfoNCE so changed"))]
    return table(header, rows)


def _methods(tables: Mapping[str, Seeds]) -> list[str]:
    """Returns the methods that a result has, in order."""
    return list(next(iter(next(iter(tables.values())).values()))["methods"])


def has_claims(document: Mapping[str, Any]) -> bool:
    """Returns whether a result has every method that the papers' claims are of."""
    wanted = {*MINED, *(name for _, *pair in CLAIMS for name in pair)}
    return wanted <= set(_methods(document["tables"]))


def markdown(document: Mapping[str, Any], name: str) -> str:
    """Returns the whole page of a result: of the papers' methods with their claims, else of changes to methods."""
    claims = has_claims(document)
    settings = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in document["settings"].items())
    parts = [
        f"# Heads over real embeddings: {name}",
        f"Settings: {settings}. Commit {', '.join(document['commits'])}, {document['cpu']}, torch "
        f"{document['versions']['torch']}. Made by `python -m bench heads`.",
        "Retrieval of training rows by test rows of other sources, %. Differences are paired: same split, warm-up, "
        "batches and noise. Intervals are 95 % of a bootstrap over seeds and test sources together. PMR is that of "
        "the positives mined in training, mean over epochs. `raw` is the embeddings, centred.",
        f"![PMR against R@1]({name}.svg)" if claims else "",
    ]
    for title, of_seed in document["tables"].items():
        first = next(iter(of_seed.values()))
        train, test = first["rows"]
        parts += [
            f"## {title}",
            f"{len(of_seed)} seeds; {train:,} rows to train on, {test:,} to test (seed {next(iter(of_seed))}), queue "
            f"{first['queue']:,}.",
            methods_table(of_seed),
        ]
        plans = {body["methods"].get("tuned", {}).get("plan") for body in of_seed.values()} - {None}
        parts.append(f"Tuned plans: {'; '.join(sorted(plans))}." if plans else "")
    if claims:
        parts += [
            "## Claims",
            "R@1 of all views, points. Bold: the interval is above 0.",
            claims_table(document["tables"]),
        ]
    else:
        parts += [
            "## Changes",
            "R@1 of all views, points: above the method without the change. Bold: the interval does not hold 0.",
            changes_table(document["tables"]),
        ]
    return "\n\n".join(part for part in parts if part) + "\n"
