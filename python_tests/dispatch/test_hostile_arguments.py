"""Arguments that would make a kernel read what is not there: refused in words on the way in, by every door."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from cpr_kernels import (
    MemoryBank,
    MultiViewQueue,
    Schedule,
    ShardedMultiViewQueue,
    Stage,
    _core,
    cascade_rerank,
    cascade_topk,
    mil_nce,
)
from cpr_kernels.memory import enqueue

SCHEDULE = Schedule([("a", 5)])
BACKENDS = ("auto", "native", "reference")
Change = Callable[[Tensor], Tensor]


def freed(tensor: Tensor) -> Tensor:
    tensor = tensor.clone()
    tensor.untyped_storage().resize_(0)
    return tensor


def part_of_freed(tensor: Tensor) -> Tensor:
    """Its address is its offset, not null."""
    whole = torch.cat([tensor, tensor])
    part = whole[len(tensor) :]
    whole.untyped_storage().resize_(0)
    return part


def fake(tensor: Tensor) -> Tensor:
    return FakeTensorMode().from_tensor(tensor)


def cascade(backend: str, **changes: Change) -> Any:
    given = {
        "queries": torch.randn(4, 8),
        "keys": torch.randn(50, 8),
        "key_ids": torch.arange(50),
        "query_ids": torch.arange(4),
    }
    given |= {name: change(given[name]) for name, change in changes.items()}
    ids = {name: given.pop(name) for name in ("query_ids", "key_ids")}
    return cascade_topk({"a": given["queries"]}, {"a": given["keys"]}, SCHEDULE, backend=backend, **ids)


def rerank(backend: str, **changes: Change) -> Any:
    given = {
        "queries": torch.randn(4, 8),
        "keys": torch.randn(50, 8),
        "candidates": torch.arange(40).view(4, 10),
    }
    given |= {name: change(given[name]) for name, change in changes.items()}
    return cascade_rerank(
        {"a": given["queries"]}, {"a": given["keys"]}, SCHEDULE, given["candidates"], backend=backend
    )


def loss(backend: str, **changes: Change) -> Any:
    given = {
        "query": torch.randn(4, 8), "positive": torch.randn(4, 8), "keys": torch.randn(50, 8), "key_ids": torch.arange(50),
        "query_ids": torch.arange(4), "positives": torch.zeros(4, 2).long(), "use_own": torch.ones(4) > 0,
    }  # fmt: skip
    given |= {name: change(given[name]) for name, change in changes.items()}
    return mil_nce(**given, backend=backend)


NAMED = [
    *((cascade, name, f"cascade_topk: {name}") for name in ("queries", "keys", "key_ids", "query_ids")),
    *((rerank, name, f"cascade_rerank: {name}") for name in ("queries", "keys", "candidates")),
    *((loss, name, f"mil_nce: {name}")
      for name in ("query", "positive", "keys", "key_ids", "query_ids", "positives", "use_own")),
]  # fmt: skip


@pytest.mark.parametrize(("call", "name", "begins"), NAMED, ids=[begins for _, _, begins in NAMED])
@pytest.mark.parametrize("backend", BACKENDS)
def test_freed_storage(call: Callable[..., Any], name: str, begins: str, backend: str) -> None:
    for change in (freed, part_of_freed):
        with pytest.raises(ValueError, match=re.escape(begins) + ".* has no memory: its storage was freed"):
            call(backend, **{name: change})
    call(backend)  # the others are whole


@pytest.mark.parametrize("layout", ["to_sparse", "to_sparse_csr", "to_mkldnn"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_layouts_that_are_not_dense(layout: str, backend: str) -> None:
    def change(tensor: Tensor) -> Tensor:
        return getattr(tensor, layout)()

    for call, name, begins in NAMED:
        if name in ("queries", "query", "positive", "keys"):
            with pytest.raises(
                ValueError, match=re.escape(begins) + r".* must be a dense tensor, got layout torch\."
            ):
                call(backend, **{name: change})


@pytest.mark.parametrize("backend", BACKENDS)
def test_fake_tensors_among_real_ones(backend: str) -> None:
    for call, name in (
        (cascade, "keys"),
        (cascade, "key_ids"),
        (rerank, "queries"),
        (loss, "query"),
        (loss, "positives"),
    ):
        with pytest.raises(ValueError, match=r"1 of \d tensors are FakeTensors, which hold no numbers"):
            call(backend, **{name: fake})


def test_queue_columns() -> None:
    queue = MultiViewQueue({"a": 8}, size=7)
    for change, sentence in (
        (freed, "rows[0] of shape [4, 8] has no memory"),
        (torch.Tensor.to_sparse, "must be a dense tensor"),
        (fake, "1 of 3 tensors are FakeTensors"),
    ):
        with pytest.raises(ValueError, match=re.escape(sentence)):
            queue.enqueue({"a": change(torch.randn(4, 8))}, torch.arange(4))
    assert queue.count == 0
    for made in (MultiViewQueue, MemoryBank, ShardedMultiViewQueue):
        with pytest.raises(ValueError, match=r"the name of view 'a\.b' must hold no dot"):
            made({"a.b": 8}, 7)


@pytest.mark.parametrize("pointer", [2**63 - 1, -(2**63), -1, 10])
@pytest.mark.parametrize("count", [2**63 - 1, -(2**63), 3])
def test_pointers_and_counts_of_foreign_checkpoints(pointer: int, count: int) -> None:
    """Native and plain torch alike: the pointer by its remainder, the count taken into [0, N]."""
    rows, size = torch.arange(1.0, 5).view(4, 1), 7
    results = []
    for run in (enqueue.run, enqueue.reference):
        buffer, at, filled = torch.zeros(size, 1), torch.tensor(pointer), torch.tensor(count)
        run([buffer], at, filled, [rows])
        results.append((buffer.flatten().tolist(), int(at), int(filled)))
    expected = [0.0] * size
    for i in range(4):
        expected[(pointer + i) % size] = i + 1.0
    assert results == [(expected, (pointer + 4) % size, min(max(min(count, size), 0) + 4, size))] * 2


@pytest.mark.parametrize("weight", [1e-46, -1e-40, 1e-38, 1e39, float("inf"), float("nan")])
def test_weights_that_float32_does_not_hold(weight: float) -> None:
    """Such a weight was no number or 0 to the kernels, which then had no score to rank by."""
    tables = [torch.randn(4, 8)] * 2, [torch.randn(50, 8)] * 2
    for weights in ([1.0, 0.0, weight, 0.0], [1.0, 0.0, 1.0, weight]):
        with pytest.raises(
            ValueError, match="stage_weights of stage 2 must be finite in float32, and 0 or at least"
        ):
            torch.ops.cpr.cascade_topk(*tables, weights, [9, 5])
        for name in BACKENDS:
            with pytest.raises(ValueError, match="stage_weights of stage 2 must be finite in float32"):
                torch.ops.cpr._cascade_topk_on(*tables, weights, [9, 5], backend=name)
    with pytest.raises(
        ValueError, match="the weight of view 'a' must be finite in float32, and 0 or at least"
    ):
        Stage({"a": weight, "b": 1.0}, 5)


def test_the_core_believes_no_schedule() -> None:
    """Numbers that come past the Python checks: the fast path leaves them to the op, the plain door refuses."""
    queries, keys = [torch.randn(4, 8)], [torch.randn(50, 8)]
    fits = _core.cascade_topk_of_tensors(queries, keys, (1.0, 1.0), (9, 5), None, None, None, 1)
    assert fits is not None
    for weights, keep in (
        ((1.0, 1e-46), (9, 5)), ((1.0, 0.0), (9, 5)), ((1e39, 1.0), (9, 5)), ((1.0, 1e-40), (9, 5)),
        ((1.0, 1.0), (5, 9)), ((1.0, 1.0), (9, 0)), ((1.0, 1.0), (9, -1)),
    ):  # fmt: skip
        assert _core.cascade_topk_of_tensors(queries, keys, weights, keep, None, None, None, 1) is None
        views = [(queries[0].data_ptr(), 8, keys[0].data_ptr(), 8, 8)]
        out = torch.empty(4, 9, dtype=torch.int64), torch.empty(4, 9)
        with pytest.raises(ValueError, match=r"weights must be \[S, V\]|keep must hold at least one count"):
            _core.cascade_topk(
                views, 0, 4, 50, weights, keep, (0, 0, 0, 0, 0), tuple(t.data_ptr() for t in out), 1
            )


@pytest.mark.parametrize("flush", [False, True])
def test_small_weights_where_torch_flushes_subnormal_numbers(flush: bool) -> None:
    """The smallest weight there is gives the same entries whatever the calling thread makes of subnormal numbers."""
    g = torch.Generator().manual_seed(0)
    queries, keys = ({v: torch.randn(n, 8, generator=g) for v in "ab"} for n in (4, 50))
    schedule = Schedule([({"a": torch.finfo(torch.float32).tiny, "b": 1.0}, 9), ("a", 5)])
    expected = cascade_topk(queries, keys, schedule, backend="reference")
    torch.set_flush_denormal(flush)
    try:
        got = cascade_topk(queries, keys, schedule)
    finally:
        torch.set_flush_denormal(False)
    assert torch.equal(got[0], expected[0])
