"""How good is the mining? Index tables and labels in, numbers out; streaming versions as `torchmetrics.Metric`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .functional import (
    class_mining_recall,
    median_recall,
    positive_mining_recall,
    retrieval_recall_at_k,
    true_positives,
)

if TYPE_CHECKING:
    from .streaming import ClassMiningRecall as ClassMiningRecall
    from .streaming import PositiveMiningRecall as PositiveMiningRecall
    from .streaming import RetrievalRecallAtK as RetrievalRecallAtK

STREAMING = ("PositiveMiningRecall", "ClassMiningRecall", "RetrievalRecallAtK")

__all__ = [
    "class_mining_recall",
    "median_recall",
    "positive_mining_recall",
    "retrieval_recall_at_k",
    "true_positives",
    *STREAMING,
]


def __getattr__(name: str) -> Any:
    """Loads the `torchmetrics.Metric` versions when they are first used (torchmetrics is an extra)."""
    if name in STREAMING:
        from . import streaming

        return getattr(streaming, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
