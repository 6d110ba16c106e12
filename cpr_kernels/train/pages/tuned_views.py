"""Puts a mining plan into the explorer: its rows as further views of a run, its hub terms as one without queries."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ... import MiningPlan, Schedule, Stage
from ...tuning.plan import HUB_VIEW
from ..views.names import label

HUB = "hub"


def quantized(rows: Tensor) -> dict[str, Any]:
    """Returns embeddings [N, D] as 16-bit integers: {size, scale, data}; a row is integers * scale."""
    values: npt.NDArray[np.float32] = rows.detach().cpu().float().numpy()
    scale = float(np.abs(values).max()) / 32767 or 1.0
    integers = np.round(values / scale).astype("<i2")
    return {"size": values.shape[1], "scale": scale, "data": base64.b64encode(integers.tobytes()).decode()}


def int16_rows(view: dict[str, Any]) -> Tensor:
    """Returns the integers [N, D] of a quantised view, float64: products and sums of them are exact."""
    integers = np.frombuffer(base64.b64decode(view["data"]), "<i2")
    return torch.from_numpy(integers.astype(np.float64)).view(-1, view["size"])


def tuned_views(
    plan: MiningPlan, views: Mapping[str, Tensor], sources: Tensor
) -> tuple[list[dict[str, Any]], Schedule]:
    """Returns a plan's views of the entries as the page reads them, and its schedule in these views' names.

    Every entry is a query too, and the plan transforms an entry alike as query and as key. The view `hub` holds minus
    half of each key's hub term: with `bias` the page takes it as the score, whatever the query.
    """
    keys = plan.prepare_keys(views, sources)
    features, names = (
        plan.key_features(keys),
        {view: f"tuned_{view}" for view in plan.whiten} | {HUB_VIEW: HUB},
    )
    made = [
        {"name": names[view], "label": f"{label(view)}, tuned", **quantized(rows)}
        for view, rows in features.items()
        if view != HUB_VIEW
    ]
    if HUB_VIEW in features:
        made.append({"name": HUB, "label": "hub term", "bias": True, **quantized(features[HUB_VIEW])})
    stages = []
    for stage in plan.cascade:
        most = max(stage.weights[view] for view in stage.weights if view != HUB_VIEW)  # a mean becomes a sum
        weights = {names[view]: weight / most for view, weight in stage.weights.items()}
        stages.append(Stage(weights, stage.keep))
    return made, Schedule(stages)
