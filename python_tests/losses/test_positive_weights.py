"""Weights of listed positives in `mil_nce`, against the sum written out pair by pair."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from cpr_kernels import MILNCELoss, explain, mil_nce

B, N, D, P = 6, 20, 4, 5
TEMPERATURE = 0.2


def arguments(dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, ...]:
    """Unit vectors, listed positives with padding and a repeat, weights with zeros, ids with siblings and empty slots."""
    g = torch.Generator().manual_seed(seed)
    query, positive, keys = (
        torch.nn.functional.normalize(torch.randn(rows, D, generator=g, dtype=dtype), dim=1)
        for rows in (B, B, N)
    )
    listed = torch.randint(-1, N, (B, P), generator=g)
    listed[:, 3] = listed[:, 0]
    listed[5] = -1
    weights = torch.rand(B, P, generator=g, dtype=dtype).round(decimals=1)
    weights[1], weights[2, 1] = 0, 3
    ids, key_ids = torch.arange(B), torch.randint(-1, 12, (N,), generator=g)
    return query, positive, keys, listed, weights, ids, key_ids


def written_out(query, positive, keys, listed, weights, *, ids=None, key_ids=None, use_own=None, siblings=1) -> Tensor:  # fmt: skip
    """The loss by its formula, a query and an entry at a time."""
    losses = []
    for b in range(B):
        own = math.exp(float(query[b] @ positive[b]) / TEMPERATURE)
        every, others = own, 0.0
        for j in range(N):
            term = math.exp(float(query[b] @ keys[j]) / TEMPERATURE)
            sibling = ids is not None and int(key_ids[j]) == int(ids[b])
            if (key_ids is not None and key_ids[j] < 0) or (sibling and siblings == 2):
                continue
            every += term
            places = (listed[b] == j).nonzero()
            if sibling and siblings == 1:
                others += term
            elif len(places):
                others += float(weights[b, places[0, 0]]) * term
        with_own = use_own is None or bool(use_own[b]) or others == 0
        losses.append(math.log(every) - math.log(others + own * with_own))
    return torch.tensor(losses, dtype=query.dtype)


CASES: dict[str, dict[str, Any]] = {
    "no ids": {"with_ids": False},
    "siblings are positives": {},
    "siblings are left out": {"siblings": 2},
    "siblings are negatives": {"siblings": 0},
    "own pair left out": {"use_own": torch.tensor([True, False, False, False, False, False])},
    "own pair left out, no ids": {"use_own": torch.zeros(B, dtype=torch.bool), "with_ids": False},
}


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", CASES)
def test_the_loss_is_the_formula(name: str, backend: str) -> None:
    settings = dict(CASES[name])
    query, positive, keys, listed, weights, ids, key_ids = arguments()
    named = {"ids": ids, "key_ids": key_ids} if settings.pop("with_ids", True) else {}
    expected = written_out(query, positive, keys, listed, weights, **named, **settings)
    masks = {"query_ids": named.get("ids"), "key_ids": named.get("key_ids"), **settings}
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 3e-6)):
        given = [t.to(dtype) for t in (query, positive, keys)]
        got = mil_nce(*given, listed, TEMPERATURE, positive_weights=weights.to(dtype), reduction="none", backend=backend, **masks)  # fmt: skip
        torch.testing.assert_close(got.double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", CASES)
def test_gradients(name: str) -> None:
    settings = dict(CASES[name])
    query, positive, keys, listed, weights, ids, key_ids = arguments()
    masks = {"query_ids": ids, "key_ids": key_ids} if settings.pop("with_ids", True) else {}
    leaves = [t.requires_grad_() for t in (query, positive, keys, weights.clamp(min=0.1))]

    def loss(query: Tensor, positive: Tensor, keys: Tensor, weights: Tensor) -> Tensor:
        return mil_nce(
            query, positive, keys, listed, TEMPERATURE, positive_weights=weights, reduction="none", **masks, **settings
        )  # fmt: skip

    assert torch.autograd.gradcheck(loss, leaves, fast_mode=True)


def test_the_kernels_gradients_are_those_of_float64() -> None:
    found = []
    for dtype in (torch.float32, torch.float64):
        query, positive, keys, listed, weights, ids, key_ids = arguments()
        leaves = [t.to(dtype).requires_grad_() for t in (query, positive, keys, weights)]
        criterion = MILNCELoss(TEMPERATURE)
        loss = criterion(*leaves[:3], listed, query_ids=ids, key_ids=key_ids, positive_weights=leaves[3])
        found.append(torch.autograd.grad(loss, leaves))
    for single, double in zip(*found):
        torch.testing.assert_close(single.double(), double, rtol=0, atol=3e-6)


@pytest.mark.parametrize("ids", [False, True], ids=["no ids", "ids"])
def test_a_weight_of_0_is_a_negative_and_1_a_positive(ids: bool) -> None:
    query, positive, keys, listed, weights, query_ids, key_ids = arguments(torch.float32)
    query.requires_grad_()
    masks = {"query_ids": query_ids, "key_ids": key_ids} if ids else {}

    def loss_and_gradient(listed: Tensor | None, **weighted: Tensor) -> tuple[Tensor, Tensor]:
        loss = mil_nce(query, positive, keys, listed, TEMPERATURE, reduction="none", **masks, **weighted)
        return loss, torch.autograd.grad(loss.sum(), query)[0]

    negatives, none = (
        loss_and_gradient(listed, positive_weights=torch.zeros_like(weights)),
        loss_and_gradient(None),
    )
    assert torch.equal(negatives[0], none[0])
    torch.testing.assert_close(negatives[1], none[1], rtol=0, atol=2e-6)
    ones = loss_and_gradient(listed, positive_weights=torch.ones_like(weights))
    for got, expected in zip(ones, loss_and_gradient(listed)):
        torch.testing.assert_close(got, expected, rtol=0, atol=3e-6)


def test_what_does_not_count_may_hold_nan() -> None:
    query, positive, keys, listed, weights, ids, key_ids = arguments(torch.float32)
    keys[key_ids < 0] = torch.nan
    listed[0, 0] = int((key_ids < 0).nonzero()[0, 0])
    leaves = [t.requires_grad_() for t in (query, positive, keys, weights)]
    loss = mil_nce(*leaves[:3], listed, query_ids=ids, key_ids=key_ids, positive_weights=weights)
    assert loss.isfinite() and all(g.isfinite().all() for g in torch.autograd.grad(loss, leaves))


def test_statistics_do_not_depend_on_weights() -> None:
    query, positive, keys, listed, weights, ids, key_ids = arguments(torch.float32)
    masks = {"query_ids": ids, "key_ids": key_ids}
    loss, stats = mil_nce(query, positive, keys, listed, positive_weights=weights, return_stats=True, **masks)
    assert torch.equal(loss, mil_nce(query, positive, keys, listed, positive_weights=weights, **masks))
    _, plain = mil_nce(query, positive, keys, listed, return_stats=True, **masks)
    assert all(torch.equal(a, b) for a, b in zip(stats, plain))


def test_it_compiles() -> None:
    query, positive, keys, listed, weights, ids, key_ids = arguments(torch.float32)

    def loss(query: Tensor) -> Tensor:
        return mil_nce(
            query, positive, keys, listed, query_ids=ids, key_ids=key_ids, positive_weights=weights
        )

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(query), loss(query))


def test_no_queue_and_no_list(capsys: pytest.CaptureFixture[str]) -> None:
    query, positive, keys, listed, weights, *_ = arguments(torch.float32)
    for size, places in ((0, 2), (N, 0)):
        few = listed[:, :places].clamp(max=size - 1), weights[:, :places]
        loss = mil_nce(query, positive, keys[:size], few[0], positive_weights=few[1])
        assert loss.isfinite()
    explain(mil_nce, query, positive, keys, listed, positive_weights=weights)
    assert "-> native" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"positive_weights": torch.ones(B, P).double()}, "positive_weights must be torch.float32, got torch.float64"),
        ({"positive_weights": torch.ones(B, P - 1)}, f"must have the shape [{B}, {P}] and device of positives, got [{B}, {P - 1}]"),
        ({"positive_weights": torch.full((B, P), -1.0)}, "must be finite and >= 0, got -1.0"),
        ({"positive_weights": torch.full((B, P), torch.nan)}, "must be finite and >= 0, got nan"),
        ({"positive_weights": 1.0}, "must be torch.float32, got float"),
        ({"negatives": torch.zeros(B, 2).long()}, "positive_weights cannot be used with negatives"),
    ],
)  # fmt: skip
def test_refusals(change: dict[str, Any], sentence: str) -> None:
    query, positive, keys, listed, weights, *_ = arguments(torch.float32)
    with pytest.raises(ValueError) as caught:
        mil_nce(query, positive, keys, listed, **({"positive_weights": weights} | change))
    assert sentence in str(caught.value)
