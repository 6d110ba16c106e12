"""Shows how mining fares without labels: the agreement of the views beside PMR, and the plans chosen by it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from .... import MiningPlan
from ....tuning.agreement import rank_correlation
from ....tuning.candidates import COLUMNS
from ... import TrainError
from ...pretrain.run_folder import plan_files


def tracking(epochs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns, for each phase with agreement, how many epochs have it and its last value.

    Where three epochs or more have PMR too, `rho` is the rank correlation of the two over these epochs, else None.
    """
    phases: dict[str, list[tuple[float, float | None]]] = {}
    for line in epochs:
        if "mined" in line.get("agreement", {}):
            pmr = line["mining"].get("mined", {}).get("pmr")
            phases.setdefault(line["phase"], []).append((line["agreement"]["mined"], pmr))
    rows = []
    for phase, pairs in phases.items():
        known = [(agreed, pmr) for agreed, pmr in pairs if pmr is not None]
        rho = rank_correlation(*zip(*known)) if len(known) >= 3 else math.nan
        rows.append(
            {
                "phase": phase,
                "epochs": len(pairs),
                "last": pairs[-1][0],
                "rho": None if math.isnan(rho) else rho,
            }
        )
    return rows


def plan_tables(run: Path) -> list[dict[str, Any]]:
    """Returns the plan that each phase chose, in words, and the table of what it was chosen from.

    Raises:
        TrainError: a plan's file that is damaged.
    """
    plans = []
    for phase, path in plan_files(run):
        try:
            plan = MiningPlan.load(path)
        except ValueError as error:
            raise TrainError(f"run: {error}") from None
        rows = [{"cells": tried.row(), "strong": tried.chosen} for tried in plan.candidates]
        plans.append({"phase": phase, "says": plan.summary(), "columns": COLUMNS, "rows": rows})
    return plans
