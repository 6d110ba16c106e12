"""Counts the floating-point operations of the ops for `torch.utils.flop_counter.FlopCounterMode`: inner products alone.

Importing this module registers the formulas; `import cpr_kernels` leaves it out, for torch's counter imports Triton.
A multiplication and an addition count as two, as in torch's own formulas; comparing and exponentials count nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

Shape = Sequence[int]


def _products(queries: Sequence[Shape], num_entries: int, weights: Sequence[float], num_stages: int) -> int:
    """Of every query with `num_entries` in each view that some stage weighs."""
    views = len(queries)
    weighed = [v for v in range(views) if any(weights[s * views + v] for s in range(num_stages))]
    return sum(2 * queries[v][0] * queries[v][1] * num_entries for v in weighed)


def cascade_flops(
    queries: Sequence[Shape],
    keys: Sequence[Shape],
    stage_weights: Sequence[float],
    stage_keep: Sequence[int],
    *_: Any,
    **__: Any,
) -> int:
    """Of `cpr::cascade_topk`: 2 B N D in every view that judges, however many stages it judges at."""
    return _products(queries, keys[0][0], stage_weights, len(stage_keep))


def rerank_flops(
    queries: Sequence[Shape],
    keys: Sequence[Shape],
    candidates: Shape,
    stage_weights: Sequence[float],
    stage_keep: Sequence[int],
    *_: Any,
    **__: Any,
) -> int:
    """Of `cpr::cascade_rerank`: 2 B C D in every view that judges."""
    return _products(queries, candidates[1], stage_weights, len(stage_keep))


def _logits(query: Shape, keys: Shape, positives: Shape, rest: Sequence[Any]) -> int:
    """Logits of all queries: one of the own pair, and N of the keys or, with negatives, P + M of the listed."""
    negatives = rest[4] if len(rest) > 4 else None  # after query_ids, key_ids, use_own, siblings
    return query[0] * (1 + (keys[0] if negatives is None else positives[1] + negatives[1]))


def loss_flops(
    query: Shape,
    positive: Shape,
    keys: Shape,
    positives: Shape,
    temperature: float,
    *rest: Any,
    want_gradient: bool = False,
    **_: Any,
) -> int:
    """Of the sweep of `cpr::mil_nce`: 2 D a logit, and as many for the query's gradient, which comes with it."""
    return (4 if want_gradient else 2) * _logits(query, keys, positives, rest) * query[1]


def keys_gradient_flops(
    query: Shape, positive: Shape, keys: Shape, positives: Shape, temperature: float, *rest: Any, **_: Any
) -> int:
    """Of the keys' gradient of `cpr::mil_nce`: the products again, and 2 D for every weight."""
    return 4 * (_logits(query, keys, positives, rest) - query[0]) * query[1]


FORMULAS: dict[str, Callable[..., int]] = {
    "cascade_topk": cascade_flops,
    "_cascade_topk_on": cascade_flops,
    "cascade_rerank": rerank_flops,
    "_cascade_rerank_on": rerank_flops,
    "_mil_nce_sweep": loss_flops,
    "_mil_nce_keys_gradient": keys_gradient_flops,
}
for _name, _formula in FORMULAS.items():
    register_flop_formula(getattr(torch.ops.cpr, _name))(_formula)
