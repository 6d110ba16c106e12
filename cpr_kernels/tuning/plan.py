"""A mining plan: whiteners, expansion, hub term and schedule, and the table of candidates it was chosen from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..dispatch.tensor_checks import check_one_kind
from ..mining import Schedule, Stage, cascade_topk
from . import plan_files
from .candidates import COLUMNS, Candidate, schedule_text
from .checks import check_features, check_ids, check_varied
from .steps import HUB_WEIGHT, Expansion, Neighbors, expanded, hub_count, hub_terms, joint_neighbors
from .whitening import Whitener, present, principal_axes

HUB_VIEW = "hub term"  # the name of the view that carries hub terms through a cascade


class PlanKeys(NamedTuple):
    """Holds keys as a plan compares them; :meth:`MiningPlan.prepare_keys` makes it."""

    whitened: dict[str, Tensor]  # {view: [N, R]}, what expansion adds to a query
    views: dict[str, Tensor]  # {view: [N, R]}, expanded; `whitened` itself without expansion
    ids: Tensor  # [N] int64, -1 where the row takes no part
    hub: Tensor | None  # [N] float32


@dataclass(frozen=True, eq=False)
class MiningPlan:
    """Says how to mine: whiten each view, expand by neighbours, run the schedule, subtract half of the hub terms.

    :func:`tune_schedule` makes it. It prints as the table of what was tried, compares equal by value, and is kept by
    :meth:`save` and :meth:`load`.

    Attributes:
        whiten: ``{view: Whitener(mean [D], matrix [D, R] or None)}`` of the views that the schedule scores by.
        expand: ``Expansion(neighbors, power)``, or None.
        hub: how many neighbours the hub term averages (at most a 20th of the keys), or None. The last stage then
            keeps as many, of which the `topk` highest in ``score - hub[j] / 2`` stay.
        schedule: what runs on the whitened, expanded rows.
        candidates: all that was tried, best first; empty for a plan made by hand.
        confidence: share of resamples of the queries in which the best candidate agrees more than the runner-up.
        doubt: why nothing could be chosen, the plan being the plain joint score; empty where something was.
        power: of the whitening, with which :meth:`refitted` fits whiteners anew; None for other whiteners.

    Raises:
        ValueError: parts that do not fit together.
    """

    whiten: Mapping[str, Whitener]
    expand: Expansion | None
    hub: int | None
    schedule: Schedule
    candidates: tuple[Candidate, ...] = ()
    confidence: float = math.nan
    doubt: str = ""
    power: float | None = None

    def __post_init__(self) -> None:
        without = [view for view in self.schedule.views if view not in self.whiten]
        if without:
            raise ValueError(
                f"MiningPlan: the schedule scores by {without[0]!r}, but whiten has no such view"
            )
        if HUB_VIEW in self.whiten:
            raise ValueError(f"MiningPlan: a view must not be called {HUB_VIEW!r}; rename it")
        if self.hub is not None and self.hub < 1:
            raise ValueError(f"MiningPlan: hub must be a count >= 1 or None, got {self.hub}")
        if self.expand is not None and (self.expand.neighbors < 1 or not self.expand.power >= 0):
            raise ValueError(
                f"MiningPlan: expand must be (neighbors >= 1, power >= 0), got {tuple(self.expand)}"
            )

    @property
    def topk(self) -> int:
        """Returns the number of positives per query."""
        return self.schedule.topk

    def to(self, device: torch.device | str) -> MiningPlan:
        """Returns the same plan with its whiteners on another device."""
        return replace(self, whiten={view: whitener.to(device) for view, whitener in self.whiten.items()})

    def refitted(self, views: Mapping[str, Tensor]) -> MiningPlan:
        """Returns the same plan with its whiteners fitted to other rows of the same views.

        Raises:
            ValueError: a plan without a power of whitening, or rows too few or too alike to fit to.
        """
        if self.power is None:
            raise ValueError(
                "MiningPlan: was made without a power of whitening, so its whiteners cannot be fitted anew"
            )
        check_features("MiningPlan", views, self.sizes)
        used = {view: views[view] for view in self.whiten}
        check_varied("MiningPlan", used)
        return replace(
            self, whiten={view: principal_axes(rows).whitener(self.power) for view, rows in used.items()}
        )

    def whitened(self, views: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the views that the plan uses, whitened: ``{view: [B, R]}`` float32; a missing view is zeros.

        Raises:
            ValueError: a view that is not there or of another size, or rows with NaN beside numbers.
        """
        check_features("MiningPlan", views, self.sizes)
        return {view: whitener(views[view]) for view, whitener in self.whiten.items()}

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Returns ``{view: D}``."""
        return {view: len(white.mean) for view, white in self.whiten.items()}

    def prepare_keys(self, views: Mapping[str, Tensor], ids: Tensor | None = None) -> PlanKeys:
        """Returns the keys as the plan compares them: whitened, expanded by each other, with their hub terms.

        Args:
            views: ``{view: [N, D]}`` raw embeddings.
            ids: [N] int64 source of each key, -1 for an empty slot; None: each its own.
        """
        whitened = self.whitened(views)
        ids = check_ids("MiningPlan", ids, {view: views[view] for view in self.whiten})
        keys = PlanKeys(whitened, whitened, ids, None)
        if self.expand is not None:
            keys = keys._replace(views=self.expanded(whitened, keys, ids))
        if self.hub is not None:
            near = Neighbors(*cascade_topk(keys.views, keys.views, self.wide, query_ids=ids, key_ids=ids))
            keys = keys._replace(hub=self.hub_terms(near, keys))
        return keys

    def expanded(
        self, whitened: Mapping[str, Tensor], keys: PlanKeys, ids: Tensor | None
    ) -> dict[str, Tensor]:
        """Returns whitened rows with their nearest keys added, as `expand` says."""
        if self.expand is None:
            return dict(whitened)
        near = joint_neighbors(whitened, keys.whitened, self.expand.neighbors, ids, keys.ids)
        return expanded(whitened, keys.whitened, near, self.expand)

    @cached_property
    def wide(self) -> Schedule:
        """Returns the schedule whose last stage keeps `hub` entries or more, among which hub terms are subtracted."""
        if self.hub is None:
            return self.schedule
        keep = max(self.hub, self.topk)
        if len(self.schedule) > 1:
            keep = min(keep, self.schedule[-2].keep)
        return self.schedule.with_topk(keep)

    @cached_property
    def cascade(self) -> Schedule:
        """Returns the plan as one cascade over :meth:`query_features` and :meth:`key_features`."""
        if self.hub is None:
            return self.schedule
        return Schedule([*self.wide, Stage({**self.schedule[-1].weights, HUB_VIEW: 1.0}, self.topk)])

    def query_features(
        self, views: Mapping[str, Tensor], keys: PlanKeys, ids: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Returns raw queries as `cascade` compares them: whitened, expanded, and ones as the view of hub terms."""
        rows = self.expanded(self.whitened(views), keys, ids)
        if self.hub is not None:
            rows[HUB_VIEW] = next(iter(rows.values())).new_ones(len(next(iter(rows.values()))), 1)
        return rows

    def key_features(self, keys: PlanKeys) -> dict[str, Tensor]:
        """Returns prepared keys as `cascade` compares them; the view of hub terms holds ``-hub / 2``, [N, 1]."""
        if keys.hub is None:
            return dict(keys.views)
        return {**keys.views, HUB_VIEW: -HUB_WEIGHT * keys.hub[:, None]}

    def hub_terms(self, near: Neighbors, keys: PlanKeys) -> Tensor:
        """Returns the mean of each row's highest scores [B], float32."""
        assert self.hub is not None
        return hub_terms(near.scores, hub_count(self.hub, len(keys.ids), self.topk))[:, 0]

    def mine(
        self, queries: Mapping[str, Tensor], keys: PlanKeys, query_ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mines positives for raw queries among prepared keys.

        Args:
            queries: ``{view: [B, D]}``.
            keys: what :meth:`prepare_keys` returned.
            query_ids: [B] int64 source of each query; keys of the same source are never selected.

        Returns:
            ``indices [B, topk]`` int64 padded with -1, and ``scores [B, topk]`` float32, less half of the hub terms
            where the plan has them, padded with -inf; by (score descending, index ascending). A query without any of
            the views mines nothing.
        """
        check_one_kind("MiningPlan", (*queries.values(), *keys.views.values(), query_ids))
        rows, features = self.query_features(queries, keys, query_ids), self.key_features(keys)
        indices, scores = cascade_topk(rows, features, self.cascade, query_ids=query_ids, key_ids=keys.ids)
        lost = ~torch.stack([present(queries[view]) for view in self.whiten]).any(dim=0)[:, None]
        return indices.masked_fill(lost, -1), scores.masked_fill(lost, -torch.inf)

    def save(self, path: str | Path) -> None:
        """Writes the plan as JSON to `path`, and its whiteners beside it with the suffix `.safetensors`."""
        plan_files.write(self.to_dict(), self.whiten, Path(path))

    @classmethod
    def load(cls, path: str | Path) -> MiningPlan:
        """Reads what :meth:`save` wrote.

        Raises:
            ValueError: a file that is missing, cut, of another kind, or not the one saved with it.
        """
        found, whiten = plan_files.read(Path(path))
        return plan_files.checked(Path(path), lambda: cls.from_dict(found, whiten))

    @classmethod
    def from_dict(cls, found: Mapping[str, Any], whiten: Mapping[str, Whitener]) -> MiningPlan:
        """Makes a plan of what :meth:`to_dict` returned, and its whiteners."""
        expand, hub, confidence = found["expand"], found["hub"], found["confidence"]
        return cls(
            whiten,
            None if expand is None else Expansion(int(expand["neighbors"]), float(expand["power"])),
            None if hub is None else int(hub),
            Schedule.from_list(found["schedule"]),
            tuple(Candidate.of_dict(tried) for tried in found["candidates"]),
            math.nan if confidence is None else float(confidence),
            str(found["doubt"]),
            None if found["power"] is None else float(found["power"]),
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns all but the whiteners' numbers, ready for JSON."""
        return {
            "schedule": self.schedule.to_list(),
            "expand": None if self.expand is None else self.expand._asdict(),
            "hub": self.hub,
            "power": self.power,
            "confidence": None if math.isnan(self.confidence) else self.confidence,
            "doubt": self.doubt,
            "candidates": [tried.to_dict() for tried in self.candidates],
        }

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, MiningPlan):
            return NotImplemented
        same = self.to_dict() == other.to_dict() and list(self.whiten) == list(other.whiten)
        return same and all(_equal(white, other.whiten[view]) for view, white in self.whiten.items())

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        rows = [COLUMNS, *(tried.row() for tried in self.candidates)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in rows]
        return "\n".join([self.summary(), *(lines if self.candidates else [])])

    def summary(self) -> str:
        """Returns the choice in words: the plan's steps, how sure it is, or why it cannot tell."""
        steps = [self.describe()]
        if self.doubt:
            steps.append(f"cannot tell: {self.doubt}")
        elif not math.isnan(self.confidence):
            steps.append(
                f"the best candidate agrees more than the runner-up in {self.confidence:.0%} of resamples"
            )
        return "\n".join(steps)

    def describe(self) -> str:
        """Returns the plan's steps in a line."""
        words = [] if self.power is None else [f"whitening {self.power:g}"]
        if self.expand is not None:
            words.append(f"expansion {self.expand.neighbors} neighbours to the power {self.expand.power:g}")
        if self.hub is not None:
            words.append(f"hub term of {self.hub}")
        return f"MiningPlan: {schedule_text(self.schedule)}" + "".join(f", {word}" for word in words)


def _equal(first: Whitener, second: Whitener) -> bool:
    if (first.matrix is None) != (second.matrix is None):
        return False
    pairs = [(first.mean, second.mean)]
    if first.matrix is not None and second.matrix is not None:
        pairs.append((first.matrix, second.matrix))
    return all(torch.equal(a.cpu(), b.cpu()) for a, b in pairs)
