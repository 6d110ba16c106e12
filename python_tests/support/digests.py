"""Digests of what every op answers to the tables of cases: a change that keeps the meaning keeps them.

``python python_tests/support/digests.py`` writes digests.json anew; do so only where an answer is meant to change.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from cases import CASCADE_CASES, LOSS_CASES, CascadeCase, LossCase, listed

FILE = Path(__file__).with_suffix(".json")
MOST_KEYS = 20_000  # of a case whose rerank is kept too


def digest(*tensors: torch.Tensor) -> str:
    """Returns a hash of shapes and values; the sign of a zero does not count."""
    whole = hashlib.sha256()
    for tensor in tensors:
        values = tensor.detach().float() + 0.0 if tensor.is_floating_point() else tensor
        whole.update(str(list(tensor.shape)).encode())
        whole.update(values.contiguous().numpy().tobytes())
    return whole.hexdigest()[:32]


def mined(case: CascadeCase) -> dict[str, str]:
    """Returns the digests of `cascade_topk` and, of short queues, of `cascade_rerank`: exact on every machine."""
    call = case.call()
    found = {"cascade_topk": digest(*torch.ops.cpr.cascade_topk(*call))}
    if 0 < call.keys[0].shape[0] <= MOST_KEYS:
        found["cascade_rerank"] = digest(*torch.ops.cpr.cascade_rerank(*listed(call, 60)))
    return found


def losses(case: LossCase) -> list[float]:
    """Returns the summed loss and the norms of its gradients, which instruction sets round a little differently."""
    call = case.call()
    leaves = [tensor.clone().requires_grad_() for tensor in (call.query, call.positive, call.keys)]
    loss = torch.ops.cpr.mil_nce(*leaves, *call[3:])
    loss.sum().backward()
    return [float(loss.detach().double().sum()), *(float(leaf.grad.double().norm()) for leaf in leaves)]


if __name__ == "__main__":
    kept = {
        "mining": {case.name: mined(case) for case in CASCADE_CASES},
        "losses": {case.name: losses(case) for case in LOSS_CASES},
    }
    FILE.write_text(json.dumps(kept, indent=1) + "\n")
