"""The fast paths of a tuned miner's step on plain CPU tensors against what torch computes in their place."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from cpr_kernels import MultiViewQueue
from cpr_kernels.dispatch import fast_path as direct
from cpr_kernels.dispatch.native import core
from cpr_kernels.memory import enqueue
from cpr_kernels.tuning import steps, whitening
from cpr_kernels.tuning.steps import Expansion, Neighbors, expanded, hub_terms, less_hubs
from cpr_kernels.tuning.whitening import Whitener

pytestmark = pytest.mark.skipif(
    not direct._CONNECTED, reason="this torch has no DLPack exchange table: there is only the op"
)
N = 7


def ring(pointer: int = 5) -> tuple[list[Tensor], Tensor, Tensor]:
    """Buffers of several kinds, one of them strided, that hold their own numbers."""
    buffers = [
        torch.arange(N * 3.0).view(N, 3), torch.arange(N * 8).view(N, 8)[:, :4].to(torch.bfloat16), torch.arange(N),
        torch.arange(N * 8.0).view(N, 8)[:, 2:5], torch.arange(N * 6).view(N, 2, 3), torch.zeros(N, dtype=torch.bool),
    ]  # fmt: skip
    return buffers, torch.tensor(pointer), torch.tensor(3)


def batch_of(buffers: list[Tensor], rows: int) -> list[Tensor]:
    made = [(100 + torch.arange(rows * b[0].numel())).view(rows, *b.shape[1:]).to(b.dtype) for b in buffers]
    wide = torch.arange(rows * 9.0).view(rows, 9)
    made[0] = wide[:, 4:7]  # rows apart, each contiguous
    return made


@pytest.mark.parametrize("rows", [0, 1, 4, 7, 16])
@pytest.mark.parametrize("pointer", [0, 5, -3])
def test_a_ring_is_written_as_by_the_reference(rows, pointer):
    ours, theirs = ring(pointer), ring(pointer)
    with torch.no_grad():
        assert enqueue.run_directly(*ours, batch_of(ours[0], rows))
    enqueue.reference(*theirs, batch_of(theirs[0], rows))
    for a, b in zip((*ours[0], *ours[1:]), (*theirs[0], *theirs[1:]), strict=True):
        assert torch.equal(a, b)


@torch.no_grad()
def test_a_write_counts_as_one():
    buffers, pointer, count = ring()
    before = [tensor._version for tensor in (*buffers, pointer, count)]
    assert enqueue.run_directly(buffers, pointer, count, batch_of(buffers, 2))
    assert [tensor._version for tensor in (*buffers, pointer, count)] == [version + 1 for version in before]


class Heard(TorchFunctionMode):
    def __torch_function__(self, op, types, args=(), kwargs=None):
        return op(*args, **(kwargs or {}))


def test_what_does_not_fit_is_left_to_the_op_and_not_written():
    buffers, pointer, count = ring()
    kept, rows = [buffer.clone() for buffer in buffers], batch_of(buffers, 2)
    assert not enqueue.run_directly(buffers, pointer, count, rows)  # a graph may be recorded
    with torch.no_grad():
        for place, other in (
            (0, rows[0][:, :2]),  # a shape
            (0, rows[0].double()),  # a dtype
            (2, rows[2][:1]),  # a row less
            (4, torch.zeros(2, 3, 2, dtype=torch.int64).transpose(1, 2)),  # rows that are not contiguous
            (5, rows[5].to(torch.uint8)),  # another kind of one byte
        ):
            wrong = [other if i == place else row for i, row in enumerate(rows)]
            assert not enqueue.run_directly(buffers, pointer, count, wrong)
        assert not enqueue.run_directly(buffers[:2], pointer, count, rows)
        assert not enqueue.run_directly(buffers, pointer.int(), count, rows)
        assert not enqueue.run_directly(buffers, pointer[None], count, rows)
        assert not enqueue.run_directly([], pointer, count, [])
        with Heard():
            assert not enqueue.run_directly(buffers, pointer, count, rows)
        with torch.inference_mode():
            unversioned = [torch.zeros(N) for _ in range(2)]
        assert not enqueue.run_directly(unversioned, pointer, count, [torch.ones(2)] * 2)
    assert all(torch.equal(a, b) for a, b in zip(buffers, kept, strict=True))
    assert int(pointer) == 5 and int(count) == 3


def test_a_queue_takes_it(monkeypatch):
    def fail(*_: object) -> None:
        raise AssertionError("this call went through the op")

    queue = MultiViewQueue({"v": 3}, N)
    monkeypatch.setattr("cpr_kernels.ops.run_enqueue", fail)
    queue.enqueue({"v": torch.ones(2, 3)}, torch.arange(2))
    assert len(queue) == 2


def neighbors(rows: int = 9, width: int = 20, keys: int = 30) -> tuple[Neighbors, Tensor]:
    """Scores and terms of few values, so that ties are many; the last places of some rows are padding."""
    g = torch.Generator().manual_seed(1)
    indices = torch.stack([torch.randperm(keys, generator=g)[:width] for _ in range(rows)])
    scores = torch.randint(4, (rows, width), generator=g).float().sort(dim=1, descending=True).values
    for row in range(3):
        indices[row, 4 * row :], scores[row, 4 * row :] = -1, -torch.inf
    return Neighbors(indices, scores), torch.randint(3, (keys,), generator=g).float()


@pytest.mark.parametrize("topk", [1, 5, 20])
def test_hubs_are_left_as_by_torch(topk, monkeypatch):
    near, terms = neighbors()
    wide = Neighbors(*(torch.cat([part, part], dim=1)[:, : part.shape[1]] for part in near))  # rows apart
    ours = [less_hubs(found, terms, topk) for found in (near, wide)]
    assert core.less_hubs_of_tensors(*near, terms, topk) is not None
    monkeypatch.setattr(steps, "dispatcher_is_idle", lambda: False)
    expected = less_hubs(near, terms, topk)
    for found in ours:
        assert torch.equal(found.indices, expected.indices) and torch.equal(found.scores, expected.scores)


def test_odd_numbers_are_left_to_torch():
    near, terms = neighbors()
    assert core.less_hubs_of_tensors(*near, terms[:10], 5) is None  # an index beyond the keys
    assert core.less_hubs_of_tensors(*near, torch.where(terms > 1, torch.nan, terms), 5) is None
    assert (
        core.less_hubs_of_tensors(*near, terms, 21) is None
        and core.less_hubs_of_tensors(*near, terms, 0) is None
    )
    assert core.less_hubs_of_tensors(near.indices, near.scores.double(), terms.double(), 5) is None
    assert core.less_hubs_of_tensors(near.indices[:, :4], near.scores, terms, 2) is None
    assert core.less_hubs_of_tensors(near.indices, near.scores, terms[:, None], 5) is None


def test_hub_terms_are_those_of_torch(monkeypatch):
    scores = neighbors()[0].scores / 7
    scores[4, 2], scores[5] = torch.nan, -torch.inf
    wide = torch.cat([scores, scores], dim=1)[:, : scores.shape[1]]  # rows apart
    assert core.hub_terms_of_tensors(scores, 7) is not None
    ours = [hub_terms(of, count) for of in (scores, wide) for count in (1, 7, 90)]
    monkeypatch.setattr(steps, "dispatcher_is_idle", lambda: False)
    theirs = [hub_terms(of, count) for of in (scores, wide) for count in (1, 7, 90)]
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=0)
    assert (
        core.hub_terms_of_tensors(scores, 0) is None and core.hub_terms_of_tensors(scores.double(), 7) is None
    )


def views_of(rows: int, seed: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {view: torch.randn(rows, dim, generator=g) for view, dim in (("a", 13), ("b", 8))}


@pytest.mark.parametrize("rows", [0, 1, 9, 700])
@pytest.mark.parametrize("matrix", [True, False])
def test_rows_are_whitened_as_by_torch(rows, matrix, monkeypatch):
    wide = views_of(rows, 0)["a"]
    wide[3:4], wide[5:6, 2], wide[6:7, 4] = 0, torch.nan, torch.inf
    g = torch.Generator().manual_seed(1)
    white = Whitener(torch.randn(11, generator=g), torch.randn(11, 5, generator=g) if matrix else None)
    given = wide[:, 1:12]  # rows apart
    kept = given.clone()
    ours, missing = white.with_lacking(given)
    torch.testing.assert_close(given, kept, equal_nan=True, rtol=0, atol=0)
    monkeypatch.setattr(whitening, "no_graph", lambda *_: False)
    theirs, lacking = white.with_lacking(given)
    torch.testing.assert_close(ours, theirs, equal_nan=True, rtol=1e-6, atol=1e-6)
    assert torch.equal(missing, lacking)


@pytest.mark.parametrize("rows", [0, 1, 9, 700])
@pytest.mark.parametrize("power", [0.0, 3.0])
def test_rows_are_expanded_as_by_torch(rows, power, monkeypatch):
    queries, keys = views_of(rows, 2), views_of(30, 3)
    g = torch.Generator().manual_seed(4)
    near = Neighbors(torch.randint(-1, 30, (rows, 6), generator=g), torch.randn(rows, 6, generator=g))
    near.scores[near.indices < 0] = -torch.inf
    args = list(queries.values()), list(keys.values()), near.indices[:, :5], near.scores[:, :5]
    assert core.expand_rows_of_tensors(*args, 2) is not None
    ours = expanded(queries, keys, near, Expansion(5, power))
    monkeypatch.setattr(steps, "no_graph", lambda *_: False)
    theirs = expanded(queries, keys, near, Expansion(5, power))
    assert list(ours) == list(theirs)
    for view, value in theirs.items():
        torch.testing.assert_close(ours[view], value, rtol=1e-5, atol=1e-6)


def test_rows_alone_have_the_bits_they_have_in_a_batch():
    queries, keys = views_of(700, 2), views_of(30, 3)
    g = torch.Generator().manual_seed(4)
    near = Neighbors(torch.randint(30, (700, 5), generator=g), torch.rand(700, 5, generator=g))
    whole = expanded(queries, keys, near, Expansion(5, 3.0))
    some = slice(431, 440)
    few = {view: rows[some] for view, rows in queries.items()}
    for view, rows in expanded(few, keys, Neighbors(*(p[some] for p in near)), Expansion(5, 3.0)).items():
        assert torch.equal(rows, whole[view][some])


def test_what_the_native_steps_do_not_take_is_left_to_torch():
    queries, keys = views_of(4, 2), views_of(30, 3)
    q, k = list(queries.values()), list(keys.values())
    near, weights = torch.zeros(4, 3, dtype=torch.int64), torch.ones(4, 3)

    def native(q=q, k=k, near=near, weights=weights):
        return core.expand_rows_of_tensors(q, k, near, weights, 1)

    assert native() is not None
    assert native(near=near + 30) is None  # beyond the keys
    assert native(near=near[:, :2]) is None and native(weights=weights.double()) is None
    assert native(k=k[::-1]) is None and native(k=k[:1]) is None and native(q=[], k=[]) is None
    assert native(q=[q[0].T.contiguous().T, q[1]]) is None and native(q=[q[0][:3], q[1]]) is None
    assert native(q=tuple(q)) is None
    rows, missing = torch.ones(4, 3), torch.zeros(4, 1, dtype=torch.bool)
    for wrong in (
        (rows.double(), rows, missing), (rows, rows[:3], missing), (rows, rows, missing[:, 0]),
        (rows, rows, missing[:3]), (rows, rows, missing.to(torch.uint8)), (rows.T, rows, missing),
        (rows, rows, torch.zeros(4, 2, dtype=torch.bool)[:, :1]),
    ):  # fmt: skip
        assert not core.unit_rows_of_tensors(*wrong)
    assert (rows == 1).all()


def test_gradients_pass_through_whitening_and_expansion():
    white = Whitener(torch.randn(13, generator=torch.Generator().manual_seed(0)), None)
    rows = views_of(4, 2)["a"].requires_grad_()
    near = Neighbors(torch.zeros(4, 3, dtype=torch.int64), torch.ones(4, 3))
    made = expanded({"a": white(rows)}, {"a": views_of(30, 3)["a"]}, near, Expansion(3, 1.0))["a"]
    made[:, 0].sum().backward()
    assert rows.grad is not None and rows.grad.abs().sum() > 0
