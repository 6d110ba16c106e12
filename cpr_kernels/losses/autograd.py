"""MIL-NCE as a function that autograd and torch.func transform: one sweep leaves what the first derivative needs.

Only what a gradient reads is saved. Where the query or the own positive alone take gradients that is nothing of the
keys, so that a queue may be written between the loss and its backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..dispatch.batching import fold, looped, unfold
from ..dispatch.calls import LossCall
from ..dispatch.checks import check_loss, check_positives_in_range
from ..dispatch.fast_path import dispatcher_is_idle
from ..dispatch.native import core
from . import native
from .derivatives import Directional, Gradient, Known, Settings, first_gradients
from .second_order import NUM_FIELDS, PER_QUERY


def version(tensor: Any) -> int | None:
    """The tensor's version counter; None where there is none to compare."""
    return None if not isinstance(tensor, Tensor) or tensor.is_inference() else tensor._version


def _keep(ctx: Any, call: LossCall, backend: str, output: Sequence[Tensor]) -> None:
    """Saves what `_backward` reads for the gradients that are needed, and notes the call for second derivatives."""
    of_query, of_positive, of_keys = ctx.needs_input_grad[:3]
    traced = torch._C._len_torch_dispatch_stack() > 0
    _, lse_all, lse_positive, own_weight, grad_query = output
    for_keys = (call.keys, call.positives, call.query_ids, call.key_ids, lse_all, lse_positive)
    ctx.save_for_backward(
        grad_query if of_query else None,
        own_weight if of_positive else None,
        call.query if of_positive or of_keys or (traced and of_query) else None,
        call.positive if traced and of_positive else None,
        *(for_keys if of_keys else (None,) * len(for_keys)),
    )
    ctx.call, ctx.versions, ctx.backend, ctx.traced = call, tuple(map(version, call)), backend, traced


def _backward(ctx: Any, grad_loss: Tensor | None) -> Sequence[Tensor | None]:
    """With respect to query, positive and keys, from d loss [B]."""
    if grad_loss is None:
        return None, None, None
    wants = ctx.needs_input_grad[:3]
    grad_query, own_weight, query, positive, keys, positives, query_ids, key_ids, *lse = ctx.saved_tensors
    known = Known(grad_query, own_weight, *lse)
    if torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
        changed = ctx.versions != tuple(map(version, ctx.call))
        return Gradient.of(ctx.call, grad_loss, known, Settings(wants, ctx.backend, changed))
    call = ctx.call
    if wants[1] or wants[2]:
        call = call._replace(query=query)
    if wants[2]:
        call = call._replace(keys=keys, positives=positives, query_ids=query_ids, key_ids=key_ids)
    of_query, of_positive, of_keys = first_gradients(call, grad_loss, known, wants, ctx.backend)
    if ctx.traced:  # a compiler keeps what is read here, and so refuses second derivatives, not knowing them
        of_query = None if of_query is None else torch.ops.cpr._mil_nce_gradient_at(of_query, query)
        of_positive = (
            None if of_positive is None else torch.ops.cpr._mil_nce_gradient_at(of_positive, positive)
        )
    return of_query, of_positive, of_keys


class MILNCE(torch.autograd.Function):
    """The outputs of a sweep, of which the loss [B] is differentiable."""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        """`inputs` are the call's fields, whether the query's gradient is wanted, and the backend's name."""
        *call, want_gradient, backend = inputs
        return torch.ops.cpr._mil_nce_sweep.default(*call, want_gradient=want_gradient, backend=backend)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """The loss is the only output with a derivative."""
        call = LossCall(*inputs[:NUM_FIELDS])
        _keep(ctx, call, inputs[-1], output)
        ctx.save_for_forward(*(field if isinstance(field, Tensor) else None for field in call))
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, *_: Any) -> tuple[Any, ...]:
        """With respect to query, positive and keys."""
        return (*_backward(ctx, grad_loss), *(None,) * (NUM_FIELDS - 1))

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor | None, ...]:
        """Along tangents of query, positive and keys."""
        return (Directional.of(ctx.call, tangents[:3]), None, None, None, None)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Any, Any]:
        """As more queries where the keys are shared, else one call after another."""
        call, dims = LossCall(*inputs[:NUM_FIELDS]), LossCall(*in_dims[:NUM_FIELDS])
        if dims.keys is not None or dims.key_ids is not None or info.batch_size == 0:
            return looped(MILNCE.apply, info.batch_size, in_dims, inputs)
        size = info.batch_size
        folded: dict[str, Any] = {
            name: fold(getattr(call, name), getattr(dims, name), size) for name in PER_QUERY
        }
        output = MILNCE.apply(*call._replace(**folded), *inputs[NUM_FIELDS:])
        return tuple(unfold(part, size) for part in output), (0,) * len(output)


def wants_gradient(query: Tensor) -> bool:
    """Does a gradient of the query have to come out of the sweep?"""
    if torch._C._are_functorch_transforms_active():
        return True
    return torch.is_grad_enabled() and getattr(query, "requires_grad", False)  # None: the sweep refuses it


def differentiable_loss(*call: Any, backend: str = "auto") -> Tensor:
    """The loss [B] of a call's fields, for autograd and torch.func."""
    return MILNCE.apply(*call, wants_gradient(call[0]), backend)[0]


class _NativeSweep(torch.autograd.Function):
    """The native sweep of a :class:`LossCall` that was checked, past torch's dispatcher: loss [B]."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        """`inputs` are the call's."""
        call = LossCall(*inputs)
        output = native.sweep(call, ctx.needs_input_grad[0])
        _keep(ctx, call, "auto", output)
        return output.loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> Any:
        """With respect to the call's fields."""
        return (*_backward(ctx, grad_loss), *(None,) * (NUM_FIELDS - 3))


def run_directly(call: LossCall) -> Tensor | None:
    """The loss [B] of plain CPU tensors where nothing listens to torch's calls; None for all else, which the op runs.

    Raises:
        ValueError: as the op.
    """
    tensors = (
        call.query,
        call.positive,
        call.keys,
        call.positives,
        call.query_ids,
        call.key_ids,
        call.use_own,
    )
    numbers = isinstance(call.temperature, (int, float)) and isinstance(call.siblings, int)
    if not (numbers and dispatcher_is_idle() and core.are_plain(*tensors)):
        return None
    if not call.query.dtype == call.positive.dtype == call.keys.dtype or native.why_not(call) is not None:
        return None
    check_loss(call)
    check_positives_in_range(call.positives, call.keys.shape[0])
    if torch.is_grad_enabled() and any(x.requires_grad for x in (call.query, call.positive, call.keys)):
        return _NativeSweep.apply(*call)
    return native.sweep(call, False).loss
