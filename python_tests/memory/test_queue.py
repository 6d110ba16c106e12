"""The memory queue against a Python list: order, wrap, resume, ranks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from two_ranks import on_two_ranks

from cpr_kernels import MultiViewQueue, cascade_topk, cpr_schedule


def rows(start, stop, dim, device=None):
    """Row i holds the number i, so that every row is recognisable."""
    return torch.arange(start, stop, dtype=torch.float32, device=device)[:, None].expand(-1, dim)


def fill(queue, start, stop, labels=True):
    ids = torch.arange(start, stop)
    features = {name: rows(start, stop, view.shape[1]) for name, view in queue.views.items()}
    queue.enqueue(features, ids, ids % 3 if labels else None)


def assert_holds(queue, slots):
    """Slot s holds the row numbered slots[s]; None is an empty slot."""
    numbers = [-1 if number is None else number for number in slots]
    assert queue.ids.tolist() == numbers
    for view in queue.views.values():
        expected = [0.0 if number is None else float(number) for number in slots]
        assert view.float()[:, 0].tolist() == expected
        assert torch.equal(view, view[:, :1].expand_as(view))
    assert queue.labels.tolist() == [-1 if number is None else number % 3 for number in slots]


def test_a_new_queue_is_empty():
    queue = MultiViewQueue({"rgb": 4, "flow": 3}, size=5)
    assert_holds(queue, [None] * 5)
    assert (int(queue.pointer), int(queue.count)) == (0, 0)
    assert {name: tuple(view.shape) for name, view in queue.views.items()} == {"rgb": (5, 4), "flow": (5, 3)}
    assert "rgb: 4, flow: 3" in str(queue)


@pytest.mark.parametrize(
    ("batches", "slots", "pointer"),
    [
        ([3], [0, 1, 2, None, None], 3),
        ([5], [0, 1, 2, 3, 4], 0),
        ([3, 3], [5, 1, 2, 3, 4], 1),  # straddles the end
        ([12], [10, 11, 7, 8, 9], 2),  # larger than the queue, twice over
        ([3, 7], [5, 6, 7, 8, 9], 0),
        ([0, 2, 0], [0, 1, None, None, None], 2),
        ([1, 1, 1, 1, 1, 1], [5, 1, 2, 3, 4], 1),
    ],
)
def test_batches_go_over_the_oldest(batches, slots, pointer):
    queue, at = MultiViewQueue({"rgb": 2, "flow": 3}, size=5), 0
    for batch in batches:
        fill(queue, at, at + batch)
        at += batch
    assert_holds(queue, slots)
    assert int(queue.pointer) == pointer
    assert int(queue.count) == min(at, 5)


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 9), batches=st.lists(st.integers(0, 20), max_size=6))
def test_any_batch_equals_one_row_at_a_time(size, batches):
    queue, slots, at = MultiViewQueue({"v": 2}, size), [None] * size, 0
    for batch in batches:
        fill(queue, at, at + batch)
        for number in range(at, at + batch):
            slots[number % size] = number
        at += batch
        assert_holds(queue, slots)
    assert (int(queue.pointer), int(queue.count)) == (at % size, min(at, size))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_are_stored_in_the_queues_dtype(dtype):
    queue = MultiViewQueue({"v": 2}, size=4, dtype=dtype)
    features = torch.tensor([[0.1, -3.3]], dtype=torch.float64)
    queue.enqueue({"v": features}, torch.tensor([7]))
    assert queue.views["v"].dtype == dtype
    assert torch.equal(queue.views["v"][0], features[0].to(dtype))
    assert queue.labels.tolist() == [-1] * 4


def test_the_queue_keeps_no_graph_and_no_alias():
    queue = MultiViewQueue({"v": 2}, size=4)
    features = torch.ones(2, 2, requires_grad=True)
    queue.enqueue({"v": features}, torch.tensor([1, 2]))
    assert not queue.views["v"].requires_grad
    with torch.no_grad():
        features.zero_()
    assert queue.views["v"][:2].eq(1).all()


def test_views_are_the_buffers_and_follow_a_copy():
    queue = MultiViewQueue({"v": 2}, size=4)
    assert queue.views["v"].data_ptr() == queue.get_buffer("view_v").data_ptr()
    held = nn.Sequential(queue)
    assert set(dict(held.named_buffers())) == {"0.view_v", "0.ids", "0.labels", "0.pointer", "0.count"}


def test_a_resumed_queue_goes_on_bit_for_bit(tmp_path):
    torch.manual_seed(0)
    straight, resumed = (MultiViewQueue({"a": 5, "b": 3}, size=7) for _ in range(2))

    def batch(n, first):
        ids = torch.arange(first, first + n)
        return {"a": torch.randn(n, 5), "b": torch.randn(n, 3)}, ids, ids % 2

    before, after = batch(10, 0), batch(4, 10)
    straight.enqueue(*before)
    torch.save(straight.state_dict(), tmp_path / "queue.pt")
    resumed.load_state_dict(torch.load(tmp_path / "queue.pt"))
    for queue in (straight, resumed):
        queue.enqueue(*after)
    for (name, expected), got in zip(straight.state_dict().items(), resumed.state_dict().values()):
        assert torch.equal(expected, got), name


def test_mining_works_before_the_queue_is_full():
    queue = MultiViewQueue({"flow": 2, "rgb": 2}, size=8)
    fill(queue, 1, 4)
    queries = {name: torch.ones(1, 2) for name in ("flow", "rgb")}
    indices, _ = cascade_topk(
        queries,
        queue.views,
        cpr_schedule(num_keys=8, stages=2, topk=4),
        query_ids=torch.tensor([2]),
        key_ids=queue.ids,
    )
    assert indices.tolist() == [[2, 0, -1, -1]]  # numbers 3 and 1; 2 is its own source, five slots are empty


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (
            lambda q: q.enqueue({"v": torch.ones(2, 2)}, torch.arange(2)),
            "must hold the views ['v', 'w'], got ['v']",
        ),
        (
            lambda q: q.enqueue({"v": torch.ones(2, 2), "x": torch.ones(2, 3)}, torch.arange(2)),
            "got ['v', 'x']",
        ),
        (lambda q: q.enqueue(two(), torch.arange(3)), "ids must have shape [2] (one id per row), got [3]"),
        (
            lambda q: q.enqueue(two(), torch.zeros(2, 1).long()),
            "ids must have shape [2] (one id per row), got [2, 1]",
        ),
        (lambda q: q.enqueue(two(), torch.ones(2)), "ids must be int64, got torch.float32"),
        (lambda q: q.enqueue(two(), torch.arange(2), torch.arange(1)), "labels must have shape [2]"),
        (
            lambda q: q.enqueue(two(w=torch.ones(2, 4)), torch.arange(2)),
            "features['w'] must have shape [2, 3], got [2, 4]",
        ),
        (
            lambda q: q.enqueue(two(w=torch.ones(1, 3)), torch.arange(2)),
            "features['w'] must have shape [2, 3], got [1, 3]",
        ),
        (
            lambda q: q.enqueue(two(w=torch.ones(3)), torch.arange(2)),
            "features['w'] must have shape [2, 3], got [3]",
        ),
        (
            lambda q: q.enqueue(two(w=torch.ones(2, 3, device="meta")), torch.arange(2)),
            "features['w'] is on meta",
        ),
        (lambda q: q.enqueue(two(), torch.arange(2, device="meta")), "ids is on meta, expected cpu"),
        (lambda q: q.enqueue(two(w=torch.ones(2, 3) * 1j), torch.arange(2)), "must hold real numbers"),
        (lambda q: MultiViewQueue({}, 3), "views is empty"),
        (lambda q: MultiViewQueue({"v": 0}, 3), "view 'v' must have D >= 1, got 0"),
        (lambda q: MultiViewQueue({"v": 2}, 0), "size must be >= 1, got 0"),
        (
            lambda q: MultiViewQueue({"v": 2}, 3, dtype=torch.int8),
            "dtype must be float32, bfloat16, float16 or float64",
        ),
    ],
)
def test_a_bad_argument_is_named_and_nothing_is_written(call, says):
    queue = MultiViewQueue({"v": 2, "w": 3}, size=4)
    with pytest.raises(ValueError) as error:
        call(queue)
    assert says in str(error.value)
    assert int(queue.count) == 0
    assert queue.ids.tolist() == [-1] * 4


def two(**other):
    return {"v": torch.ones(2, 2), "w": torch.ones(2, 3), **other}


def filled(rank):
    queue = MultiViewQueue({"v": 2}, size=5, dtype=torch.bfloat16)
    for step in range(3):
        start = 10 * step + 100 * rank
        fill(queue, start, start + 2)
    return queue.state_dict()


def test_two_ranks_hold_the_same_queue_in_rank_order(tmp_path):
    first, second = on_two_ranks(filled, tmp_path)
    # written in turn: 0 1 100 101 10 | 11 110 111 20 21 | 120 121
    assert first["ids"].tolist() == [120, 121, 111, 20, 21]
    assert int(first["pointer"]) == 2
    for name in first:
        assert torch.equal(first[name], second[name]), name


@pytest.mark.slow
def test_a_step_with_enqueue_compiles_whole():
    compiled_queue, eager_queue = MultiViewQueue({"v": 4}, size=6), MultiViewQueue({"v": 4}, size=6)

    def step(queue, features, ids):
        queue.enqueue({"v": features * 2}, ids)
        return queue.views["v"].sum(), queue.pointer + queue.count

    compiled = torch.compile(step, fullgraph=True)  # a wait for the device would break the graph
    for first in (0, 4, 8):
        features, ids = rows(first, first + 4, 4).contiguous(), torch.arange(first, first + 4)
        got, expected = compiled(compiled_queue, features, ids), step(eager_queue, features, ids)
        assert torch.equal(got[0], expected[0])
        assert torch.equal(got[1], expected[1])
    for (name, expected), got in zip(eager_queue.state_dict().items(), compiled_queue.state_dict().values()):
        assert torch.equal(expected, got), name
