"""Weighs the views of tuned plans by their agreement: PMR against that of equal weights.

    python -m bench weights FOLDER [--page FILE]

FOLDER is as for `python -m bench tuning`; its tables of three views and more take part, and two drawn ones, of which
one view is mostly noise. Beginning with equal weights, the one weight is halved or doubled that raises the agreement
most, as long as it rises by 1.645 standard errors; a view counts at most four times another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from cpr_kernels import MiningPlan, Schedule, Stage, tune_schedule
from cpr_kernels.tuning.agreement import Votes
from cpr_kernels.tuning.estimate import votes_for
from cpr_kernels.tuning.trial import Trial, draw_sample
from cpr_kernels.tuning.tune import ALIKE
from cpr_kernels.tuning.whitening import principal_axes

from ..harness.text import markdown
from ..tables.readme import between_markers, write_text
from .coverage import figures
from .tuning import TOPK, Table, parser_of_tables, read, tables_in

BEGIN, END = "<!-- weights:begin -->", "<!-- weights:end -->"
FACTORS = (0.5, 2.0)
WIDEST = 4.0  # times that a view may count what another counts
SAMPLE = 1200


def weighed(plan: MiningPlan, table: Table) -> MiningPlan:
    """Returns a plan of one stage whose weights of views are those that agree most; labels take no part."""
    drawn = draw_sample(table.views, table.ids, SAMPLE, seed=0)
    trial, rows = Trial(drawn, plan.topk), {view: part[drawn.rows] for view, part in table.views.items()}

    def tried(weights: dict[str, float]) -> tuple[Votes, MiningPlan]:
        whole = sum(weights.values())
        stage = Stage({view: weight / whole for view, weight in weights.items()}, plan.topk)
        other = replace(plan, schedule=Schedule([stage]))
        return votes_for("bench weights", trial, other, rows), other

    weights = dict.fromkeys(plan.schedule.views, 1.0)
    best, chosen = tried(weights)
    while True:
        steps = [{**weights, view: weights[view] * factor} for view in weights for factor in FACTORS]
        steps = [step for step in steps if max(step.values()) <= WIDEST * min(step.values())]
        found = [(*tried(step), step) for step in steps]
        votes, other, step = max(found, key=lambda one: float(one[0].agreement()))
        if not clearly_more(votes, best):
            return chosen
        best, chosen, weights = votes, other, step


def clearly_more(votes: Votes, best: Votes) -> bool:
    """Returns whether candidates agree more by `ALIKE` standard errors of the difference, queries drawn at random."""
    error = torch.linalg.vector_norm(votes.influence().double() - best.influence().double())
    return float(votes.agreement() - best.agreement()) > ALIKE * float(error)


def drawn_table(noise: float) -> Table:
    """Returns 400 rows of three views of 8 classes with noise, the last with three times as much."""
    generator = torch.Generator().manual_seed(7)
    labels = torch.randint(8, (400,), generator=generator)
    views = {}
    for name, more in (("a", 1.0), ("b", 1.0), ("c", 3.0)):
        codes = torch.randn(8, 12, generator=generator)
        views[name] = codes[labels] + more * noise * torch.randn(400, 12, generator=generator)
    axes = {view: principal_axes(rows) for view, rows in views.items()}
    return Table(f"drawn, noise {noise:g}", views, labels, torch.arange(400), axes)


def study(table: Table) -> list[str]:
    """Returns a table's row: PMR and CMR with equal weights and with chosen ones, and these."""
    plan = tune_schedule(table.views, table.ids, topk=TOPK)
    if len(plan.schedule) > 1 or len(plan.schedule.views) < 3:
        return [table.name, mined_by(table, plan), "not weighed", ""]
    other = weighed(plan, table)
    [stage] = other.schedule
    least = min(stage.weights.values())
    weights = ", ".join(f"{view} {weight / least:g}" for view, weight in stage.weights.items())
    return [table.name, mined_by(table, plan), mined_by(table, other), weights]


def mined_by(table: Table, plan: MiningPlan) -> str:
    """Returns PMR and CMR of what a plan mines."""
    mined, _ = plan.mine(table.views, plan.prepare_keys(table.views, table.ids), table.ids)
    found = figures(table, mined)
    return f"{found.pmr:.3f} / {found.cmr:.3f}"


def page(rows: Sequence[Sequence[str]]) -> str:
    """Returns the results as Markdown."""
    header = ["table", "equal weights", "chosen weights", "the weights"]
    return f"PMR / CMR of the tuned plan on whole tables:\n\n{markdown(header, rows)}"


def main(argv: Sequence[str]) -> int:
    """Runs the study and prints its page.

    Raises:
        ValueError: a folder without tables, or a page without the section's markers.
    """
    args = parser_of_tables("weights", "Weigh the views of tuned plans, without labels.").parse_args(argv)
    tables = [table for table in map(read, tables_in(args.folder)) if len(table.views) > 2]
    rows = []
    for table in [*tables, drawn_table(1.0), drawn_table(2.0)]:
        rows.append(study(table))
        print(*rows[-1], flush=True)
    text = page(rows)
    print(f"\n{text}")
    if args.page is not None:
        write_text(args.page, between_markers(args.page, BEGIN, END, text + "\n"))
    return 0
