"""MIL-NCE as a function that autograd and torch.func transform: one sweep leaves what the first derivative needs.

Only what a gradient reads is saved. Where the query or the own positive alone take gradients that is nothing of the
keys, so that a queue may be written between the loss and its backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor

from ..dispatch.batching import fold, looped, unfold
from ..dispatch.calls import LossCall
from ..dispatch.checks import check_loss, check_loss_in_range
from ..dispatch.fast_path import dispatcher_is_idle
from ..dispatch.native import core
from . import native
from .derivatives import Directional, Gradient, Known, Settings, first_gradients
from .second_order import NUM_FIELDS, PER_QUERY

FOR_KEYS = (
    "keys",
    "positives",
    "query_ids",
    "key_ids",
    "negatives",
)  # what the keys' gradient reads of a call


def version(tensor: Any) -> int | None:
    """The tensor's version counter; None where there is none to compare."""
    return None if not isinstance(tensor, Tensor) or tensor.is_inference() else tensor._version


def _keep(ctx: Any, call: LossCall, backend: str, output: Sequence[Tensor]) -> None:
    """Saves what `_backward` reads for the gradients that are needed, and notes the call for second derivatives."""
    of_query, of_positive, of_keys = ctx.needs_input_grad[:3]
    traced = torch._C._len_torch_dispatch_stack() > 0
    _, lse_all, lse_positive, own_weight, grad_query, _ = output
    for_keys = (*(getattr(call, name) for name in FOR_KEYS), lse_all, lse_positive)
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
    grad_query, own_weight, query, positive, *for_keys, lse_all, lse_positive = ctx.saved_tensors
    known = Known(grad_query, own_weight, lse_all, lse_positive)
    if torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
        changed = ctx.versions != tuple(map(version, ctx.call))
        return Gradient.of(ctx.call, grad_loss, known, Settings(wants, ctx.backend, changed))
    call = ctx.call
    if wants[1] or wants[2]:
        call = call._replace(query=query)
    if wants[2]:
        call = call._replace(**dict(zip(FOR_KEYS, for_keys)))
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
        """`inputs` are the call's fields, whether the query's gradient and statistics are wanted, and a backend."""
        *call, want_gradient, want_stats, backend = inputs
        return torch.ops.cpr._mil_nce_sweep.default(
            *call, want_gradient=want_gradient, want_stats=want_stats, backend=backend
        )

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
        return (*_backward(ctx, grad_loss), *(None,) * NUM_FIELDS)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor | None, ...]:
        """Along tangents of query, positive and keys."""
        return (Directional.of(ctx.call, tangents[:3]), None, None, None, None, None)

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


def differentiable_loss(*call: Any, want_stats: bool = False, backend: str = "auto") -> tuple[Tensor, Tensor]:
    """The loss [B] of a call's fields, for autograd and torch.func, and its statistics [B, 3] or [0, 3]."""
    loss, *_, stats = MILNCE.apply(*call, wants_gradient(call[0]), want_stats, backend)
    return loss, stats


class _NativeSweep(torch.autograd.Function):
    """The native sweep of a :class:`LossCall` that was checked, past torch's dispatcher: loss [B]; or with stats."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Any:
        """`inputs` are the call's, and whether statistics are wanted."""
        *fields, want_stats = inputs
        call = LossCall(*fields)
        output = native.sweep(call, ctx.needs_input_grad[0], want_stats)
        _keep(ctx, call, "auto", output)
        if not want_stats:
            return output.loss
        ctx.mark_non_differentiable(output.stats)
        return output.loss, output.stats

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, *_: Any) -> Any:
        """With respect to the call's fields."""
        return (*_backward(ctx, grad_loss), *(None,) * (NUM_FIELDS - 2))


@overload
def run_directly(call: LossCall) -> Tensor | None: ...


@overload
def run_directly(call: LossCall, want_stats: Literal[True]) -> tuple[Tensor, Tensor] | None: ...


def run_directly(call: LossCall, want_stats: bool = False) -> Tensor | tuple[Tensor, Tensor] | None:
    """The loss [B] of plain CPU tensors where nothing listens to torch's calls; None for all else, which the op runs.

    With `want_stats` a pair of it and the statistics [B, 3].

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
        call.negatives,
    )
    numbers = isinstance(call.temperature, (int, float)) and isinstance(call.siblings, int)
    if not (numbers and dispatcher_is_idle() and core.are_plain(*tensors)):
        return None
    if not call.query.dtype == call.positive.dtype == call.keys.dtype or native.why_not(call) is not None:
        return None
    check_loss(call, plain=True)
    check_loss_in_range(call)
    if torch.is_grad_enabled() and any(x.requires_grad for x in (call.query, call.positive, call.keys)):
        return _NativeSweep.apply(*call, want_stats)
    output = native.sweep(call, False, want_stats)
    return (output.loss, output.stats) if want_stats else output.loss
