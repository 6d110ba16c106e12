"""The ops as torch citizens: opcheck, compile, export; and no argument, however wrong, ends the process."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from cases import SMALL_CASES, LossCase
from torch import Tensor

from cpr_kernels import MultiViewQueue, cascade_rerank, cascade_topk, cpr_schedule, mil_nce

CASES = {case.name: case for case in SMALL_CASES}


@pytest.mark.parametrize("name", ["primes", "everything at once", "no query", "empty queue", "strided bf16"])
def test_opcheck_cascade(name: str) -> None:
    call = CASES[name].call()
    torch.library.opcheck(torch.ops.cpr.cascade_topk.default, tuple(call))
    torch.library.opcheck(torch.ops.cpr._cascade_topk_on.default, tuple(call), {"backend": "reference"})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_opcheck_loss(dtype: torch.dtype) -> None:
    call = LossCase("", 6, 40, 8, ids=5, use_own=True).call(dtype=dtype)
    call = call._replace(**{n: getattr(call, n).requires_grad_() for n in ("query", "positive", "keys")})
    torch.library.opcheck(torch.ops.cpr.mil_nce.default, tuple(call))
    sweep = torch.ops.cpr._mil_nce_sweep.default
    torch.library.opcheck(sweep, tuple(call), {"want_gradient": True, "backend": "auto"})
    state = {
        "grad_loss": torch.ones(6),
        "lse_all": torch.ones(6),
        "lse_positive": torch.ones(6),
        "backend": "auto",
    }
    state = {
        name: v.to(torch.float64) if isinstance(v, Tensor) and dtype == torch.float64 else v
        for name, v in state.items()
    }
    arguments = tuple(x.detach() if isinstance(x, Tensor) else x for x in call)
    torch.library.opcheck(torch.ops.cpr._mil_nce_keys_gradient.default, arguments, state)


def test_opcheck_enqueue() -> None:
    buffers = [torch.randn(9, 8), torch.arange(9)]
    rows = [torch.randn(4, 8), torch.arange(4)]
    torch.library.opcheck(torch.ops.cpr.enqueue_.default, (buffers, torch.tensor(7), torch.tensor(3), rows))


class Step(torch.nn.Module):
    """Mine, rerank, compare, remember: a training step's use of the library."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = MultiViewQueue({"rgb": 8, "flow": 8}, size=64)
        self.schedule = cpr_schedule(num_keys=64, stages=3, topk=4)

    def forward(self, q: Tensor, k: Tensor, f: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        views = self.queue.views
        given, masks = {"rgb": k, "flow": f}, {"query_ids": ids, "key_ids": self.queue.ids}
        mined, _ = cascade_topk(given, views, self.schedule, **masks)
        mined, _ = cascade_rerank(given, views, self.schedule, mined, **masks)
        loss = mil_nce(q, k, views["rgb"], mined, query_ids=ids, key_ids=self.queue.ids)
        return loss, mined


def inputs(rows: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(rows)
    return [torch.randn(rows, 8, generator=g) for _ in range(3)] + [
        torch.randint(0, 50, (rows,), generator=g)
    ]


@pytest.mark.slow
def test_compile_fullgraph_matches_eager() -> None:
    step, eager = Step(), Step()
    compiled = torch.compile(step, fullgraph=True, dynamic=True)
    for rows in (7, 12, 5):
        q, k, f, ids = inputs(rows)
        results = []
        for module, queue in ((compiled, step.queue), (eager, eager.queue)):
            query = q.clone().requires_grad_()
            loss, mined = module(query, k, f, ids)
            (gradient,) = torch.autograd.grad(loss, query)
            queue.enqueue({"rgb": k, "flow": f}, ids)
            results.append((loss, mined, gradient))
        for a, b in zip(*results):
            torch.testing.assert_close(a, b)


@pytest.mark.slow
def test_export_with_a_dynamic_batch(tmp_path: Any) -> None:
    class Mine(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("bank", torch.randn(64, 8, generator=torch.Generator().manual_seed(0)))

        def forward(self, q: Tensor) -> tuple[Tensor, Tensor]:
            return torch.ops.cpr.cascade_topk([q, q], [self.bank, self.bank], [1.0, 0.0, 0.0, 1.0], [32, 4])

    program = torch.export.export(
        Mine(), (torch.randn(5, 8),), dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    path = tmp_path / "mine.pt2"
    torch.export.save(program, path)
    q = torch.randn(9, 8)
    loaded = torch.export.load(path).module()(q)
    assert all(torch.equal(a, b) for a, b in zip(loaded, Mine()(q)))


def test_autocast_inputs_and_inference_mode() -> None:
    q, k = torch.randn(3, 8), torch.randn(20, 8)
    with torch.inference_mode():
        inferred = torch.ops.cpr.cascade_topk([q], [k], [1.0], [5])
    assert torch.equal(inferred[0], torch.ops.cpr.cascade_topk([q], [k], [1.0], [5])[0])
    with torch.no_grad():
        assert not torch.ops.cpr.mil_nce(
            q.requires_grad_(), q, k, torch.zeros(3, 0).long(), 0.1
        ).requires_grad


def anything(pick: random.Random) -> Any:
    """An argument that may or may not fit."""
    shape = [pick.choice([0, 1, 2, 3, 7]) for _ in range(pick.choice([0, 1, 2, 2, 2, 3]))]
    dtype = pick.choice(
        [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool, torch.complex64]
    )
    made = torch.ones(shape, dtype=dtype)
    return pick.choice(
        [
            made,
            made,
            made,
            made.T if made.dim() == 2 else made,
            torch.empty(shape, dtype=dtype, device="meta"),
        ]
    )


GOOD = {
    torch.ops.cpr.cascade_topk: lambda: [
        [torch.ones(3, 2), torch.ones(3, 7)], [torch.ones(7, 2), torch.ones(7, 7)], [1.0, 0.0, 0.0, 1.0], [5, 2],
        torch.arange(3), torch.arange(7), torch.zeros(3, 7, dtype=torch.bool), torch.ones(7),
    ],
    torch.ops.cpr.cascade_rerank: lambda: [
        [torch.ones(3, 2), torch.ones(3, 7)], [torch.ones(7, 2), torch.ones(7, 7)], torch.arange(12).reshape(3, 4) % 7,
        [1.0, 0.0, 0.0, 1.0], [5, 2], torch.arange(3), torch.arange(7), torch.zeros(3, 7, dtype=torch.bool),
        torch.ones(7),
    ],
    torch.ops.cpr.mil_nce: lambda: [
        torch.ones(3, 2), torch.ones(3, 2), torch.ones(7, 2), torch.zeros(3, 1).long(), 0.1,
        torch.arange(3), torch.arange(7), torch.ones(3, dtype=torch.bool), 1,
    ],
    torch.ops.cpr.enqueue_: lambda: [
        [torch.ones(7, 2), torch.arange(7)], torch.tensor(0), torch.tensor(0), [torch.ones(3, 2), torch.arange(3)],
    ],
}  # fmt: skip


def bent(value: Any, pick: random.Random) -> Any:
    """Something else of roughly the same kind."""
    if isinstance(value, list) and (not value or isinstance(value[0], Tensor)):
        return pick.choice([[], value[:1], [*value, anything(pick)], [anything(pick) for _ in value]])
    if isinstance(value, list):
        numbers = (
            [-1, 0, 1, 2, 5] if isinstance(value[0], int) else [1.0, 0.0, -2.0, float("nan"), float("inf")]
        )
        return [pick.choice(numbers) for _ in range(pick.choice([0, 1, 2, 4]))]
    if isinstance(value, Tensor):
        return pick.choice([None, anything(pick), anything(pick), value.reshape(-1)[:0], value.long() - 100])
    return pick.choice([0, 1, 2, 3, -1, 0.0, float("nan"), float("inf"), 1e-300, 2**62])


def test_no_argument_ends_the_process() -> None:
    """Random arguments either work or raise an ordinary exception."""
    pick = random.Random(0)
    ran = raised = 0
    for _ in range(1500):
        for op, good in GOOD.items():
            arguments = good()
            for _ in range(pick.choice([0, 1, 1, 2, 3])):
                place = pick.randrange(len(arguments))
                arguments[place] = bent(arguments[place], pick) if arguments[place] is not None else None
            try:
                op(*arguments)
                ran += 1
            except (ValueError, RuntimeError, TypeError, NotImplementedError, OverflowError):
                raised += 1
    assert ran > 500 and raised > 500


def test_oversized_k_is_refused_not_fatal() -> None:
    with pytest.raises((RuntimeError, ValueError)):
        torch.ops.cpr.cascade_topk([torch.ones(2, 3)], [torch.ones(4, 3)], [1.0], [2**50])


def test_pointer_of_a_foreign_checkpoint_stays_inside() -> None:
    buffer, pointer, count = torch.zeros(4, 2), torch.tensor(-3), torch.tensor(99)
    torch.ops.cpr.enqueue_([buffer], pointer, count, [torch.ones(2, 2)])
    assert buffer.sum() == 4 and pointer.item() == 3 and count.item() == 4
