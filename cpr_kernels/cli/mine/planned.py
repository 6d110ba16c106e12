"""`cpr mine --plan`: a table as a mining plan compares it, so that the cascade runs on it like on any other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...tuning import MiningPlan, PlanKeys
from .embeddings import Prepared, Preparing, prepare
from .options import DTYPES, Mine

SHAPING = ("schedule", "preset", "order", "stages", "ratio", "topk")


def load_plan(args: Mine, views: Sequence[str]) -> MiningPlan:
    """Returns the plan that the options name.

    Raises:
        ValueError: options that do not go with a plan, a file that is none, or a plan of views that are not there.
    """
    assert args.plan is not None
    given = [name for name in SHAPING if getattr(args, name) is not None]
    if given or args.center or not args.normalize:
        flag = given[0] if given else "center" if args.center else "no-normalize"
        raise ValueError(f"--{flag}: does not go with --plan, which says how to mine")
    plan = MiningPlan.load(args.plan)
    lacking = [view for view in plan.whiten if view not in views]
    if lacking:
        raise ValueError(
            f"--plan: {args.plan} is of the view {lacking[0]!r}; the table has {', '.join(views)}"
        )
    return plan


def raw_rows(array: Any, scratch: Path) -> Tensor:
    """Returns rows of a view [N, D] in float32; a row that is not finite is NaN throughout."""
    return raw_view(array, scratch).rows


def raw_view(array: Any, scratch: Path) -> Prepared:
    """Returns rows as :func:`raw_rows` does, with how many are not finite."""
    return prepare(array, Preparing(None, False, torch.float32, scratch))


def missing_notes(views: Mapping[str, Prepared]) -> list[str]:
    """Returns a sentence for each view of which some rows count as missing for a NaN or an infinity."""
    return [
        f"{made.not_finite:,} rows of {name} hold NaN or infinity: they count as missing in that view"
        for name, made in views.items()
        if made.not_finite
    ]


class PlannedQueries:
    """Query rows by view as the plan compares them, made on first use."""

    def __init__(
        self,
        plan: MiningPlan,
        keys: PlanKeys,
        arrays: Mapping[str, Any],
        ids: Tensor | None,
        args: Mine,
    ) -> None:
        self.plan, self.keys, self.arrays, self.ids = plan, keys, arrays, ids
        self.dtype, self.scratch = DTYPES[args.dtype], args.scratch
        self.not_finite = dict.fromkeys(arrays, 0)

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def rows(self, start: int, stop: int) -> dict[str, Tensor]:
        """``{view: [stop - start, R]}``."""
        return self.pick(torch.arange(start, stop))

    def pick(self, rows: Tensor) -> dict[str, Tensor]:
        """``{view: [R, D]}`` of scattered rows."""
        views = {name: raw_rows(array[rows.numpy()], self.scratch) for name, array in self.arrays.items()}
        made = self.plan.query_features(views, self.keys, None if self.ids is None else self.ids[rows])
        return {name: view.to(self.dtype) for name, view in made.items()}
