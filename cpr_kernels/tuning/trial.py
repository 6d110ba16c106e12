"""Tries settings on a sample: mines with one view left out at a time, and lets that view judge."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..mining import Schedule, cascade_topk
from .agreement import Votes, copies, is_mutual, joined, view_neighbors, votes_of
from .candidates import HUB, MOST_NEIGHBORS, POWERS, STEPS, without_views
from .steps import Expansion, Neighbors, expanded, hub_count, hub_terms, joint_neighbors, less_hubs
from .whitening import PrincipalAxes, present, principal_axes, whitened_coordinates


class Sample(NamedTuple):
    """Holds the rows that candidates are tried on."""

    rows: Tensor  # [N] int64, which rows of the table
    coordinates: dict[str, Tensor]  # {view: [N, R] float64} along the view's principal axes
    axes: dict[str, PrincipalAxes]
    ids: Tensor  # [N]
    held: dict[str, Tensor]  # {view: [N] bool}

    def whitened(self, power: float) -> dict[str, Tensor]:
        """Returns every view whitened by a power, {view: [N, R] float32}."""
        return {
            view: whitened_coordinates(rows, self.axes[view].scales(power))
            for view, rows in self.coordinates.items()
        }


def draw_sample(views: Mapping[str, Tensor], ids: Tensor, size: int, seed: int) -> Sample:
    """Returns `size` random rows of those that take part, in their order; the axes are those of all rows."""
    axes = {view: principal_axes(table) for view, table in views.items()}
    known = (ids >= 0).nonzero()[:, 0]
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(len(known), generator=generator)[:size].sort().values
    rows = known[drawn.to(known.device)]
    held = {view: present(table[rows]) for view, table in views.items()}
    coordinates = {v: axes[v].coordinates(table[rows]) for v, table in views.items()}
    return Sample(rows, coordinates, axes, ids[rows], held)


def mine_jointly(views: Mapping[str, Tensor], ids: Tensor, topk: int) -> list[Tensor]:
    """Returns what each of `STEPS` mines among rows [N, R] by their joint score: indices [N, topk]."""
    keep = max(MOST_NEIGHBORS, topk)
    near = joint_neighbors(views, views, keep, ids, ids)
    count = hub_count(HUB, int((ids >= 0).sum()), topk)
    of_expansion: dict[Expansion | None, Neighbors] = {None: near}
    for step in dict.fromkeys(expansion for expansion, _ in STEPS if expansion is not None):
        rows = expanded(views, views, near, step)
        of_expansion[step] = joint_neighbors(rows, rows, keep, ids, ids)
    mined = []
    for expansion, hub in STEPS:
        found = of_expansion[expansion]
        if hub is not None:
            found = less_hubs(found, hub_terms(found.scores, count)[:, 0], topk)
        mined.append(found.indices[:, :topk])
    return mined


class Trial:
    """Tries settings on a sample: mines without each view in turn, and collects that view's votes.

    Copies of a view are left out together, and one of them votes for all: they would say the same, twice.

    Args:
        sample: the rows.
        topk: positives per query.
    """

    def __init__(self, sample: Sample, topk: int) -> None:
        self.sample, self.topk = sample, topk
        whitened = [sample.whitened(power) for power in POWERS]
        self.whitened = dict(zip(POWERS, whitened))
        self.near = {
            view: [view_neighbors(rows[view], sample.ids, held) for rows in whitened]
            for view, held in sample.held.items()
        }
        self.groups = copies({view: lists[0] for view, lists in self.near.items()})
        self.judges = [group[0] for group in self.groups]

    def left_out_with(self, view: str) -> tuple[str, ...]:
        """Returns the view and its copies."""
        return next(group for group in self.groups if view in group)

    def rest(self, view: str, power: float) -> tuple[dict[str, Tensor], Tensor]:
        """Returns the rows in the views that are no copy of `view`, and their ids as :meth:`ids_with`."""
        out = self.left_out_with(view)
        rows = {name: table for name, table in self.whitened[power].items() if name not in out}
        return rows, self.ids_with(rows)

    def ids_with(self, views: Iterable[str]) -> Tensor:
        """Returns the ids [N], -1 where a row holds none of the views."""
        held = torch.stack([self.sample.held[name] for name in views]).any(dim=0)
        return torch.where(held, self.sample.ids, -1)

    def vote(self, view: str, mined: Tensor, ids: Tensor) -> Votes:
        """Returns the view's votes on what rows with an id >= 0 have mined."""
        mined = mined.masked_fill((ids < 0)[:, None], -1)
        return votes_of(mined, self.near[view], self.sample.held[view])

    def tuned(self, advance: Callable[[], None]) -> list[Votes]:
        """Returns the votes for each of `tuned_settings`; `advance` is called after each judge at each power."""
        ballots = []
        for power in POWERS:
            of_steps: list[list[Votes]] = [[] for _ in STEPS]
            for view in self.judges:
                rows, ids = self.rest(view, power)
                for votes, mined in zip(of_steps, mine_jointly(rows, ids, self.topk)):
                    votes.append(self.vote(view, mined, ids))
                advance()
            ballots += [joined(votes) for votes in of_steps]
        return ballots

    def plain(self, schedules: Sequence[Schedule], joint: Votes, advance: Callable[[], None]) -> list[Votes]:
        """Returns the votes for schedules on unwhitened rows; those for `joint` where a schedule needs the view.

        `advance` is called after each judge.
        """
        ballots: list[list[Votes]] = [[] for _ in schedules]
        for u, view in enumerate(self.judges):
            rows, ids = self.rest(view, 0.0)
            seen: dict[Schedule, Votes] = {}
            for votes, schedule in zip(ballots, schedules):
                left = without_views(schedule, self.left_out_with(view))
                if left is None:
                    votes.append(Votes(*(part[u] for part in joint)))
                    continue
                if left not in seen:
                    mined, _ = cascade_topk(rows, rows, left, query_ids=ids, key_ids=ids)
                    seen[left] = self.vote(view, mined, ids)
                votes.append(seen[left])
            advance()
        return [joined(votes) for votes in ballots]

    def by_chance(self) -> float:
        """Returns the agreement that random pairs have."""
        rows = len(self.sample.ids)
        shares = [
            [float(is_mutual(lists, lists).sum()) / rows**2 for lists in self.near[view]]
            for view in self.judges
        ]
        return max(sum(of_power) / len(shares) for of_power in zip(*shares))
