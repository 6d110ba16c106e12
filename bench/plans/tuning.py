"""Compares the plan that is tuned without labels with fixed schedules and with hindsight, on tables with labels.

    python -m bench tuning FOLDER [--seeds 0 1 2] [--page FILE] [--unseen]

FOLDER holds .npz tables: views [N, D], `label` [N] and perhaps `group` [N]; rows of one label and group are one source.
`--unseen` writes the section of tables that the rule of choice was not made on, which says more of each.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from itertools import permutations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cpr_kernels import MiningPlan, Schedule, coclr_schedule, cpr_schedule, tune_schedule
from cpr_kernels.metrics import class_mining_recall, median_recall, positive_mining_recall
from cpr_kernels.tuning import Expansion
from cpr_kernels.tuning.agreement import rank_correlation
from cpr_kernels.tuning.candidates import CASCADES, Settings, tuned_settings
from cpr_kernels.tuning.steps import joint_schedule
from cpr_kernels.tuning.tune import as_plan
from cpr_kernels.tuning.whitening import PrincipalAxes, principal_axes

from ..harness.text import markdown
from ..tables.readme import between_markers, write_text

BEGIN, END = "<!-- tuning:begin -->", "<!-- tuning:end -->"
UNSEEN = "<!-- unseen:begin -->", "<!-- unseen:end -->"
CLEAR = 0.01  # PMR that a plan must be behind to count as worse
FIXED = (0.5, Expansion(5, 3), 50)  # what to take without tuning
TOPK = 5


class Table(NamedTuple):
    """Holds a table of embeddings with its classes, and each view's principal axes."""

    name: str
    views: dict[str, Tensor]
    labels: Tensor
    ids: Tensor
    axes: dict[str, PrincipalAxes]
    groups: Tensor | None = None  # of which sources are made, with the class; None: each row is a source


class Figures(NamedTuple):
    """Holds what labels say of mined positives."""

    pmr: float
    cmr: float  # median over classes

    def __str__(self) -> str:
        return f"{self.pmr:.3f} / {self.cmr:.3f}"


def read(path: Path) -> Table:
    """Reads a table; of two-stream features flow comes first.

    Raises:
        ValueError: a file without labels or with fewer than two views.
    """
    with np.load(path, allow_pickle=False) as arrays:
        found = {name: arrays[name] for name in arrays.files}
    if "label" not in found:
        raise ValueError(f"{path}: has no array 'label'")
    tables = {name: a for name, a in found.items() if a.ndim == 2 and a.dtype.kind == "f"}
    if len(tables) < 2:
        raise ValueError(f"{path}: has {len(tables)} arrays [N, D] of floats; two views or more are needed")
    labels = torch.from_numpy(found["label"].astype(np.int64)).reshape(-1)
    ids, groups = torch.arange(len(labels)), None
    if "group" in found:
        groups = torch.from_numpy(found["group"].astype(np.int64))
        ids = labels * 100_000 + groups
    views = {
        name: torch.from_numpy(tables[name]).float()
        for name in sorted(tables, key=lambda v: (v != "flow", v))
    }
    axes = {view: principal_axes(rows) for view, rows in views.items()}
    return Table(path.stem, views, labels, ids, axes, groups)


def figures(table: Table, plan: MiningPlan) -> Figures:
    """Returns PMR and CMR of a plan on the whole table."""
    mined, _ = plan.mine(table.views, plan.prepare_keys(table.views, table.ids), table.ids)
    recall = class_mining_recall(mined, table.labels, table.labels)
    return Figures(float(positive_mining_recall(mined, table.labels, table.labels)), median_recall(recall))


def plain(table: Table, schedule: Schedule) -> Figures:
    """Returns the figures of a schedule on centred, normalised rows."""
    return figures(table, as_plan(Settings(0.0, None, None, schedule), table.axes))


def cascades(table: Table, order: Sequence[str]) -> Iterator[Schedule]:
    """Yields the cascades of 3, 5 and 7 stages at ratio 0.5 that fit."""
    rows = len(table.labels)
    for stages in CASCADES:
        if rows // 2 ** (stages - 1) >= TOPK:
            yield cpr_schedule(order, rows, stages, 0.5, TOPK)


class Row(NamedTuple):
    """Holds the figures of one table."""

    name: str
    rows: int
    views: int
    alone: list[Figures]  # each view by itself
    cascades: list[Figures]
    joint: Figures
    fixed: Figures
    tuned: list[Figures]  # per seed
    chosen: str  # by the first seed
    hindsight: Figures  # the best plain schedule
    correlation: float  # of agreement with PMR over the joint candidates
    candidate: float  # PMR of the best joint candidate

    @property
    def single(self) -> Figures:
        """Returns the best single view."""
        return max(self.alone, key=lambda found: found.pmr)


def study(table: Table, seeds: Sequence[int]) -> Row:
    """Returns all figures of one table; labels score, and never choose but in hindsight."""
    names = list(table.views)
    joint = joint_schedule(tuple(names), TOPK)
    alone = [plain(table, coclr_schedule(view, TOPK)) for view in names]
    given = [plain(table, schedule) for schedule in cascades(table, names)]
    orders = list(permutations(names)) if len(names) <= 3 else [names, names[::-1]]
    others = [plain(table, schedule) for order in orders[1:] for schedule in cascades(table, order)]
    whole = plain(table, joint)
    plans = [tune_schedule(table.views, table.ids, topk=TOPK, seed=seed) for seed in seeds]
    of_settings = {
        settings: figures(table, as_plan(settings, table.axes)).pmr
        for settings in tuned_settings(names, TOPK)
    }
    agreement = {tried.settings: tried.agreement for tried in plans[0].candidates}
    return Row(
        table.name, len(table.labels), len(names), alone, given, whole,
        figures(table, as_plan(Settings(*FIXED, joint), table.axes)),
        [figures(table, plan) for plan in plans], chosen_text(plans[0]),
        max((*alone, whole, *given, *others), key=lambda found: found.pmr),
        rank_correlation([agreement[s] for s in of_settings], list(of_settings.values())) if agreement else np.nan,
        max(of_settings.values()),
    )  # fmt: skip


def chosen_text(plan: MiningPlan) -> str:
    """Returns the settings of a plan in short."""
    return (
        "cannot tell"
        if plan.doubt
        else next(str(tried.settings) for tried in plan.candidates if tried.chosen)
    )


def page(rows: Sequence[Row], seeds: Sequence[int]) -> str:
    """Returns the results as Markdown: PMR / CMR of the whole tables."""
    header = [
        "table (N, views)", "best single", "CPR-3", "CPR-5", "CPR-7", "joint", "fixed", "tuned", "chosen",
        "plain, hindsight", "rank corr.",
    ]  # fmt: skip
    lines = []
    for row in rows:
        given = [*map(str, row.cascades), *["–"] * (len(CASCADES) - len(row.cascades))]
        lines.append([
            f"{row.name} ({row.rows:,}, {row.views})", str(row.single), *given, str(row.joint), str(row.fixed),
            f"**{row.tuned[0]}**", row.chosen, str(row.hindsight), f"{row.correlation:.2f}",
        ])  # fmt: skip
    text = markdown(header, lines)
    if len(seeds) > 1:
        spread = [[row.name, *(str(found) for found in row.tuned)] for row in rows]
        text += "\n\nThe tuned plan by the seed of its sample:\n\n"
        text += markdown(["table", *(f"seed {seed}" for seed in seeds)], spread)
    return text


def unseen_page(rows: Sequence[Row]) -> str:
    """Returns the results on tables that the rule was not made on as Markdown: PMR, and CMR of joint and tuned."""
    header = [
        "table (N)", "each view", "CPR-3 / 5 / 7", "joint", "fixed", "tuned, by seed", "CMR, joint / tuned", "chosen",
        "plain, hindsight", "candidate, hindsight", "rank corr.",
    ]  # fmt: skip
    lines = []
    for row in rows:
        tuned = list(dict.fromkeys(f"{found.pmr:.3f}" for found in row.tuned))
        lines.append([
            f"{row.name} ({row.rows:,})", " ".join(f"{found.pmr:.2f}" for found in row.alone),
            " / ".join(f"{found.pmr:.3f}" for found in row.cascades), f"{row.joint.pmr:.3f}", f"{row.fixed.pmr:.3f}",
            f"**{' / '.join(tuned)}**", f"{row.joint.cmr:.2f} / {row.tuned[0].cmr:.2f}", row.chosen,
            f"{row.hindsight.pmr:.3f}", f"{row.candidate:.3f}", f"{row.correlation:.2f}",
        ])  # fmt: skip
    return f"{markdown(header, lines)}\n\n{against(rows)}"


def against(rows: Sequence[Row]) -> str:
    """Returns a line for each schedule: on how many tables the tuned plan, mean of its seeds, is above and below."""
    said = []
    tuned = [sum(found.pmr for found in row.tuned) / len(row.tuned) for row in rows]
    for name, others in {
        "the joint score": [row.joint.pmr for row in rows],
        "the fixed default": [row.fixed.pmr for row in rows],
        "the best single view": [row.single.pmr for row in rows],
        "the best plain schedule in hindsight": [row.hindsight.pmr for row in rows],
    }.items():
        gaps = [mine - other for mine, other in zip(tuned, others)]
        more, less = sum(gap > CLEAR for gap in gaps), sum(gap < -CLEAR for gap in gaps)
        said.append(
            f"- against {name}: more by over {CLEAR:g} PMR on {more} of {len(rows)} tables, less on {less}, "
            f"mean {sum(gaps) / len(gaps):+.3f}, worst {min(gaps):+.3f}"
        )
    return "\n".join(["The tuned plan", "", *said])


def parser_of_tables(command: str, does: str) -> argparse.ArgumentParser:
    """Returns the parser of a study of tables that can rewrite its section of a page."""
    parser = argparse.ArgumentParser(prog=f"python -m bench {command}", description=does)
    parser.add_argument("folder", type=Path, help="folder of .npz tables with views, label and perhaps group")
    parser.add_argument("--page", type=Path, metavar="FILE", help="page whose section is rewritten")
    return parser


def tables_in(folder: Path) -> list[Path]:
    """Returns the tables of a folder.

    Raises:
        ValueError: there is none.
    """
    paths = sorted(folder.glob("*.npz"))
    if not paths:
        raise ValueError(f"{folder}: holds no .npz table")
    return paths


def main(argv: Sequence[str]) -> int:
    """Runs the study on every table of a folder and prints its page.

    Raises:
        ValueError: a folder without tables, or a page without the section's markers.
    """
    parser = parser_of_tables("tuning", "Compare the tuned plan with fixed schedules on tables with labels.")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0], help="seeds of the sample; the first is compared"
    )
    parser.add_argument(
        "--unseen", action="store_true", help="the section of tables that the rule of choice was not made on"
    )
    args = parser.parse_args(argv)
    rows = []
    for path in tables_in(args.folder):
        rows.append(study(read(path), args.seeds))
        print(f"{path.stem}: tuned {rows[-1].tuned[0]}, joint {rows[-1].joint}", flush=True)
    text, markers = (unseen_page(rows), UNSEEN) if args.unseen else (page(rows, args.seeds), (BEGIN, END))
    print(f"\n{text}")
    if args.page is not None:
        write_text(args.page, between_markers(args.page, *markers, text + "\n"))
    return 0
