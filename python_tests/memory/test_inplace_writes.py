"""Writes to a queue or a bank between a loss and its backward pass: autograd sees them, and mil_nce does not mind."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cpr_kernels import MemoryBank, MultiViewQueue, mil_nce

ROWS, DIM, SIZE = 3, 4, 9
MODIFIED = "modified by an inplace operation"


def numbers(seed: int, rows: int = ROWS) -> Tensor:
    return torch.randn(rows, DIM, generator=torch.Generator().manual_seed(seed))


class Queue(MultiViewQueue):
    """A full queue; `write` replaces some entries."""

    def __init__(self) -> None:
        super().__init__({"v": DIM}, SIZE)
        self.enqueue({"v": numbers(1, SIZE)}, torch.arange(SIZE))

    def write(self, rows: Tensor) -> None:
        self.enqueue({"v": rows}, torch.arange(len(rows)))


class Bank(MemoryBank):
    """A full bank; `write` averages into the first rows."""

    def __init__(self) -> None:
        super().__init__({"v": DIM}, SIZE)
        self.update(torch.arange(SIZE), {"v": numbers(1, SIZE)}, torch.arange(SIZE))

    def write(self, rows: Tensor) -> None:
        self.update(torch.arange(len(rows)), {"v": rows}, torch.arange(len(rows)) + SIZE)


MEMORIES = pytest.mark.parametrize("memory", [Queue, Bank])


@MEMORIES
def test_every_buffer_that_is_written_counts_a_version(memory: type[Queue | Bank]) -> None:
    held = memory()
    before = {name: buffer._version for name, buffer in held.named_buffers()}
    held.write(numbers(2))
    after = {name: buffer._version for name, buffer in held.named_buffers()}
    assert all(after[name] > before[name] for name in before), (before, after)


def test_the_op_refuses_a_buffer_that_requires_grad() -> None:
    buffer = torch.zeros(SIZE, DIM, requires_grad=True)
    given = [buffer], torch.tensor(0), torch.tensor(0), [numbers(0)]
    with pytest.raises(RuntimeError, match=r"buffers\[0\] requires grad"):
        torch.ops.cpr.enqueue_(*given)
    with torch.no_grad():
        torch.ops.cpr.enqueue_(*given)
    assert torch.equal(buffer[:ROWS], numbers(0))


def moco(held: Queue | Bank, query: Tensor, key: Tensor) -> Tensor:
    """MoCo's own order: logits from the queue, the queue is written, backward."""
    logits = query @ held.views["v"].T
    held.write(key)
    return logits.logsumexp(dim=1).sum()


def gradient_of(step: Callable[..., Tensor], held: Queue | Bank) -> Tensor:
    query = numbers(3).requires_grad_()
    return torch.autograd.grad(step(held, query, numbers(4)), query)[0]


@MEMORIES
def test_logits_of_plain_torch_raise_after_a_write(memory: type[Queue | Bank]) -> None:
    with pytest.raises(RuntimeError, match=MODIFIED):
        gradient_of(moco, memory())


@pytest.mark.slow
@MEMORIES
def test_logits_of_plain_torch_raise_after_a_write_when_compiled(memory: type[Queue | Bank]) -> None:
    with pytest.raises(RuntimeError, match=MODIFIED):
        gradient_of(torch.compile(moco, fullgraph=True, backend="aot_eager"), memory())


def loss_of(door: str, query: Tensor, positive: Tensor, held: Queue | Bank) -> Tensor:
    positives, ids = torch.tensor([[0, 5], [2, -1], [1, 1]]), torch.tensor([4, 8, 0])
    masks = {"query_ids": ids, "key_ids": held.ids}
    if door == "op":
        return torch.ops.cpr.mil_nce(query, positive, held.views["v"], positives, 0.5, ids, held.ids).sum()
    backend = "reference" if door == "reference" else "auto"
    return mil_nce(
        query, positive, held.views["v"], positives, 0.5, **masks, reduction="sum", backend=backend
    )


def step(held: Queue | Bank, query: Tensor, positive: Tensor, door: str, write: bool) -> Tensor:
    """The order of IIC, CMC and lightly: the loss, the memory is written, backward."""
    loss = loss_of(door, query, positive, held)
    if write:
        held.write(positive.detach())
    return loss


DOORS = pytest.mark.parametrize("door", ["op", "fast path", "reference"])


def gradients(run: Callable[..., Tensor], memory: type[Queue | Bank], door: str, write: bool) -> list[Tensor]:
    query, positive = numbers(3).requires_grad_(), numbers(4).requires_grad_()
    return list(torch.autograd.grad(run(memory(), query, positive, door, write), [query, positive]))


@MEMORIES
@DOORS
def test_a_write_between_loss_and_backward_changes_no_gradient(memory: type[Queue | Bank], door: str) -> None:
    for a, b in zip(gradients(step, memory, door, True), gradients(step, memory, door, False)):
        assert torch.equal(a, b)
        assert a.abs().max() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@MEMORIES
def test_a_write_changes_no_gradient_when_compiled(memory: type[Queue | Bank], backend: str) -> None:
    compiled = torch.compile(step, fullgraph=True, backend=backend)
    expected = gradients(step, memory, "op", False)
    for a, b in zip(gradients(compiled, memory, "op", True), expected):
        torch.testing.assert_close(a, b)


def saved_by(run: Callable[[], Tensor]) -> tuple[Tensor, set[int]]:
    """What `run` returns, and where the storages of all saved tensors begin."""
    places: set[int] = set()

    def pack(tensor: Tensor) -> Tensor:
        places.add(tensor.untyped_storage().data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        return run(), places


@DOORS
def test_no_buffer_is_saved_unless_the_keys_take_a_gradient(door: str) -> None:
    held = Queue()
    query, positive = numbers(3).requires_grad_(), numbers(4).requires_grad_()
    buffers = {buffer.untyped_storage().data_ptr() for buffer in held.buffers()}
    _, places = saved_by(lambda: loss_of(door, query, positive, held))
    assert places and not places & buffers
    _, places = saved_by(lambda: loss_of(door, query, positive.detach(), held))
    assert places and not places & (buffers | {query.data_ptr(), positive.data_ptr()})
    keys = held.views["v"].requires_grad_()
    _, places = saved_by(lambda: loss_of(door, query, positive, held))
    assert {keys.data_ptr(), held.ids.data_ptr()} <= places


@pytest.mark.slow
def test_no_buffer_is_saved_by_compiled_code() -> None:
    held = Queue()
    query, positive = numbers(3).requires_grad_(), numbers(4).requires_grad_()
    compiled = torch.compile(loss_of, fullgraph=True, backend="aot_eager")
    _, places = saved_by(lambda: compiled("op", query, positive, held))
    assert places and not places & {buffer.untyped_storage().data_ptr() for buffer in held.buffers()}


@DOORS
def test_keys_that_take_a_gradient_raise_after_a_write(door: str) -> None:
    held = Queue()
    query, keys = numbers(3).requires_grad_(), held.views["v"].requires_grad_()
    loss = step(held, query, numbers(4), door, True)
    with pytest.raises(RuntimeError, match=MODIFIED):
        torch.autograd.grad(loss, [query, keys])


@DOORS
def test_a_second_derivative_raises_after_a_write_and_the_first_does_not(door: str) -> None:
    query, positive = numbers(3).requires_grad_(), numbers(4).requires_grad_()
    loss = step(Queue(), query, positive, door, True)
    first = torch.autograd.grad(loss, query, create_graph=True)[0]
    assert torch.equal(first, gradients(step, Queue, door, False)[0])
    with pytest.raises(RuntimeError, match="modified by an inplace"):
        torch.autograd.grad(first.sum(), query)
