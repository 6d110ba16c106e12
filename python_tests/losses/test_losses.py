"""MIL-NCE: a dumb loop guards the reference, the reference in float64 guards every backend and every gradient."""

from __future__ import annotations

import math

import pytest
import torch
from cases import DRAWN_CASES, LOSS_CASES, LossCase, name_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cpr_kernels import MILNCELoss, mil_nce
from cpr_kernels.dispatch.calls import LossCall
from cpr_kernels.losses import reference

FLOATS = ("query", "positive", "keys")


def oracle(call: LossCall) -> list[float]:
    """Python floats and `math.fsum` over the definition, one logit at a time."""
    losses = []
    for b in range(call.query.shape[0]):
        logits, positive = [], []

        def logit(key: Tensor, b: int = b) -> float:
            pairs = zip(call.query[b].double().tolist(), key.double().tolist())
            return math.fsum(x * y for x, y in pairs) / call.temperature

        for j in range(call.keys.shape[0]):
            listed = j in call.positives[b].tolist()
            if call.key_ids is not None:
                if call.key_ids[j] < 0:
                    continue
                sibling = call.query_ids is not None and call.key_ids[j] == call.query_ids[b]
                if sibling and call.siblings == 2:
                    continue
                listed = listed or bool(sibling and call.siblings == 1)
            drawn = 1 if call.negatives is None else call.negatives[b].tolist().count(j)
            times = 1 if j in call.positives[b].tolist() else drawn
            logits += [logit(call.keys[j])] * times
            positive += [listed] * times
        own_counts = call.use_own is None or bool(call.use_own[b]) or not any(positive)
        logits.append(logit(call.positive[b]))
        positive.append(own_counts)
        top, positive_top = max(logits), max(x for x, p in zip(logits, positive) if p)
        everything = top + math.log(math.fsum(math.exp(x - top) for x in logits))
        good = positive_top + math.log(
            math.fsum(math.exp(x - positive_top) for x, p in zip(logits, positive) if p)
        )
        losses.append(everything - good)
    return losses


def gradients(loss: Tensor, call: LossCall) -> list[Tensor]:
    """Of a loss weighted differently per query."""
    weight = torch.linspace(-1, 2, loss.shape[0], dtype=loss.dtype, device=loss.device)
    return list(torch.autograd.grad((loss * weight).sum(), [getattr(call, name) for name in FLOATS]))


def with_gradients(call: LossCall) -> LossCall:
    return call._replace(**{name: getattr(call, name).clone().requires_grad_() for name in FLOATS})


def within_budget(result: Tensor, exact: Tensor, honest: Tensor, scale: float = 1.0) -> None:
    """No worse than plain torch in the same dtype, and a slack of a few roundings at the values' own size."""
    assert result.shape == exact.shape
    if not result.numel():
        return
    slack = 4e-6 * max(1.0, scale) + 2.0 * torch.finfo(honest.dtype).eps * exact.abs().max().item()
    error = (result.double() - exact).abs().max().item()
    budget = 2.0 * (honest.double() - exact).abs().max().item() + slack
    assert error <= budget, f"error {error:.3g} beyond the budget {budget:.3g}"


@pytest.mark.parametrize("case", LOSS_CASES + DRAWN_CASES, ids=name_of)
def test_reference_equals_the_oracle(case: LossCase) -> None:
    call = case.call(dtype=torch.float64)
    torch.testing.assert_close(
        reference.run(call), torch.tensor(oracle(call), dtype=torch.float64), atol=1e-9, rtol=1e-9
    )


@pytest.mark.parametrize("case", LOSS_CASES + DRAWN_CASES, ids=name_of)
def test_native_value_and_gradients(case: LossCase, isa: str) -> None:
    call, exact_call, honest_call = (with_gradients(case.call(dtype=d)) for d in (None, torch.float64, None))
    loss = torch.ops.cpr.mil_nce(*call)
    exact, honest = reference.run(exact_call), reference.run(honest_call)
    assert loss.dtype == torch.float32
    scale = 1.0 / case.temperature
    within_budget(loss, exact, honest, scale)
    triples = zip(gradients(loss, call), gradients(exact, exact_call), gradients(honest, honest_call))
    for gradient, exact_gradient, honest_gradient in triples:
        assert gradient.dtype == case.dtype
        within_budget(gradient, exact_gradient, honest_gradient, scale)


@pytest.mark.parametrize("case", LOSS_CASES + DRAWN_CASES, ids=name_of)
def test_reference_sweep_is_its_autograd(case: LossCase) -> None:
    call = with_gradients(case.call(dtype=torch.float64))
    by_op = torch.ops.cpr.mil_nce(*call)
    by_autograd = reference.run(call)
    torch.testing.assert_close(by_op, by_autograd)
    for a, b in zip(gradients(by_op, call), gradients(by_autograd, call)):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-7)


def test_gradcheck_in_float64() -> None:
    call = LossCase("", 4, 9, 3, ids=5, use_own=True, temperature=0.5).call(dtype=torch.float64)
    rest = call[3:]

    def loss(query: Tensor, positive: Tensor, keys: Tensor) -> Tensor:
        return torch.ops.cpr.mil_nce(query, positive, keys, *rest)

    assert torch.autograd.gradcheck(loss, [t.clone().requires_grad_() for t in call[:3]])


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_and_runs_do_not_change_a_bit(threads: int) -> None:
    call = with_gradients(LossCase("", 130, 5000, 48, positives=6, ids=40).call())
    before = torch.get_num_threads()

    def run(count: int) -> list[Tensor]:
        torch.set_num_threads(count)
        loss = torch.ops.cpr.mil_nce(*call)
        return [loss, *gradients(loss, call)]

    try:
        expected = run(1)
        for _ in range(3):
            assert all(torch.equal(a, b) for a, b in zip(run(threads), expected))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("temperature", [1e-6, 1e-3, 0.0175, 1.0, 1e6])
def test_opposite_unit_vectors_stay_finite(temperature: float) -> None:
    """The published log(softmax) form is infinite here from T = 0.0175 down: positive at cosine -1, negative at 1."""
    query = torch.tensor([[1.0, 0.0]], requires_grad=True)
    loss = mil_nce(query, -query.detach(), torch.tensor([[1.0, 0.0]]), temperature=temperature)
    (gradient,) = torch.autograd.grad(loss, query)
    assert loss.isfinite() and gradient.isfinite().all()
    expected = reference.run(LossCall(query.double(), -query.double(), query.double(), torch.zeros(1, 0).long(),
                                      temperature, None, None, None, 1))  # fmt: skip
    torch.testing.assert_close(loss.double(), expected.mean().detach(), rtol=1e-5, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), queries=st.integers(1, 40), keys=st.integers(0, 200), data=st.data())
def test_laws(seed: int, queries: int, keys: int, data: st.DataObject) -> None:
    """The order of keys and repeats of positives do not matter; more positives, smaller loss; loss >= 0."""
    case = LossCase("", queries, keys, data.draw(st.integers(1, 20)), positives=data.draw(st.integers(0, 5)),
                    ids=data.draw(st.sampled_from([None, 3, 30])), seed=seed)  # fmt: skip
    call = case.call()
    loss = torch.ops.cpr.mil_nce(*call)
    assert (loss >= -1e-5).all()
    doubled = call._replace(positives=torch.cat([call.positives, call.positives], dim=1))
    assert torch.equal(torch.ops.cpr.mil_nce(*doubled), loss)
    order = torch.randperm(keys, generator=torch.Generator().manual_seed(seed))
    place = torch.cat([order.argsort(), torch.tensor([-1])])
    moved = call._replace(
        keys=call.keys[order],
        positives=place[call.positives],
        key_ids=None if call.key_ids is None else call.key_ids[order],
    )
    torch.testing.assert_close(torch.ops.cpr.mil_nce(*moved), loss, atol=2e-5, rtol=1e-5)
    if keys:
        extra = torch.randint(0, keys, (queries, 1), generator=torch.Generator().manual_seed(seed))
        more = call._replace(positives=torch.cat([call.positives, extra], dim=1))
        assert (torch.ops.cpr.mil_nce(*more) <= loss + 1e-5).all()


def test_doors_agree() -> None:
    call = LossCase("", 6, 40, 8, ids=5, use_own=True).call()
    arguments, masks = (
        call[:5],
        {"query_ids": call.query_ids, "key_ids": call.key_ids, "use_own": call.use_own},
    )
    each = mil_nce(*arguments, **masks, reduction="none")
    assert torch.equal(each, torch.ops.cpr.mil_nce(*call))
    torch.testing.assert_close(mil_nce(*arguments, **masks), each.mean())
    torch.testing.assert_close(mil_nce(*arguments, **masks, reduction="sum"), each.sum())
    torch.testing.assert_close(MILNCELoss(0.07)(*arguments[:4], **masks), each.mean())
    torch.testing.assert_close(mil_nce(*arguments, **masks, backend="reference"), each.mean())
    no_positives = mil_nce(*arguments[:3], reduction="none")
    listed = (
        torch.cat([(call.query * call.positive).sum(1, keepdim=True), call.query @ call.keys.T], 1) / 0.07
    )
    expected = torch.nn.functional.cross_entropy(listed, torch.zeros(6).long(), reduction="none")
    torch.testing.assert_close(no_positives, expected, atol=1e-5, rtol=1e-5)
