"""The cascade under torch.func: vmap equals one call after another, and gradients of the rest pass by it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import SMALL_CASES, CascadeCase, listed
from torch import Tensor

from cpr_kernels import cascade_topk, cpr_schedule

CASES = {case.name: case for case in SMALL_CASES}
SIZE = 3


def batched(value: Tensor | None, dim: int | None) -> Tensor | None:
    """Three different versions of `value` along `dim`; itself where every call shares it."""
    if value is None or dim is None:
        return value
    if value.dtype == torch.bool:
        versions = [value, ~value, value.flip(0)]
    else:
        versions = [value, value.flip(0), value.roll(1, 0)]
    return torch.stack(versions, dim=dim)


def one(value: Any, dim: Any, i: int) -> Any:
    if isinstance(value, list):
        return [one(v, d, i) for v, d in zip(value, dim)] if isinstance(dim, list) else value
    return value if dim is None or value is None else value.select(dim, i)


@pytest.mark.parametrize("rerank", [False, True])
@pytest.mark.parametrize("shared", ["keys", "nothing", "queries", "all but exclude"])
@pytest.mark.parametrize("name", ["primes", "everything at once", "no query", "empty queue", "bf16"])
def test_vmap_is_one_call_after_another(name: str, shared: str, rerank: bool) -> None:
    case: CascadeCase = CASES[name]
    call = listed(case.call(), 20) if rerank else case.call()
    op = torch.ops.cpr.cascade_rerank if rerank else torch.ops.cpr.cascade_topk
    per_query = {"queries": 1, "candidates": 0, "query_ids": 0, "exclude": 0}
    per_key = {"keys": 0, "key_ids": 0}
    chosen: dict[str, int] = {
        "keys": per_query,
        "nothing": per_query | per_key,
        "queries": per_key,
        "all but exclude": {"queries": 0, "exclude": 0},
    }[shared]
    given, dims = [], []
    for field, value in zip(call._fields, call):
        dim = chosen.get(field) if value is not None else None
        if field in ("queries", "keys"):
            given.append([batched(t, dim) for t in value])
            dims.append([dim] * len(value))
        else:
            given.append(batched(value, dim) if isinstance(value, Tensor) else value)
            dims.append(dim)
    tensors = [i for i, v in enumerate(given) if isinstance(v, Tensor) or i < 2]

    def run(*some: Any) -> Any:
        full = list(given)
        for i, value in zip(tensors, some):
            full[i] = value
        return op(*full)

    in_dims = tuple(dims[i] for i in tensors)
    if all(d is None or d == [None] * len(call.queries) for d in in_dims):
        pytest.skip("the case has nothing to batch")
    got = torch.vmap(run, in_dims)(*(given[i] for i in tensors))
    each = [op(*(one(v, d, i) for v, d in zip(given, dims))) for i in range(SIZE)]
    for part, expected in zip(got, zip(*each)):
        assert torch.equal(part, torch.stack(expected))


def test_a_batch_of_queries_is_one_call_of_the_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    from cpr_kernels.mining import native

    plain = native.run
    monkeypatch.setattr(native, "run", lambda call: calls.append(len(call.queries[0])) or plain(call))
    keys = {"flow": torch.randn(64, 8), "rgb": torch.randn(64, 8)}
    queries = {name: torch.randn(5, 3, 8) for name in keys}
    mined = torch.vmap(lambda q: cascade_topk(q, keys, cpr_schedule(num_keys=64, stages=3)))(queries)
    assert calls == [15]
    assert mined[0].shape == (5, 3, 5)


def test_the_gradient_of_a_step_passes_by_the_mining() -> None:
    keys = {"flow": torch.randn(64, 8), "rgb": torch.randn(64, 8)}
    schedule = cpr_schedule(num_keys=64, stages=3)

    def step(query: Tensor) -> Tensor:
        mined, _ = cascade_topk({"flow": query, "rgb": query}, keys, schedule)
        return torch.ops.cpr.mil_nce(query, query.detach(), keys["rgb"], mined, 0.5).sum()

    query = torch.randn(4, 8)
    by_func = torch.func.grad(step)(query)
    leaf = query.clone().requires_grad_()
    assert torch.equal(by_func, torch.autograd.grad(step(leaf), leaf)[0])
