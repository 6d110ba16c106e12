"""Small native calls through every CUDA kernel, for compute-sanitizer. A script: `python gpu_small.py [quick]`."""

from __future__ import annotations

import sys

import torch
from cases import LARGE_CASES, LOSS_CASES, SMALL_CASES

from cpr_kernels import enqueue
from cpr_kernels.losses import native as losses
from cpr_kernels.losses import reference as loss_reference
from cpr_kernels.mining import native, reference
from cpr_kernels.plans import limits_of, plan_on_cuda

QUICK = ("primes", "mixed weights", "fp16", "ids and empty slots", "NaN")
LARGE = ("paper, UCF101", "one off a block", "long last stage")  # tiny, ring, results sorted in memory


def main() -> int:
    """Run, compare, count what is wrong."""
    quick = "quick" in sys.argv
    wrong = 0
    cases = [c for c in SMALL_CASES if not quick or c.name in QUICK] + [
        c for c in LARGE_CASES if c.name in LARGE
    ]
    for case in cases[: len(cases) - (1 if quick else 0)]:
        got, expected = native.run(case.call("cuda")), reference.run(case.call())
        if not all(torch.equal(a.cpu(), b) for a, b in zip(got, expected)):
            plan = plan_on_cuda(case.call("cuda"), limits_of(torch.device("cuda", 0)))
            print(f"WRONG cascade: {case.name}, {plan}")
            wrong += 1
    for case in [c for c in LOSS_CASES if c.queries * c.keys <= (1500 if quick else 3000)]:
        call = case.call("cuda")
        swept = losses.sweep(call, True)
        losses.keys_gradient(call, torch.ones_like(swept.loss), swept.lse_all, swept.lse_positive)
        error = (swept.loss.cpu() - loss_reference.run(case.call())).abs()
        if not (error <= 1e-4 * (1 + swept.loss.cpu().abs())).all():
            print(f"WRONG loss: {case.name}")
            wrong += 1
    buffers = [torch.zeros(8, 5, device="cuda"), torch.zeros(8, dtype=torch.int64, device="cuda")]
    rows = [torch.ones(11, 5, device="cuda"), torch.arange(11, device="cuda")]
    pointer, count = torch.tensor(3, device="cuda"), torch.tensor(3, device="cuda")
    enqueue.run(buffers, pointer, count, rows)
    if buffers[1].tolist() != [5, 6, 7, 8, 9, 10, 3, 4]:
        print(f"WRONG enqueue: {buffers[1].tolist()}")
        wrong += 1
    torch.cuda.synchronize()
    print(f"{wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
