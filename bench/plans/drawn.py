"""Tunes on drawn tables that are hard to choose for: noise, near copies, shared nuisance, unequal views, missing rows.

    python -m bench drawn [--seeds 0 1]

PMR by labels of the tuned plan, the best single view, the joint score and the best cascade of 3, 5 and 7 stages.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from statistics import mean

import torch
from torch import Generator, Tensor

from cpr_kernels import coclr_schedule, tune_schedule
from cpr_kernels.tuning.steps import joint_schedule
from cpr_kernels.tuning.whitening import principal_axes

from ..harness.text import markdown
from .tuning import TOPK, Table, cascades, chosen_text, figures, plain

ROWS, LATENT = 1500, 12
Views = dict[str, Tensor]


def view(g: Generator, label: Tensor, dim: int, noise: float) -> Tensor:
    """Returns a view [N, D]: noisy codes of classes, in `LATENT` of its directions."""
    codes = torch.randn(int(label.max()) + 1, LATENT, generator=g)
    rows = codes[label] + noise * torch.randn(len(label), LATENT, generator=g)
    mixed = rows @ torch.randn(LATENT, dim, generator=g) / LATENT**0.5
    return mixed + 0.05 * torch.randn(len(label), dim, generator=g)


def noise(g: Generator, rows: int, dim: int) -> Tensor:
    """Returns a view that knows nothing."""
    return torch.randn(rows, dim, generator=g)


def near_copy(g: Generator, rows: Tensor, share: float) -> Tensor:
    """Returns the view with noise of a share of its deviation."""
    return rows + share * rows.std() * torch.randn(rows.shape, generator=g)


def some_noise(g: Generator, label: Tensor) -> Views:
    """Two good views, two of noise."""
    good = {name: view(g, label, 40, 1.3) for name in ("a", "b")}
    return good | {name: noise(g, len(label), 40) for name in ("c", "d")}


def copied(g: Generator, label: Tensor) -> Views:
    """A view, its near copy, and a better one."""
    first = view(g, label, 64, 1.4)
    return {"a": first, "b": near_copy(g, first, 0.3), "c": view(g, label, 64, 1.2)}


def weak_copied(g: Generator, label: Tensor) -> Views:
    """A weak view, its near copy, and a strong one."""
    first = view(g, label, 64, 2.2)
    return {"a": first, "b": near_copy(g, first, 0.5), "c": view(g, label, 64, 0.9)}


def one_strong(g: Generator, label: Tensor) -> Views:
    """A strong view and two weak ones."""
    return {"a": view(g, label, 64, 0.6), "b": view(g, label, 64, 2.5), "c": view(g, label, 64, 2.5)}


def strong_and_weak(g: Generator, label: Tensor) -> Views:
    """A strong view and a weak one."""
    return {"a": view(g, label, 64, 0.6), "b": view(g, label, 64, 2.5)}


def same_rooms(g: Generator, label: Tensor) -> Views:
    """Two views that see the class and the same rooms."""
    room = torch.randint(15, label.shape, generator=g)
    return {name: view(g, label, 48, 1.0) + 0.8 * view(g, room, 48, 0.3) for name in ("a", "b")}


def nuisances(g: Generator, label: Tensor) -> Views:
    """Two views, each with a few strong directions of its own."""

    def strong(rows: Tensor) -> Tensor:
        return rows + 5.0 * noise(g, len(rows), 3) @ torch.randn(3, rows.shape[1], generator=g) / 3**0.5

    return {name: strong(view(g, label, 96, 1.1)) for name in ("a", "b")}


def gaps(g: Generator, label: Tensor) -> Views:
    """Three views, each missing for 30 % of the rows."""
    views = {name: view(g, label, 64, 1.2) for name in ("a", "b", "c")}
    for rows in views.values():
        rows[torch.rand(len(rows), generator=g) < 0.3] = torch.nan
    return views


KINDS: tuple[Callable[[Generator, Tensor], Views], ...] = (
    some_noise, copied, weak_copied, one_strong, strong_and_weak, same_rooms, nuisances, gaps,
)  # fmt: skip


def table_of(kind: Callable[[Generator, Tensor], Views], seed: int) -> Table:
    """Draws a table of a kind, 20 classes."""
    g = Generator().manual_seed(seed)
    label = torch.randint(20, (ROWS,), generator=g)
    views = kind(g, label)
    axes = {name: principal_axes(rows) for name, rows in views.items()}
    return Table(kind.__name__, views, label, torch.arange(ROWS), axes)


def study(table: Table) -> tuple[list[float], str]:
    """Returns the PMR of best single view, joint score, best cascade and tuned plan; and what was chosen."""
    names = list(table.views)
    plan = tune_schedule(table.views, table.ids, topk=TOPK)
    single = max(plain(table, coclr_schedule(name, TOPK)).pmr for name in names)
    cascade = max(plain(table, schedule).pmr for schedule in cascades(table, names))
    joint = plain(table, joint_schedule(tuple(names), TOPK)).pmr
    return [single, joint, cascade, figures(table, plan).pmr], chosen_text(plan)


def main(argv: Sequence[str]) -> int:
    """Runs the study and prints its table."""
    parser = argparse.ArgumentParser(prog="python -m bench drawn", description="Tune on drawn, hard tables.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    args = parser.parse_args(argv)
    lines = []
    for kind in KINDS:
        found = [study(table_of(kind, seed)) for seed in args.seeds]
        pmr = [mean(column) for column in zip(*(numbers for numbers, _ in found))]
        says = (kind.__doc__ or "").strip().rstrip(".")
        lines.append(
            [says, *(f"{value:.3f}" for value in pmr), "; ".join(dict.fromkeys(c for _, c in found))]
        )
        print(f"{kind.__name__}: tuned {pmr[-1]:.3f}, best other {max(pmr[:-1]):.3f}", flush=True)
    header = ["views", "best single", "joint", "best cascade", "tuned", "chosen"]
    print(f"\n{markdown(header, lines)}")
    return 0
