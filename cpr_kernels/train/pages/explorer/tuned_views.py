"""Puts a mining plan into the explorer: its rows as further views, its hub terms as one without queries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .... import MiningPlan, Schedule, Stage
from ....tuning import PlanKeys
from ....tuning.plan import HUB_VIEW
from .packed import packed


class Tuned(NamedTuple):
    """Holds a plan's views of the rows {name: [N, R]}, which of them are hub terms, and its schedule in their names."""

    views: dict[str, Tensor]
    labels: dict[str, str]
    hub: str | None
    schedule: Schedule

    def packed(self, rows: Mapping[str, Tensor], bits: int) -> list[dict[str, Any]]:
        """Returns the views as the page reads them, of `rows` in place of the plan's own where they are shortened."""
        return [
            {
                "name": name,
                "label": self.labels[name],
                **({"bias": True} if name == self.hub else {}),
                **packed(rows.get(name, view), bits),
            }
            for name, view in self.views.items()
        ]


def tuned_views(
    plan: MiningPlan, keys: PlanKeys, number: int = 1, label: Callable[[str], str] = str
) -> Tuned:
    """Returns a plan's views of the entries, and its schedule in these views' names.

    Every entry is a query too, and the plan transforms an entry alike as query and as key. The view `hub` holds minus
    half of each key's hub term: the page takes it as the score, whatever the query. Rows that take no part are NaN.

    Args:
        plan: the plan.
        keys: what its `prepare_keys` returned.
        number: of the plan in the page; the second one's views are called ``tuned2_rgb``, ``hub2``.
        label: how a view is called in the page.
    """
    suffix = "" if number == 1 else str(number)
    features = plan.key_features(keys)
    names = {view: f"tuned{suffix}_{view}" for view in plan.whiten} | {HUB_VIEW: f"hub{suffix}"}
    lost = (keys.ids < 0)[:, None]
    views = {names[view]: rows.masked_fill(lost, torch.nan) for view, rows in features.items()}
    labels = {
        names[view]: f"hub term{suffix}" if view == HUB_VIEW else f"{label(view)}, tuned{suffix}"
        for view in features
    }
    stages = []
    for stage in plan.cascade:
        most = max(stage.weights[view] for view in stage.weights if view != HUB_VIEW)  # a mean becomes a sum
        weights = {names[view]: weight / most for view, weight in stage.weights.items()}
        stages.append(Stage(weights, stage.keep))
    return Tuned(views, labels, names[HUB_VIEW] if HUB_VIEW in features else None, Schedule(stages))
