"""Writes to a queue or a bank between a loss and its backward pass: autograd sees them, and mil_nce does not mind."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cpr_kernels import MemoryBank, MultiViewQueue

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
