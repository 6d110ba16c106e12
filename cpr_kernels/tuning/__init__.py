"""Which settings mine best, when there are no labels to tell?"""

from __future__ import annotations

from .estimate import estimate_agreement
from .miner import Mined, Miner
from .plan import MiningPlan, PlanKeys
from .steps import Expansion
from .tune import tune_schedule
from .whitening import Whitener

__all__ = [
    "Expansion",
    "Mined",
    "Miner",
    "MiningPlan",
    "PlanKeys",
    "Whitener",
    "estimate_agreement",
    "tune_schedule",
]
