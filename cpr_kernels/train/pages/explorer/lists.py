"""Computes the lists of rows worth a look: hubs, never mined, views that disagree, low agreement, doubtful labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .... import MiningPlan, Schedule, cascade_topk, coclr_schedule
from ....progress import ProgressBar
from ....tuning.agreement import is_listed, witness_size
from ....tuning.candidates import without_views

CHUNK = 512  # queries mined at a time
JUDGED = 4_000  # rows, at most, of which views are compared
NEAREST = 100  # neighbours, at most, for which one view vouches
SAMPLE = 20_000  # queries mined, where nothing else is said
LONGEST = 200  # rows of a list
CONTRADICTS = 0.6  # share of the mined entries of one other label, from which on a label is doubtful


@dataclass(frozen=True)
class Mined:
    """Holds rows and what they mine.

    Attributes:
        views: ``{view: [N, D]}`` as they are compared; NaN rows lack a view.
        ids: [N] int64 source of each row, -1 where it is never mined.
        how: the schedule, or the plan that mines `raw`.
        raw: ``{view: [N, D]}`` as a plan takes them.
        labels: [N] int64 class of each row, -1 where unknown; None without classes.
        classes: the names of the classes.
    """

    views: Mapping[str, Tensor]
    ids: Tensor
    how: Schedule | MiningPlan
    raw: Mapping[str, Tensor]
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()

    @property
    def schedule(self) -> Schedule:
        """Returns the schedule, of a plan its own."""
        return self.how.schedule if isinstance(self.how, MiningPlan) else self.how


class Table(NamedTuple):
    """Holds what some queries mine."""

    queries: Tensor  # [Q] int64
    indices: Tensor  # [Q, k] int64, -1 is padding
    scores: Tensor  # [Q, k]


def lists_of(mined: Mined, sample: int) -> tuple[list[dict[str, Any]], Table]:
    """Returns the lists as the page shows them, and what the sampled queries mine.

    A list is ``{name, title, says, rows}``; each of its rows is ``[entry, text]``.

    Args:
        mined: the rows and how they are mined.
        sample: at most so many queries, spread evenly over the rows, are mined.
    """
    count = len(mined.ids)
    queries = spread(count, sample)
    judged = spread(count, min(sample, JUDGED))
    several = len(mined.views) > 1
    left = {view: without_views(mined.schedule, (view,)) for view in mined.views} if several else {}
    steps = len(queries) + len(judged) * (
        several * len(mined.views) + sum(one is not None for one in left.values())
    )
    with ProgressBar("lists", steps, unit="query") as bar:
        table = mine(mined, queries, bar.advance)
        found = [_hubs(table, mined), _never(table, mined)]
        if several:
            near = {view: _nearest(mined, view, judged, bar.advance) for view in mined.views}
            found.append(_disagreement(judged, near))
            votes = [
                _agreement(_without(mined, view, schedule), judged, near[view], bar.advance)
                for view, schedule in left.items()
                if schedule is not None
            ]
            if votes:
                found.append(_low_agreement(judged, torch.stack(votes)))
    if mined.labels is not None:
        found.append(_doubtful(table, mined))
    return [one for one in found if one["rows"]], table


def spread(count: int, size: int) -> Tensor:
    """Returns `size` of `count` rows, spread evenly, or all of them."""
    return torch.arange(count) if count <= size else torch.arange(size) * count // size


def mine(mined: Mined, queries: Tensor, advance: Callable[[int], None]) -> Table:
    """Returns what some rows mine among all, as `cpr mine` does."""
    if isinstance(mined.how, MiningPlan):
        plan = mined.how
        keys = plan.prepare_keys(mined.raw, mined.ids)
        parts = []
        for rows in queries.split(CHUNK):
            some = {view: mined.raw[view][rows] for view in plan.whiten}
            parts.append(plan.mine(some, keys, mined.ids[rows]))
            advance(len(rows))
    else:
        parts = [_cascade(mined.views, mined.how, mined.ids, rows, advance) for rows in queries.split(CHUNK)]
    indices, scores = (torch.cat(part) for part in zip(*parts))
    return Table(queries, indices, scores)


def _cascade(
    views: Mapping[str, Tensor], schedule: Schedule, ids: Tensor, rows: Tensor, advance: Callable[[int], None]
) -> tuple[Tensor, Tensor]:
    used = {view: views[view] for view in schedule.views}
    some = {view: table[rows] for view, table in used.items()}
    found = cascade_topk(some, used, schedule, query_ids=ids[rows], key_ids=ids)
    advance(len(rows))
    return found


def _nearest(mined: Mined, view: str, rows: Tensor, advance: Callable[[int], None]) -> Tensor:
    """Returns the nearest entries of some rows in one view by itself, [Q, K]."""
    schedule = coclr_schedule(view, min(witness_size(len(mined.ids)), NEAREST))
    return torch.cat(
        [_cascade(mined.views, schedule, mined.ids, part, advance)[0] for part in rows.split(CHUNK)]
    )


def _without(mined: Mined, view: str, schedule: Schedule) -> Mined:
    """Returns the same rows mined without a view."""
    if not isinstance(mined.how, MiningPlan):
        return replace(mined, how=schedule)
    whiten = {name: mined.how.whiten[name] for name in schedule.views}
    return replace(mined, how=replace(mined.how, whiten=whiten, schedule=schedule))


def _agreement(mined: Mined, rows: Tensor, near: Tensor, advance: Callable[[int], None]) -> Tensor:
    """Returns the share of what each row mines without a view that is near in that view, [Q]; NaN where nothing is."""
    indices = mine(mined, rows, advance).indices
    return is_listed(indices, near).sum(dim=1) / (indices >= 0).sum(dim=1)


def _hubs(table: Table, mined: Mined) -> dict[str, Any]:
    times = _times(table, mined)
    order = times.argsort(descending=True, stable=True)[:LONGEST]
    kept = [int(row) for row in order if times[row] > 1]
    total = max(1, int(times.sum()))
    some = max(1, len(times) // 100)
    share = float(times.sort(descending=True).values[:some].sum()) / total
    return {
        "name": "hubs",
        "title": "hubs",
        "says": f"Mined most often. {_who(table, mined)}: on average an entry is mined {total / len(times):.1f} times; "
        f"the most mined 1 % of the entries take {share:.0%} of all places.",
        "rows": [[row, f"{int(times[row]):,}×"] for row in kept],
    }


def _never(table: Table, mined: Mined) -> dict[str, Any]:
    times = _times(table, mined)
    never = ((times == 0) & (mined.ids >= 0)).nonzero()[:, 0]
    best = torch.full((len(times),), torch.inf)
    best[table.queries] = table.scores[:, 0]
    order = never[best[never].argsort(stable=True)]
    return {
        "name": "never",
        "title": "never mined",
        "says": f"{len(never):,} of {len(times):,} entries ({len(never) / len(times):.0%}) are mined by no query, "
        f"those least like any other first. {_who(table, mined)}.",
        "rows": [
            [int(row), f"best {float(best[row]):.2f}" if best[row].isfinite() else ""]
            for row in order[:LONGEST]
        ],
    }


def _disagreement(rows: Tensor, near: Mapping[str, Tensor]) -> dict[str, Any]:
    lists = list(near.values())
    pairs = [(one, other) for i, one in enumerate(lists) for other in lists[i + 1 :]]
    shares = [is_listed(one, other).sum(dim=1) / (one >= 0).sum(dim=1) for one, other in pairs]
    shared = torch.stack(shares).mean(dim=0)
    size = lists[0].shape[1]
    return _lowest(
        rows,
        shared,
        "views",
        "views disagree most",
        f"The share of the {size} nearest entries in one view that are among the {size} nearest in another, mean over "
        f"the pairs of views, lowest first; over {len(rows):,} entries the mean is {float(shared.nanmean()):.0%}.",
        "shared",
    )


def _low_agreement(rows: Tensor, votes: Tensor) -> dict[str, Any]:
    agreed = votes.nanmean(dim=0)
    return _lowest(
        rows,
        agreed,
        "agreement",
        "lowest agreement",
        "What each query mines without one view, judged by that view: the share that is near in it, mean over the "
        f"views left out, lowest first; over {len(rows):,} entries the mean is {float(agreed.nanmean()):.0%}.",
        "agree",
    )


def _lowest(rows: Tensor, share: Tensor, name: str, title: str, says: str, word: str) -> dict[str, Any]:
    sound = (~share.isnan()).nonzero()[:, 0]
    order = sound[share[sound].argsort(stable=True)][:LONGEST]
    listed = [[int(rows[i]), f"{float(share[i]):.0%} {word}"] for i in order]
    return {"name": name, "title": title, "says": says, "rows": listed}


def _doubtful(table: Table, mined: Mined) -> dict[str, Any]:
    """Rows whose mined entries agree with each other on another label than the given one: a work list."""
    assert mined.labels is not None
    own = mined.labels[table.queries]
    found = torch.where(table.indices >= 0, mined.labels[table.indices.clamp(min=0)], -1)  # [Q, k]
    same = (found[:, :, None] == found[:, None, :]) & (found >= 0)[:, :, None]
    votes, place = same.sum(dim=2).max(dim=1)
    other = found.gather(1, place[:, None])[:, 0]
    known = (found >= 0).sum(dim=1)
    share = votes / known.clamp(min=1)
    doubtful = ((own >= 0) & (known > 1) & (other != own) & (share >= CONTRADICTS)).nonzero()[:, 0]
    agreeing = (found == own[:, None]).sum(dim=1)
    order = _sorted(doubtful, (-share, agreeing.float(), -table.scores[:, 0]))
    return {
        "name": "labels",
        "title": "labels to check",
        "says": f"{len(order):,} of {len(own):,} entries: most of what they mine has one other label than the one "
        "given, those that all agree on it first. A mislabelled entry, a class that looks like another, or a poor "
        "embedding.",
        "rows": [
            [
                int(table.queries[i]),
                f"→ {mined.classes[int(other[i])]}, {int(votes[i])} of {int(known[i])}",
            ]
            for i in order[:LONGEST]
        ],
    }


def _sorted(rows: Tensor, keys: tuple[Tensor, ...]) -> Tensor:
    """Returns rows by several keys [Q], the first decides first; equal ones in their order."""
    for key in reversed(keys):
        rows = rows[key[rows].argsort(stable=True)]
    return rows


def _times(table: Table, mined: Mined) -> Tensor:
    """Returns how often each row is mined, [N] int64."""
    return torch.bincount(table.indices[table.indices >= 0], minlength=len(mined.ids))


def _who(table: Table, mined: Mined) -> str:
    every = len(table.queries) == len(mined.ids)
    who = f"every entry mines {table.indices.shape[1]}" if every else (
        f"{len(table.queries):,} of {len(mined.ids):,} entries mine {table.indices.shape[1]} each"
    )  # fmt: skip
    return who[0].upper() + who[1:]
