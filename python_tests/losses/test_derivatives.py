"""Every derivative of mil_nce against autograd through the reference: forward, backward, second, torch.func."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cases import LossCase, name_of
from torch import Tensor
from torch.autograd import forward_ad

from cpr_kernels import mil_nce
from cpr_kernels.dispatch.calls import LossCall
from cpr_kernels.losses import reference, second_order

CASES = [
    LossCase("InfoNCE", 3, 7, 2, positives=0, temperature=0.5),
    LossCase("siblings are positives", 4, 9, 3, ids=4, use_own=True, temperature=0.5),
    LossCase("siblings are left out", 4, 9, 3, ids=4, siblings=2, temperature=0.7),
    LossCase("siblings are negatives", 4, 9, 3, ids=4, siblings=0, use_own=True, temperature=0.7),
    LossCase("empty queue", 3, 0, 2, temperature=0.5),
]
EVERY_CASE = pytest.mark.parametrize("case", CASES, ids=name_of)
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def losses_of(case: LossCase, dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], Loss, Loss]:
    """Query, positive and keys; the loss [B] of these by the op, and by the reference."""
    call = case.call(dtype=dtype)

    def by_op(query: Tensor, positive: Tensor, keys: Tensor) -> Tensor:
        return torch.ops.cpr.mil_nce(query, positive, keys, *call[3:])

    def by_reference(query: Tensor, positive: Tensor, keys: Tensor) -> Tensor:
        return reference.run(LossCall(query, positive, keys, *call[3:]))

    return list(call[:3]), by_op, by_reference


def like(tensors: list[Tensor], seed: int = 5) -> tuple[Tensor, ...]:
    """A direction for each."""
    g = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(t.shape, generator=g, dtype=t.dtype) for t in tensors)


@pytest.mark.slow
@EVERY_CASE
def test_gradcheck_forward_backward_and_batched(case: LossCase) -> None:
    inputs, loss, _ = losses_of(case)
    inputs = [t.clone().requires_grad_() for t in inputs]
    batched = case.keys > 0  # torch's own batching of an op that has no rule refuses empty results
    assert torch.autograd.gradcheck(
        loss, inputs, check_forward_ad=True, check_batched_grad=batched, check_batched_forward_grad=batched
    )
    assert torch.autograd.gradgradcheck(loss, inputs, check_fwd_over_rev=True, check_batched_grad=batched)


@EVERY_CASE
@pytest.mark.parametrize("which", [(0,), (1,), (2,), (0, 1), (0, 2), (0, 1, 2)])
def test_second_derivatives_of_some_inputs(case: LossCase, which: tuple[int, ...]) -> None:
    results = []
    for choice in (1, 2):
        inputs, *by = losses_of(case)
        loss = by[choice - 1]
        inputs = [t.clone().requires_grad_(i in which) for i, t in enumerate(inputs)]
        taken = [inputs[i] for i in which]
        weights = torch.linspace(0.5, 2, inputs[0].shape[0], dtype=torch.float64)
        first = torch.autograd.grad((loss(*inputs) * weights).sum(), taken, create_graph=True)
        penalty = sum((g**2).sum() for g in first)
        results.append([*first, *torch.autograd.grad(penalty, taken)])
    for got, expected in zip(*results):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("door", ["op", "fast path", "backend"])
def test_a_gradient_penalty_in_float32(door: str) -> None:
    case = LossCase("", 9, 60, 8, ids=5, use_own=True)
    call = case.call()
    names = ("query_ids", "key_ids", "use_own")
    masks = {name: getattr(call, name) for name in names}

    def loss(query: Tensor) -> Tensor:
        if door == "op":
            return torch.ops.cpr.mil_nce(query, *call[1:])
        backend = "auto" if door == "fast path" else "reference"
        return mil_nce(query, *call[1:5], **masks, reduction="none", backend=backend)

    results = []
    for by, dtype in ((loss, torch.float32), (None, torch.float64)):
        query = call.query.to(dtype).clone().requires_grad_()
        if by is None:
            value = reference.run(case.call(dtype=dtype)._replace(query=query))
        else:
            value = by(query)
        (first,) = torch.autograd.grad(value.sum(), query, create_graph=True)
        results.append(torch.autograd.grad((first**2).sum(), query)[0].double())
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-3 * results[1].abs().max().item())
    assert results[1].abs().max() > 1


@pytest.mark.slow
@EVERY_CASE
def test_torch_func_equals_the_reference(case: LossCase) -> None:
    inputs, op, expected = losses_of(case)
    every, along = (0, 1, 2), like(inputs)
    transforms = {
        "grad": lambda f: torch.func.grad(lambda *x: f(*x).sum(), every)(*inputs),
        "vjp": lambda f: torch.func.vjp(f, *inputs)[1](torch.linspace(1, 2, len(inputs[0])).double()),
        "jvp": lambda f: torch.func.jvp(f, tuple(inputs), along),
        "jacrev": lambda f: torch.func.jacrev(f, every)(*inputs),
        "jacfwd": lambda f: torch.func.jacfwd(f, every)(*inputs),
        "hessian": lambda f: torch.func.hessian(lambda *x: f(*x).sum(), every)(*inputs),
        "forward over forward": lambda f: torch.func.jacfwd(lambda *x: torch.func.jvp(f, x, along)[1], every)(
            *inputs
        ),
        "reverse over forward": lambda f: torch.func.jacrev(lambda *x: torch.func.jvp(f, x, along)[1], every)(
            *inputs
        ),
        "of the direction": lambda f: torch.func.jacrev(
            lambda *v: torch.func.jvp(f, tuple(inputs), v)[1], every
        )(*along),
        "reverse over reverse": lambda f: torch.func.jacrev(torch.func.jacrev(f, 2), 0)(*inputs),
        "a gradient per sample": lambda f: torch.vmap(
            torch.func.grad(lambda q, p, k: f(q, p, k).sum()), (0, None, None)
        )(torch.stack([inputs[0], -inputs[0]]), *inputs[1:]),
    }
    for name, transform in transforms.items():
        got, wanted = transform(op), transform(expected)
        torch.testing.assert_close(got, wanted, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("in_dims", [(0, None, None), (0, 0, None), (1, 2, None), (None, None, 0), (0, 1, 2)])
@EVERY_CASE
def test_vmap_is_one_call_after_another(case: LossCase, in_dims: tuple[int | None, ...]) -> None:
    inputs, op, expected = losses_of(case)
    batches = [
        t if d is None else torch.stack([t, 2 * t, -t], dim=d).contiguous() for t, d in zip(inputs, in_dims)
    ]
    for transform in (lambda f: f, lambda f: torch.func.grad(lambda *x: f(*x).sum(), (0, 1, 2))):
        got = torch.vmap(transform(op), in_dims)(*batches)
        torch.testing.assert_close(got, torch.vmap(transform(expected), in_dims)(*batches))


def test_vmap_over_masks() -> None:
    call = LossCase("", 4, 9, 3, ids=4, use_own=True).call()
    g = torch.Generator().manual_seed(0)
    positives = torch.randint(-1, 9, (3, 4, 2), generator=g)
    key_ids = torch.randint(-1, 4, (3, 9), generator=g)
    use_own = torch.rand(3, 4, generator=g) < 0.5

    def loss(positives: Tensor, key_ids: Tensor, use_own: Tensor) -> Tensor:
        fields = call._replace(positives=positives, key_ids=key_ids, use_own=use_own)
        return torch.ops.cpr.mil_nce(*fields)

    for in_dims in ((0, None, None), (0, None, 0), (0, 0, 0), (None, 0, None)):
        given = [t if d == 0 else t[0] for t, d in zip((positives, key_ids, use_own), in_dims)]
        each = [loss(*(t[i] if d == 0 else t for t, d in zip(given, in_dims))) for i in range(3)]
        assert torch.equal(torch.vmap(loss, in_dims)(*given), torch.stack(each)), in_dims


@pytest.mark.parametrize("door", ["op", "mil_nce"])
def test_dual_numbers_give_the_derivative(door: str) -> None:
    case = LossCase("", 9, 60, 8, temperature=0.5)
    inputs, op, expected = losses_of(case, torch.float32)
    call = case.call()
    loss = op if door == "op" else lambda *x: mil_nce(*x, *call[3:5], reduction="none")
    along = like(inputs)
    for grad in (True, False):
        with torch.set_grad_enabled(grad), forward_ad.dual_level():
            tangents = [
                forward_ad.unpack_dual(f(*map(forward_ad.make_dual, inputs, along))).tangent
                for f in (loss, expected)
            ]
            assert tangents[1].abs().max() > 0.1
            torch.testing.assert_close(*tangents, rtol=1e-4, atol=1e-4)


def test_blocks_of_queries_do_not_change_the_values(monkeypatch: pytest.MonkeyPatch) -> None:
    case = LossCase("", 7, 9, 3, ids=4, use_own=True, temperature=0.5)
    inputs, op, expected = losses_of(case)
    monkeypatch.setattr(second_order, "BLOCK_LOGITS", 25)  # 2 queries a block

    def results(f: Loss) -> tuple[Tensor, ...]:
        return torch.func.hessian(lambda *x: f(*x).sum(), (0, 2))(*inputs)

    torch.testing.assert_close(results(op), results(expected))
    twice = [
        torch.func.jvp(lambda *x, f=f: torch.func.jvp(f, x, like(inputs))[1], tuple(inputs), like(inputs, 6))
        for f in (op, expected)
    ]
    torch.testing.assert_close(*twice)


def test_no_array_of_all_queries_and_keys_is_made() -> None:
    rows, num_keys = 512, 16384
    inputs, op, _ = losses_of(LossCase("", rows, num_keys, 4, positives=0), torch.float32)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            made = func(*args, **(kwargs or {}))
            for tensor in torch.utils._pytree.tree_leaves(made):
                if isinstance(tensor, Tensor):
                    largest = max(largest, tensor.numel())
            return made

    inputs = [t.requires_grad_() for t in inputs]
    with Watch():
        first = torch.autograd.grad(op(*inputs).sum(), inputs, create_graph=True)
        torch.autograd.grad(sum((g**2).sum() for g in first), inputs)
        with forward_ad.dual_level():
            op(*map(forward_ad.make_dual, inputs, like(inputs)))
    assert 0 < largest < rows * num_keys / 4


@pytest.mark.parametrize(
    "third",
    [
        lambda f, x: torch.func.jacrev(torch.func.hessian(f))(x),
        lambda f, x: torch.func.jacfwd(torch.func.hessian(f))(x),
        lambda f, x: torch.func.grad(lambda y: torch.func.hessian(f)(y).sum())(x),
    ],
)
def test_third_derivatives_are_refused(third: Callable[..., Tensor]) -> None:
    (query, positive, keys), op, _ = losses_of(CASES[0])
    with pytest.raises(RuntimeError, match="a third was needed"):
        third(lambda q: op(q, positive, keys).sum(), query)


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1, 2])
def test_compiled_code_refuses_a_second_derivative(which: int) -> None:
    inputs, op, expected = losses_of(CASES[0])
    taken = inputs[which].requires_grad_()
    compiled = torch.compile(lambda *x: op(*x).sum(), backend="aot_eager")
    (first,) = torch.autograd.grad(compiled(*inputs), taken, create_graph=True)
    torch.testing.assert_close(first, torch.autograd.grad(expected(*inputs).sum(), taken)[0])
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        torch.autograd.grad((first**2).sum(), taken)


@pytest.mark.slow
def test_compiled_code_refuses_dual_numbers() -> None:
    inputs, op, _ = losses_of(CASES[0])
    compiled = torch.compile(lambda *x: op(*x).sum(), backend="aot_eager")
    with forward_ad.dual_level():
        dual = [forward_ad.make_dual(t, torch.ones_like(t)) for t in inputs]
        with pytest.raises(RuntimeError, match="compiled code was given dual numbers"):
            compiled(*dual)
