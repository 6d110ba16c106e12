"""The short way to the loss: the bits of the op, forward and backward, and only where nothing would notice."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import DRAWN_CASES, LOSS_CASES, LossCase
from torch import Tensor

from cpr_kernels import mil_nce
from cpr_kernels.dispatch import fast_path as direct
from cpr_kernels.dispatch.calls import LossCall
from cpr_kernels.losses import autograd

pytestmark = pytest.mark.skipif(
    not direct._CONNECTED, reason="this torch has no DLPack exchange table: there is only the op"
)
SMALL = LossCase("", 6, 40, 8, ids=5, use_own=True)
FEATURES = ("query", "positive", "keys")


def wanting(call: LossCall, names: tuple[str, ...] = FEATURES) -> LossCall:
    """The call with leaves of its own that ask for gradients."""
    return call._replace(**{name: getattr(call, name).detach().clone().requires_grad_() for name in names})


def gradients(call: LossCall, loss: Tensor) -> list[Tensor | None]:
    loss.backward(torch.linspace(-1, 1, loss.shape[0], dtype=loss.dtype))
    return [getattr(call, name).grad for name in FEATURES]


def assert_same(ours: Tensor | None, theirs: Tensor | None) -> None:
    if ours is None or theirs is None:
        assert ours is theirs
        return
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("case", LOSS_CASES + DRAWN_CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("names", [("query",), FEATURES], ids=["query", "all"])
def test_same_bits_as_the_op(case: LossCase, names: tuple[str, ...]) -> None:
    ours, theirs = wanting(case.call(), names), wanting(case.call(), names)
    loss = autograd.run_directly(ours)
    if case.dtype == torch.float64:
        assert loss is None
        return
    assert loss is not None and loss.requires_grad
    expected = torch.ops.cpr.mil_nce.default(*theirs)
    assert_same(loss.detach(), expected.detach())
    for of_ours, of_theirs in zip(gradients(ours, loss), gradients(theirs, expected)):
        assert_same(of_ours, of_theirs)


def test_plain_calls_go_directly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.cpr, "mil_nce", None)
    call = SMALL.call()
    assert not mil_nce(*call[:4]).requires_grad
    wants = wanting(call, ("query",))
    assert mil_nce(*wants[:4]).requires_grad
    with torch.no_grad():
        assert not mil_nce(*wants[:4]).requires_grad
    with torch.inference_mode():
        assert mil_nce(*call[:4]).is_inference()


def test_profiler_and_transforms_meet_the_op() -> None:
    call = wanting(SMALL.call(), ("query",))
    with torch.profiler.profile() as profile:
        mil_nce(*call[:4])
    assert "cpr::mil_nce" in {event.name for event in profile.events()}

    def ways(run: Any) -> Any:
        try:
            return torch.func.grad(lambda query: run(query, *call[1:4]).sum())(call.query.detach())
        except RuntimeError as error:
            return str(error).splitlines()[0]

    by_op = ways(lambda *inputs: torch.ops.cpr.mil_nce.default(*inputs, 0.07))
    ours = ways(lambda *inputs: mil_nce(*inputs, reduction="none"))
    assert torch.equal(ours, by_op) if isinstance(by_op, Tensor) else ours == by_op


@pytest.mark.parametrize("name", [*FEATURES, "positives", "query_ids", "use_own"])
def test_what_is_not_plain_is_left_to_the_op(name: str) -> None:
    call = SMALL.call()
    value = getattr(call, name)
    others = [value.to("meta"), torch._to_functional_tensor(value), torch.nn.Parameter(value, False), [1, 2]]
    if value.is_floating_point():
        others.append(torch._neg_view(value))
    for other in others:
        assert autograd.run_directly(call._replace(**{name: other})) is None


def test_numbers_of_other_types_are_left_to_the_op() -> None:
    call = SMALL.call()
    assert autograd.run_directly(call._replace(temperature=torch.tensor(0.1))) is None
    assert autograd.run_directly(call._replace(siblings="1")) is None


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"temperature": 0.0}, "temperature must be"),
        ({"siblings": 7}, "siblings must be"),
        ({"positives": torch.full((6, 1), 40)}, "positives"),
        ({"query": torch.ones(5, 8)}, "positive must have query's shape"),
    ],
)
def test_errors_are_the_ops(changed: dict[str, Any], said: str) -> None:
    call = SMALL.call()._replace(**changed)
    with pytest.raises(ValueError, match=said) as ours:
        autograd.run_directly(call)
    with pytest.raises(ValueError, match=said) as theirs:
        torch.ops.cpr.mil_nce.default(*call)
    assert str(ours.value) == str(theirs.value)


def test_saved_tensor_hooks_see_what_is_kept() -> None:
    call, seen = wanting(SMALL.call(), ("query",)), []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: seen.append(x.shape) or x, lambda x: x):
        loss = mil_nce(*call[:4])
    assert seen
    loss.backward()
    assert call.query.grad is not None
