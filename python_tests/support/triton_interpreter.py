"""Run cases on the Triton backend under its interpreter; print one JSON line a case: kind, name, and what is wrong.

A script, run by test_triton_interpreter.py in a process of its own: TRITON_INTERPRET=1 must be set before Triton is
imported, and would change every other test of the process.
"""

from __future__ import annotations

import functools
import inspect
import json
import traceback
from dataclasses import replace
from typing import Any

import non_finite
import numpy
import torch
from cases import LARGE_CASES, LOSS_CASES, SMALL_CASES, TIED_CASES, CascadeCase, LossCase, listed, shortened

RERANKED = (
    "one of each", "no query", "empty queue", "k beyond the queue", "primes", "mixed weights", "bf16", "strided",
    "everything at once", "all equal", "NaN", "infinities", "exclude nearly all", "bias", "bias, mixed weights",
)  # fmt: skip
# the interpreter takes as long as there are queries: few, but for one case of more queries than a block holds
TWO_BLOCKS = "k beyond the queue"
SHORT_CASES = [replace(c, queries=66 if c.name == TWO_BLOCKS else min(c.queries, 3)) for c in SMALL_CASES]
# every kind of long case beyond 4,096 entries, where a query is given larger steps; one query, for the interpreter is slow
LONG_CASES = [shortened(case, 1, 4500) for case in LARGE_CASES]
LONG_RERANKED = ("long last stage", "mixed weights, long", "two-valued, long")
KINDS = ("cascade", "rerank", "loss", "non-finite", "swept")  # the last shrinks the ring for good
SWEPT = ("no query", "ids and empty slots", "exclude some", "everything at once")


def few_queries(case: LossCase) -> LossCase:
    """The same kind of case with few queries; as many as make two blocks where it has more than a block holds, or as
    many keys as make many parts.
    """
    if case.queries * case.keys > 3000:
        return replace(case, queries=40, keys=300) if case.queries > 32 else replace(case, queries=3)
    return replace(case, queries=4) if 4 < case.queries <= 16 else case


LOSSES = [few_queries(case) for case in LOSS_CASES + TIED_CASES]


def cascade(case: CascadeCase) -> str:
    """What differs from the reference; nothing when all is well."""
    from cpr_kernels.mining import reference, triton_backend

    call = case.call()
    reason = triton_backend.why_not(call)
    if reason:
        return reason
    return differing(triton_backend.run(call), reference.run(call))


def rerank(case: CascadeCase) -> str:
    """The same of the case over listed candidates."""
    from cpr_kernels.mining import reference, triton_backend

    count = 0 if case.name == "one of each" else 4200 if case in LONG_CASES else 45
    call = listed(case.call(), count)
    reason = triton_backend.why_not(call)
    return reason or differing(triton_backend.rerank(call), reference.rerank(call))


def differing(got: Any, expected: Any) -> str:
    """How a result differs from the reference's, if at all."""
    indices, scores = got
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
    exact = reference.sweep(case.call(dtype=torch.float64), True, True)
    got = triton_backend.sweep(call, True, True)
    if not torch.equal(got.stats, exact.stats):
        return f"statistics {got.stats.tolist()} instead of {exact.stats.tolist()}"
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


def swept(case: CascadeCase) -> str:
    """The case, mined and reranked in sweeps of a few queries, as a ring too small for all of them makes it."""
    from cpr_kernels.mining import triton_kernels

    triton_kernels.RING_BYTES, triton_kernels.MIN_CHUNK = 2560, 3
    chunk = triton_kernels.chunk_of(case.queries, case.keys, 2)
    if case.queries > 5 and not 3 <= chunk <= 5:
        return f"sweeps of {chunk} queries"
    return cascade(case) or rerank(case)


def non_finite_loss(case: non_finite.NonFiniteCase) -> str:
    """What differs from the rule for scores that are not finite; nothing when all is well."""
    from cpr_kernels.losses import triton_backend

    return non_finite.wrong(case._replace(queries=8), triton_backend.sweep, triton_backend.keys_gradient)


def chosen(kind: str) -> tuple[Any, list[Any]]:
    """What checks a case, and the cases of a kind."""
    if kind == "non-finite":
        return non_finite_loss, non_finite.CASES
    if kind == "loss":
        return loss, LOSSES
    if kind == "cascade":
        return cascade, [*SHORT_CASES, *LONG_CASES]
    if kind == "rerank":
        return rerank, [c for c in SHORT_CASES if c.name in RERANKED] + [
            c for c in LONG_CASES if c.name in LONG_RERANKED
        ]
    return swept, [case for case in SMALL_CASES if case.name in SWEPT]


def patch_language_once() -> None:
    """Makes a function that a kernel calls find triton.language as the kernel's start patched it: patching it again
    for every such call, as the interpreter does, is half of all time.
    """
    import triton.language as tl
    from triton.runtime import interpreter

    patch = interpreter._patch_lang

    @functools.cache
    def languages(function: Any) -> list[Any]:
        modules = [value for value in function.__globals__.values() if inspect.ismodule(value)]
        return [module for module in (tl, tl.core) if module in modules]

    def patch_once(function: Any) -> Any:
        if any(tl.core.is_builtin(language.load) for language in languages(function)):
            return patch(function)
        return interpreter._LangPatchScope()  # nothing to restore

    interpreter._patch_lang = patch_once


def look_up_types_once() -> None:
    """Makes the interpreter find the NumPy type of a Triton type in a table that it does not make anew every time."""
    import triton.language as tl
    from triton.runtime import interpreter

    plain, table = interpreter._get_np_dtype, {}

    def np_dtype(type: Any) -> Any:
        element = type.element_ty if isinstance(type, tl.block_type) else type
        if isinstance(element, tl.pointer_type):
            return plain(type)
        if element.name not in table:
            table[element.name] = plain(element)
        return table[element.name]

    interpreter._get_np_dtype = np_dtype


def make_types_once() -> None:
    """Makes the language keep the type of a block, and the shape of a tensor of that type, which it makes anew for
    every value, and find the type of a tuple only where it is read.
    """
    from triton.language import core

    plain, kept = core.block_type.__init__, {}

    def new(cls: Any, element_ty: Any, shape: Any) -> Any:
        sizes = [core._unwrap_if_constexpr(size) for size in shape]
        key = (str(element_ty), getattr(element_ty, "address_space", None), *sizes)
        if key not in kept:
            kept[key] = made = object.__new__(cls)
            plain(made, element_ty, shape)
            made.sizes = core.tuple([core.constexpr(size) for size in made.shape])
            made.count = core.constexpr(made.numel)
        return kept[key]

    def tensor(self: Any, handle: Any, type: Any) -> None:
        block = type.is_block()
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.shape, self.numel = (type.sizes, type.count) if block else (no_sizes, one)

    def pair(self: Any, args: Any, type: Any = None) -> None:
        self.values = list(args)
        if type is not None:
            self.type = type if isinstance(type, core.tuple_type) else core.tuple_type(type)

    def type_of(self: Any) -> Any:
        if "_type" not in self.__dict__:
            self._type = core._type_for_tuple_values(self.values)
        return self._type

    no_sizes, one = core.tuple([]), core.constexpr(1)
    core.block_type.__new__, core.block_type.__init__ = new, lambda self, element_ty, shape: None
    core.tensor.__init__, core.tuple.__init__ = tensor, pair
    core.tuple.type = property(type_of, lambda self, type: self.__dict__.__setitem__("_type", type))


def main() -> None:
    """Every case of every table."""
    patch_language_once()
    look_up_types_once()
    make_types_once()
    numpy.seterr(all="ignore")  # the interpreter multiplies inf * 0 in numpy, as the cases ask
    for kind in KINDS:
        check, cases = chosen(kind)
        for case in cases:
            try:
                wrong = check(case)
            except Exception:  # reported as the case's failure
                wrong = traceback.format_exc()
            print(json.dumps({"kind": kind, "name": case.name, "wrong": wrong}), flush=True)


if __name__ == "__main__":
    main()
