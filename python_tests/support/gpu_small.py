"""Small native calls through every CUDA kernel, for compute-sanitizer. A script: `python gpu_small.py [quick]`.

`quick` leaves out what only a longer list or queue shows; every kernel runs all the same.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch
from cases import LARGE_CASES, LOSS_CASES, SMALL_CASES, CascadeCase, LossCase, few, listed

from cpr_kernels import _core
from cpr_kernels.dispatch.launch_plans import limits_of, plan_on_cuda
from cpr_kernels.losses import native as losses
from cpr_kernels.losses import reference as loss_reference
from cpr_kernels.memory import enqueue
from cpr_kernels.mining import native, reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SMALL = ("primes", "mixed weights", "ids and empty slots", "NaN")
LARGE = ("paper, UCF101", "one off a block", "long last stage")  # tiny, ring, results sorted in memory
# score tiles of 16, 64 and 128 queries beyond the tiny path, and the tiny path itself; rows copied and used in place
TILES = [
    CascadeCase(
        f"{queries} x {keys}, {dtype}",
        queries,
        keys,
        {"flow": dim, "rgb": 9},
        few(keys, keys // 2, 40, 5),
        dtype,
    )
    for dtype in DTYPES
    for queries, keys, dim in ((5, 100, 24), (5, 4200, 24), (30, 300, 24), (70, 300, 16))
]
# 1,024 threads a query, and lists in device memory
LONG = CascadeCase("long lists", 3, 60_000, {"flow": 8, "rgb": 8}, few(60_000, 50_000, 40_000, 9))
# blocks that hold 64, 128 and 256 features, one through which they stream, and 16-bit features
DIMS = [
    LossCase(f"{dim} features, {dtype}", 70, 90, dim, ids=20, use_own=True, dtype=dtype)
    for dim, dtype in (
        (40, DTYPES[0]),
        (100, DTYPES[0]),
        (200, DTYPES[0]),
        (300, DTYPES[0]),
        (100, DTYPES[1]),
    )
]


def cascades(quick: bool) -> Iterator[CascadeCase]:
    """What is mined."""
    yield from (case for case in SMALL_CASES if not quick or case.name in SMALL)
    yield from TILES
    if not quick:
        yield from (case for case in LARGE_CASES if case.name in LARGE)
        yield LONG


def losses_of(quick: bool) -> Iterator[LossCase]:
    """What is lost."""
    yield from (case for case in LOSS_CASES if case.queries * case.keys <= (300 if quick else 3000))
    yield from DIMS


def choices(case: CascadeCase | LossCase) -> list[dict[str, int]]:
    """The planner's own; products by wgmma where a device has it, though the case is small for that; no selection by codes."""
    by_wgmma = [{"wgmma_parts": 2}] if case in TILES or case in DIMS else []
    return [{}, *by_wgmma, *([{"select_threads": 1024}] if case in TILES else [])]


def equal(got: tuple[torch.Tensor, ...], expected: tuple[torch.Tensor, ...]) -> bool:
    """Bit for bit."""
    return all(torch.equal(a.cpu(), b) for a, b in zip(got, expected))


def wrong_cascade(case: CascadeCase) -> int:
    """1 where a case's answer is not the reference's, and as many over listed candidates."""
    call, on_device = case.call(), case.call("cuda")
    wrong = 0
    for choice in choices(case):
        _core.cuda_tune(**choice)
        if not equal(native.run(on_device), reference.run(call)):
            plan = plan_on_cuda(on_device, limits_of(torch.device("cuda", 0)))
            print(f"WRONG cascade: {case.name}, {choice}, {plan}")
            wrong += 1
    _core.cuda_tune()
    count = 45 if case in TILES or case.name == "one off a block" else 0
    if count and not equal(native.rerank(listed(on_device, count)), reference.rerank(listed(call, count))):
        print(f"WRONG rerank: {case.name}")
        wrong += 1
    return wrong


def wrong_loss(case: LossCase) -> int:
    """1 where a case's loss is not near the reference's; the gradients are formed for who watches memory."""
    call, exact = case.call("cuda"), loss_reference.sweep(case.call(dtype=torch.float64), True, True)
    wrong = 0
    for choice in choices(case):
        _core.cuda_tune(**choice)
        swept, plain = losses.sweep(call, True, True), losses.sweep(call, True)
        losses.keys_gradient(call, torch.ones_like(swept.loss), swept.lse_all, swept.lse_positive)
        right = equal((swept.stats,), (exact.stats,)) and equal(
            swept[:-1], tuple(t.cpu() for t in plain[:-1])
        )
        for got, wanted in ((swept.loss, exact.loss), (swept.grad_query, exact.grad_query)):
            right = right and bool(((got.cpu() - wanted).abs() <= 1e-4 * (1 + wanted.abs())).all())
        if not right:
            print(f"WRONG loss: {case.name}, {choice}")
            wrong += 1
    _core.cuda_tune()
    return wrong


def wrong_enqueue() -> int:
    """1 where a batch that wraps around lies elsewhere than it should."""
    buffers = [torch.zeros(8, 5, device="cuda"), torch.zeros(8, dtype=torch.int64, device="cuda")]
    rows = [torch.ones(11, 5, device="cuda"), torch.arange(11, device="cuda")]
    pointer, count = torch.tensor(3, device="cuda"), torch.tensor(3, device="cuda")
    enqueue.run(buffers, pointer, count, rows)
    if buffers[1].tolist() == [5, 6, 7, 8, 9, 10, 3, 4]:
        return 0
    print(f"WRONG enqueue: {buffers[1].tolist()}")
    return 1


def main() -> int:
    """Run, compare, count what is wrong."""
    quick = "quick" in sys.argv
    wrong = sum(map(wrong_cascade, cascades(quick))) + sum(map(wrong_loss, losses_of(quick)))
    wrong += wrong_enqueue()
    torch.cuda.synchronize()
    print(f"{wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
