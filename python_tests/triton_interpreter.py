"""Run cases on the Triton backend under its interpreter and print one JSON line a case: name, and what is wrong.

A script, run by test_triton_interpreter.py in a process of its own: TRITON_INTERPRET=1 must be set before Triton is
imported, and would change every other test of the process.
"""

from __future__ import annotations

import json
import sys
import traceback
from typing import Any

import numpy
import torch
from cases import LOSS_CASES, SMALL_CASES, CascadeCase, LossCase

numpy.seterr(all="ignore")  # the interpreter multiplies inf * 0 in numpy, as the cases ask


def cascade(case: CascadeCase) -> str:
    """What differs from the reference; nothing when all is well."""
    from cpr_kernels.mining import reference, triton_backend

    call = case.call()
    reason = triton_backend.why_not(call)
    if reason:
        return reason
    expected = reference.run(call)
    indices, scores = triton_backend.run(call)
    if not torch.equal(indices, expected[0]):
        return f"indices {indices.tolist()} instead of {expected[0].tolist()}"
    return "" if torch.equal(scores, expected[1]) else f"scores {scores.tolist()}"


def loss(case: LossCase) -> str:
    """What differs from the reference in float64; nothing when all is well."""
    from cpr_kernels.losses import reference, triton_backend

    call = case.call()
    reason = triton_backend.why_not(call)
    if reason:
        return reason
    exact = reference.sweep(case.call(dtype=torch.float64), True)
    got = triton_backend.sweep(call, True)
    grad_loss = torch.linspace(-1, 1, call.query.shape[0])
    exact_keys = reference.keys_gradient(
        case.call(dtype=torch.float64), grad_loss.double(), exact.lse_all, exact.lse_positive
    )
    keys = triton_backend.keys_gradient(call, grad_loss, got.lse_all, got.lse_positive)
    pairs: list[tuple[str, Any, Any]] = [
        *((name, getattr(got, name), getattr(exact, name)) for name in got._fields),
        ("grad_keys", keys, exact_keys),
    ]
    # a logit of size L is known to L * 2^-23, and so is every weight; 16-bit gradients are rounded once more
    logits = max([1.0, *(t.abs().max().item() for t in (exact.lse_all, exact.lse_positive) if t.numel())])
    rounding = {torch.float32: 0.0, torch.bfloat16: 2**-8, torch.float16: 2**-11}[call.keys.dtype]
    for name, value, wanted in pairs:
        error, size = (value.double() - wanted).abs(), wanted.abs().max().item() if wanted.numel() else 0.0
        slack = (1 + size) * (1e-5 + 4e-7 * logits) + (rounding * size if name == "grad_keys" else 0.0)
        if not (error <= slack).all():
            return f"{name} is off by {error.max().item():.3g} (at most {slack:.3g} allowed)"
    return ""


def main(kind: str) -> None:
    """Every case of one table."""
    check: Any = cascade if kind == "cascade" else loss
    cases: Any = SMALL_CASES if kind == "cascade" else [c for c in LOSS_CASES if c.queries * c.keys <= 3000]
    for case in cases:
        try:
            wrong = check(case)
        except Exception:  # reported as the case's failure
            wrong = traceback.format_exc()
        print(json.dumps({"name": case.name, "wrong": wrong}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
