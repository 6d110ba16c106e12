"""Losses with NaN, infinities and overflowing products: what every backend of `mil_nce` must make of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from cases import LossCase
from torch import Tensor

from cpr_kernels.dispatch.calls import LossCall, Sweep
from cpr_kernels.losses import reference

BASE = LossCase("", 19, 90, 20, ids=12, use_own=True)
NAN, INFINITE = float("nan"), float("inf")


class NonFiniteCase(NamedTuple):
    """A call to be spoilt: (argument, row, feature, value) each; a feature of -1 multiplies the whole row."""

    name: str
    changes: list[tuple[str, int, int, float]]
    siblings: int = 1
    dtype: torch.dtype = torch.float32
    queries: int = BASE.queries

    def call(self) -> LossCall:
        call = replace(BASE, queries=self.queries).call(dtype=self.dtype)
        features = {name: getattr(call, name).clone() for name in ("query", "positive", "keys")}
        for name, row, feature, value in self.changes:
            if name != "keys":
                row = min(row, self.queries - 1)
            if feature < 0:
                features[name][row] *= value
            else:
                features[name][row, feature] = value
        query_ids, key_ids = call.query_ids.clone(), call.key_ids.clone()
        query_ids[2], key_ids[5], key_ids[7] = 40, 40, -1  # key 5 is a sibling of query 2, slot 7 is empty
        ids = {"query_ids": query_ids, "key_ids": key_ids}
        return call._replace(**features, **ids, siblings=self.siblings)


CASES = [
    NonFiniteCase("NaN in a key", [("keys", 5, 3, NAN)]),
    NonFiniteCase("NaN in the last key, bf16", [("keys", 89, 0, NAN)], dtype=torch.bfloat16),
    NonFiniteCase("an infinite key", [("keys", 5, 0, INFINITE)], siblings=0),
    NonFiniteCase("a negative infinite key, fp16", [("keys", 64, 19, -INFINITE)], dtype=torch.float16),
    NonFiniteCase("NaN in a query", [("query", 3, 1, NAN)]),
    NonFiniteCase("an infinite query", [("query", 18, 1, -INFINITE)], siblings=2),
    NonFiniteCase("an infinite positive", [("positive", 4, 19, INFINITE)]),
    NonFiniteCase("NaN in a positive", [("positive", 0, 0, NAN)], siblings=2),
    NonFiniteCase("NaN in an empty slot", [("keys", 7, 2, NAN)]),
    NonFiniteCase("infinity in an empty slot", [("keys", 7, 0, INFINITE)], siblings=2),
    NonFiniteCase("NaN in a sibling that is left out", [("keys", 5, 3, NAN)], siblings=2),
    NonFiniteCase("infinity in a sibling that is left out", [("keys", 5, 3, -INFINITE)], siblings=2),
    NonFiniteCase("a query and a key that overflow", [("query", 1, -1, 1e30), ("keys", 9, -1, 1e30)]),
    NonFiniteCase("the same, negative", [("query", 1, -1, 1e30), ("keys", 9, -1, -1e30)], siblings=2),
    NonFiniteCase("an own pair that overflows", [("query", 6, -1, 1e25), ("positive", 6, -1, 1e25)]),
]


def takes_part(call: LossCall, b: int, j: int) -> bool:
    """Whether key j is in query b's sums."""
    if call.key_ids[j] < 0:
        return False
    return not (call.siblings == 2 and bool(call.key_ids[j] == call.query_ids[b]))


def is_finite(a: Tensor, b: Tensor) -> bool:
    return bool(a.isfinite().all() and b.isfinite().all() and abs(float(a.double() @ b.double())) < 3.4e38)


class Expected(NamedTuple):
    spoilt: Tensor  # [B] bool
    spoilt_keys: Tensor  # [N] bool: keys that take part in a spoilt query
    sweep: Sweep  # in float64, without what is not finite; meaningless where spoilt


def expected_of(call: LossCall) -> Expected:
    """The rule, pair by pair; and the values of the others, from a call whose numbers are all finite."""
    rows, num_keys = call.query.shape[0], call.keys.shape[0]
    spoilt = torch.zeros(rows, dtype=torch.bool)
    for b in range(rows):
        own = is_finite(call.query[b], call.positive[b])
        pairs = (is_finite(call.query[b], call.keys[j]) for j in range(num_keys) if takes_part(call, b, j))
        spoilt[b] = not own or not all(pairs)
    spoilt_keys = torch.tensor(
        [any(spoilt[b] and takes_part(call, b, j) for b in range(rows)) for j in range(num_keys)]
    )
    clean = {
        name: torch.where(getattr(call, name).isfinite(), getattr(call, name), 0).double()
        for name in ("query", "positive", "keys")
    }
    clean["query"][spoilt] = 0
    return Expected(spoilt, spoilt_keys, reference.sweep(call._replace(**clean), True))


Sweeper = Callable[[LossCall, bool], Sweep]
KeysGradient = Callable[[LossCall, Tensor, Tensor, Tensor], Tensor]


def wrong(case: NonFiniteCase, sweep: Sweeper, keys_gradient: KeysGradient | None) -> str:
    """What a backend gets wrong of a case; nothing when all is well."""
    call = case.call()
    spoilt, spoilt_keys, exact = expected_of(call)
    # what cancels leaves a rounding of its own size
    largest = max(t.nan_to_num(0, 0, 0).abs().max().item() for t in (call.positive, call.keys))
    got = sweep(call, True)
    for name in ("loss", "own_weight", "grad_query"):
        value, wanted = getattr(got, name), getattr(exact, name)
        if not value[spoilt].isnan().all():
            return f"{name} of spoilt queries is not NaN: {value[spoilt].tolist()}"
        error = (value[~spoilt].double() - wanted[~spoilt]).abs()
        slack = 2e-4 * (1 + wanted[~spoilt].abs()) + 1e-5 * largest
        if not bool((error <= slack).all()):
            return f"{name} is off by {error.max().item():.3g}"
    without = sweep(call, False).loss
    if not torch.equal(without.nan_to_num(-1), got.loss.nan_to_num(-1)):
        return "another loss without the gradient"
    if keys_gradient is None:
        return ""
    grad_loss = torch.linspace(-1, 2, call.query.shape[0])
    grad = keys_gradient(call, grad_loss, got.lse_all, got.lse_positive)
    if not grad[spoilt_keys].isnan().all():
        return "the gradient of a key that takes part in a spoilt query is not NaN"
    if not grad[~spoilt_keys].isfinite().all():
        return "the gradient of a key that takes part in no spoilt query is not finite"
    return ""
