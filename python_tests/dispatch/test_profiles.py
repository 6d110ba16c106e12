"""What torch's own tools see of the ops: operations for the FLOP counter, names and backends in the profiler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import LossCase
from torch.utils.flop_counter import FlopCounterMode

import cpr_kernels.flops  # noqa: F401  registers the formulas
from cpr_kernels import MultiViewQueue, Schedule, cascade_rerank, cascade_topk, mil_nce

QUERIES = {"flow": torch.randn(7, 8), "rgb": torch.randn(7, 5), "audio": torch.randn(7, 3)}
KEYS = {"flow": torch.randn(40, 8), "rgb": torch.randn(40, 5), "audio": torch.randn(40, 3)}
SCHEDULE = Schedule([("flow", 20), ("rgb", 10), ("flow", 4)])  # audio judges nowhere


def counted(run: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def test_mining_counts_the_products_of_views_that_judge() -> None:
    assert counted(lambda: cascade_topk(QUERIES, KEYS, SCHEDULE)) == 2 * 7 * 40 * (8 + 5)
    listed = torch.randint(0, 40, (7, 12))
    assert counted(lambda: cascade_rerank(QUERIES, KEYS, SCHEDULE, listed)) == 2 * 7 * 12 * (8 + 5)
    plain = counted(lambda: QUERIES["flow"] @ KEYS["flow"].T)
    assert counted(lambda: cascade_topk(QUERIES, KEYS, Schedule([("flow", 4)]))) == plain


@pytest.mark.parametrize("negatives", [None, 11])
def test_the_loss_counts_a_pass_for_values_and_one_for_each_gradient(negatives: int | None) -> None:
    call = LossCase("", 6, 40, 8, positives=3, negatives=negatives).call()
    products = 2 * 6 * 8 * (1 + (40 if negatives is None else 3 + negatives))  # with the own pair
    own = 2 * 6 * 8
    loss = lambda: mil_nce(*call[:5], negatives=call.negatives)  # noqa: E731
    assert counted(loss) == products
    call.query.requires_grad_()
    assert counted(lambda: loss().backward()) == 2 * products
    call.keys.requires_grad_()
    assert counted(lambda: loss().backward()) == 2 * products + 2 * (products - own)


def test_profiles_name_ops_and_backends() -> None:
    call = LossCase("", 6, 40, 8).call()
    leaves = call.query.requires_grad_(), call.positive, call.keys.requires_grad_(), call.positives
    queue = MultiViewQueue({"rgb": 5}, size=8)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        cascade_topk(QUERIES, KEYS, SCHEDULE)
        cascade_topk(QUERIES, KEYS, SCHEDULE, backend="reference")
        mil_nce(*leaves).backward()
        queue.enqueue({"rgb": QUERIES["rgb"]})
    names = {event.name for event in profile.events()}
    ranges = {"cpr::cascade_topk (native)", "cpr::cascade_topk (reference)", "cpr::mil_nce (native)"}
    assert {"cpr::cascade_topk", "cpr::mil_nce", "cpr::enqueue_"} <= names
    assert ranges | {"cpr::mil_nce, gradient of the keys (native)"} <= names
