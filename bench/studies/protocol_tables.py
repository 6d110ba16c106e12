"""Writes the results of the protocol's runs as tables, and a diagnosis: what each stage keeps, and how alike
the two views judge.
"""

from __future__ import annotations

from math import isnan
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from cpr_kernels import Schedule, cascade_trace, coclr_schedule, cpr_schedule, oracle_schedule
from cpr_kernels.train.data.manifest import Manifest
from cpr_kernels.train.evaluate.paired_gain import Z, clustered_standard_error
from cpr_kernels.train.pretrain.config import TrainConfig
from cpr_kernels.train.runtime.checkpoint import load
from cpr_kernels.train.views.names import label, name_of_all_views
from cpr_kernels.tuning.agreement import rank_correlation

from ..harness.text import markdown as table
from ..harness.text import percents

Document = dict[str, Any]
BASELINE = "infonce"


def markdown(document: Document) -> str:
    """Returns the whole result: budget, features, mining, diagnosis."""
    budget = ", ".join(
        f"{name} {' and '.join(value) if isinstance(value, list) else value}"
        for name, value in document["budget"].items()
    )
    seeds = ", ".join(map(str, document["seeds"]))
    parts = [
        f"Budget: {budget}. Seeds {seeds}: mean (each seed). Torch {document['torch']}.",
        "Features after the last phase, retrieval of training videos by test videos and linear probe, %:",
        features_table(document),
        gains_table(document),
        "Mined positives in the last epoch of each view's last phase, %:",
        mining_table(document),
        "PMR of what is mined, and its agreement without labels, epoch by epoch, % (mean over seeds; rank correlation "
        "of the two over the epochs):"
        if (curves := curves_table(document))
        else "",
        curves,
        "The queue at the end of the warm-up, mined in several ways, stage by stage (right: entries with the query's "
        "class, as a share of what is kept, and of all that the query could find, %):",
        diagnosis_table(document),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def features_table(document: Document) -> str:
    """Returns a row a method and view."""
    header = ["method", "view", "R@1", "R@5", "R@10", "R@20", "probe"]
    rows = []
    for method, of_seed in document["results"].items():
        found = list(of_seed.values())
        for view in found[0]["recall"] if found else ():
            ks = list(found[0]["recall"][view])
            cells = [percents([run["recall"][view][k] for run in found]) for k in ks]
            rows.append([method, view, *cells, percents([run["probe"][view] for run in found])])
    return table(header, rows) if rows else ""


def gains_table(document: Document) -> str:
    """Returns a row a method and view: R@1 over InfoNCE's of the same length, paired by test video and seed.

    The interval is of the mean over seeds: 1.96 standard errors over the test videos' sources on each side.
    """
    results, rows, budget = document["results"], [], document["budget"]
    trained = budget.get("views trained in cycles", budget["views"])
    untrained = set(budget["views"]) - set(trained)
    baseline = {seed: run["right"] for seed, run in results.get(BASELINE, {}).items() if "right" in run}
    for method, of_seed in results.items():
        seeds = [seed for seed in baseline if "right" in of_seed.get(seed, {})]
        if method == BASELINE or not seeds:
            continue
        for view in baseline[seeds[0]]:
            if view in untrained:
                continue
            each = torch.stack(
                [_digits(of_seed[seed]["right"][view]) - _digits(baseline[seed][view]) for seed in seeds]
            )  # [seeds, test videos], of 100, 0 and -100
            has = each.isfinite().all(dim=0)
            gain, sources = each[:, has].mean(dim=0), torch.tensor(document["sources"])[has]
            middle, half = gain.mean().item(), Z * clustered_standard_error(gain, sources)
            by_seed = ", ".join(f"{value:+.1f}" for value in each[:, has].mean(dim=1).tolist())
            rows.append(
                [method, view, f"{middle:+.1f}", f"{middle - half:+.1f} to {middle + half:+.1f}", by_seed]
            )
    header = ["method", "view", "points of R@1 over infonce", "95 % interval", "by seed"]
    return f"Paired with InfoNCE of the same length:\n\n{table(header, rows)}" if rows else ""


def _digits(text: str) -> torch.Tensor:
    """Returns 100 for 1, 0 for 0, NaN for -, of each test video."""
    return torch.tensor([torch.nan if digit == "-" else 100.0 * int(digit) for digit in text])


def mining_table(document: Document) -> str:
    """Returns a row a method and trained view: what it mined, and what each view alone would have."""
    views = document["budget"]["views"]
    rows, ways = [], (*views, name_of_all_views(views))
    for method, of_seed in document["results"].items():
        found = [run["mining"] for run in of_seed.values()]
        for view in found[0] if found else ():
            mined = [mining[view].get("mined") for mining in found]
            measured = all(mined)
            own = [
                percents([way[figure] for way in mined if way]) if measured else "–"
                for figure in ("pmr", "r1", "cmr_median")
            ]
            others = [
                percents([mining[view][way]["pmr"] for mining in found if way in mining[view]])
                for way in ways
            ]
            rows.append([method, view, *own, *others])
    alone = [f"PMR of {label(view)} alone" for view in views]
    header = ["method", "trained", "PMR", "R@1", "median CMR", *alone, "of their sum"]
    return table(header, rows) if rows else ""


def curves_table(document: Document) -> str:
    """Returns a row a method and phase: PMR and agreement of each epoch that has both; older results have none."""
    rows = []
    for method, of_seed in document["results"].items():
        watched = [run.get("watched", []) for run in of_seed.values()]
        for phase in dict.fromkeys(epoch["phase"] for epochs in watched for epoch in epochs):
            of_phase = [[epoch for epoch in epochs if epoch["phase"] == phase] for epochs in watched]
            curves = {
                figure: [mean(epoch[figure] for epoch in same) for same in zip(*of_phase)]
                for figure in ("pmr", "agreement")
            }
            shown = [" ".join(f"{100 * value:.0f}" for value in curve) for curve in curves.values()]
            correlation = rank_correlation(*curves.values())
            rows.append([method, phase, *shown, "" if isnan(correlation) else f"{correlation:.2f}"])
    return table(["method", "phase", "PMR", "agreement", "rank corr."], rows) if rows else ""


def diagnosis_table(document: Document) -> str:
    """Returns a row a schedule: its purity stage by stage; below, what the numbers rest on."""
    found = [value for value in document["diagnosis"].values() if value]
    if not found:
        return ""
    rows, near = [], all("similarity" in one for one in found)  # older files are without
    views = list(found[0]["similarity"]["any entry"]) if near else []
    for name, stages in found[0]["purity"].items():
        kept = " → ".join(str(round(mean(one["kept"][name][i] for one in found))) for i in range(len(stages)))
        shares = " → ".join(percents([one["purity"][name][i] for one in found]) for i in range(len(stages)))
        alive = " → ".join(
            f"{100 * mean(one['alive'][name][i] for one in found):.0f}" for i in range(len(stages))
        )
        alike = [f"{mean(one['similarity'][name][view] for one in found):.2f}" for view in views]
        rows.append([name, kept, shares, alive, *alike])
    facts = (
        f"\n\nA random eligible entry has the query's class in {percents([one['chance'] for one in found])} %; "
        f"{percents([one['siblings'] for one in found])} % of the entries are siblings of the query. The two views' "
        f"similarities correlate by {mean(one['agreement'] for one in found):.2f} (rank correlation over entries, mean "
        "over queries): 1 means that a second view adds nothing."
    )
    for view in views:
        alike = mean(one["similarity"]["any entry"][view] for one in found)
        facts += f" A random eligible entry's {view} similarity is {alike:.2f}."
    header = ["schedule", f"entries kept, of {found[0]['entries']}", "right among them", "of all right ones"]
    return table([*header, *(f"{view} similarity" for view in views)], rows) + facts


def diagnosis(run: Path, config: TrainConfig) -> Document:
    """Traces, from the queue that a warm-up left: every stage of several schedules, every entry a query.

    kept: entries left after each stage, mean over queries. purity: share of them with the query's class. alive: share
    of a query's eligible entries of its class that are left. similarity: mean cosine of the query and the last stage's
    entries, by view. chance: share of a query's eligible entries (of other
    sources) with its class. siblings: share of all entries that are siblings. agreement: rank correlation of the two
    views' similarities.
    """
    state = load(run / "checkpoint.pt")["model"]
    videos = Manifest.load(config.data).videos
    held = state["queue.labels"]
    filled = held >= 0
    rows = {view: state[f"queue.view_{view}"][filled] for view in config.views}
    label = torch.tensor([video.label for video in videos])[held[filled]]
    source = torch.tensor([video.group for video in videos])[held[filled]]
    first, second = config.views[-1], config.views[0]
    topk = config.mining.topk
    schedules: dict[str, Schedule] = {f"{view} alone": coclr_schedule(view, topk) for view in config.views}
    schedules["sum of both"] = oracle_schedule(config.views, topk)
    for stages in (3, 5, 7):
        if int(len(label) * config.mining.ratio ** (stages - 1)) >= topk:
            for order in ((first, second), (second, first)):
                made = cpr_schedule(order, len(label), stages, config.mining.ratio, topk)
                schedules[f"cascade, {stages} stages, {order[0]} first"] = made
    siblings = source[:, None] == source[None]
    same = (label[:, None] == label[None]) & ~siblings
    stages_of: dict[str, dict[str, list[float]]] = {"kept": {}, "purity": {}, "alive": {}}
    cosines = {view: table @ table.T for view, table in rows.items()}
    similarity = {"any entry": {view: cosine[~siblings].mean().item() for view, cosine in cosines.items()}}
    for name, schedule in schedules.items():
        for figures in stages_of.values():
            figures[name] = []
        for stage in cascade_trace(rows, rows, schedule, query_ids=source, key_ids=source):
            kept = (stage.indices >= 0).sum().item()
            right = _right(stage.indices, label)
            stages_of["kept"][name].append(kept / len(label))
            stages_of["purity"][name].append(right / max(kept, 1))
            stages_of["alive"][name].append(right / max(int(same.sum()), 1))
        mined = stage.indices.clamp(min=0)
        similarity[name] = {
            view: cosine.gather(1, mined)[stage.indices >= 0].mean().item()
            for view, cosine in cosines.items()
        }
    ranks = [(rows[view] @ rows[view].T).argsort(dim=1).argsort(dim=1).double() for view in (first, second)]
    centred = [rank - rank.mean(dim=1, keepdim=True) for rank in ranks]
    agreement = (centred[0] * centred[1]).sum(1) / (centred[0].norm(dim=1) * centred[1].norm(dim=1))
    return {
        **stages_of, "similarity": similarity, "chance": (same.sum() / (~siblings).sum()).item(), "entries": len(label),
        "siblings": ((siblings.sum() - len(label)) / siblings.numel()).item(), "agreement": agreement.mean().item(),
    }  # fmt: skip


def _right(indices: torch.Tensor, label: torch.Tensor) -> int:
    """Returns how many kept entries [N, keep] have their query's class."""
    return int(((label[indices.clamp(min=0)] == label[:, None]) & (indices >= 0)).sum())
