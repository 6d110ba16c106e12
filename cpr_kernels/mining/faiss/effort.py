"""Chooses how hard a search tries, by its measured recall, and warns where that is low."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..schedule import Schedule
from .search import fetch_count
from .settings import SearchSettings
from .store import VectorStore

SAMPLE = 128  # entries that serve as queries: with 5 positives each, 0.95 is known to about 0.01
EXPECTED_RECALL = 0.9  # below, an index whose settings name no recall warns
MOST_OVERFETCH = 64.0  # of PQ codes: beyond, what is ranked exactly costs more than better codes


class MeasuredSearch(NamedTuple):
    """Holds the settings of a search, and the share of the exact cascade's entries that was measured with them."""

    settings: SearchSettings
    recall: float


def overlap(exact: Tensor, found: Tensor) -> Tensor:
    """Returns the share [B] of each query's entries in `exact` [B, k] that are in `found` [B, m].

    -1 is no entry; the share is 1 where `exact` has none.
    """
    hits = [
        torch.isin(e[e >= 0], f[f >= 0]).sum() / max(int((e >= 0).sum()), 1) for e, f in zip(exact, found)
    ]
    none = (exact < 0).all(dim=1)
    return torch.stack(hits).masked_fill(none, 1.0) if hits else torch.ones(1)


def choose_effort(
    store: VectorStore, settings: SearchSettings, keep: int, measure: Callable[[SearchSettings], float]
) -> MeasuredSearch:
    """Returns the least effort whose measured recall reaches `settings.recall`, to an eighth; the default without one.

    The effort is doubled from the default on, for PQ codes together with the overfetch, then bisected. Where even the
    highest does not reach the recall, the best that was measured is returned.

    Args:
        store: the index.
        settings: without an effort.
        keep: entries that stage 1 keeps.
        measure: returns the recall under the settings given.
    """
    target = settings.recall
    settings = replace(settings, recall=None)
    best, reached = settings, measure(settings)
    if target is None or reached >= target:
        return MeasuredSearch(best, reached)
    low, high = 0, store.effort_for(fetch_count(store, settings, keep))
    overfetch = settings.overfetch or (2.0 if store.coded else 1.0)
    most = max(min(MOST_OVERFETCH, store.held / keep), overfetch) if store.coded else overfetch
    while reached < target and (high < store.max_effort or overfetch < most):
        low, high, overfetch = high, min(2 * high, store.max_effort), min(2 * overfetch, most)
        tried = replace(settings, effort=high, overfetch=overfetch)
        if (recall := measure(tried)) > reached:
            best, reached = tried, recall
    while reached >= target and high - low > max(1, high // 8):
        middle = (low + high) // 2
        tried = replace(best, effort=middle)
        if (recall := measure(tried)) >= target:
            best, reached, high = tried, recall, middle
        else:
            low = middle
    return MeasuredSearch(best, reached)


def warn_of_low_recall(store: VectorStore, schedule: Schedule, expected: float | None, recall: float) -> None:
    """Warns where the measured recall is below `expected`, or below 0.9 where that is None."""
    if recall >= (expected or EXPECTED_RECALL):
        return
    advice = (
        "give settings=SearchSettings(recall=0.95), which sets the effort by measuring, or mine exactly without the "
        "index (backend='auto')"
        if expected is None
        else "no effort reaches it: use a finer factory (IVF<cells>,Flat, more bytes of PQ, more links of HNSW), or "
        "mine exactly without the index (backend='auto')"
    )
    warnings.warn(
        f"FaissIndex: {store.factory or store.kind} at its {'default' if expected is None else 'best'} effort finds "
        f"{recall:.0%} of the exact cascade's entries under {schedule}, measured on the index's own entries; expected "
        f"at least {expected or EXPECTED_RECALL:.0%}: {advice}",
        UserWarning,
        stacklevel=_frames_of_this_package(),
    )


def _frames_of_this_package() -> int:
    """Returns the `stacklevel` at which `warn_of_low_recall` names the user's line."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("cpr_kernels."):
        level, frame = level + 1, frame.f_back
    return level
