"""Derivatives of MIL-NCE beyond the first reverse pass, for autograd and torch.func; third ones are refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..dispatch.batching import looped
from ..dispatch.calls import LossCall
from .second_order import NUM_FIELDS, curvature, directional, second


class Known(NamedTuple):
    """What a sweep left for the first derivative; None where no gradient needs it."""

    grad_query: Tensor | None  # [B, D]
    own_weight: Tensor | None  # [B]
    lse_all: Tensor | None  # [B]
    lse_positive: Tensor | None  # [B]


@dataclass(frozen=True)  # not a tuple, into which torch.func would look
class Settings:
    """How a gradient is computed."""

    wants: tuple[bool, bool, bool]  # gradients of query, positive, keys
    backend: str
    changed: bool  # an input was written to since the loss was computed


def first_gradients(
    call: LossCall, grad_loss: Tensor, known: Known, wants: Sequence[bool], backend: str
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """d (grad_loss . loss) / d query, positive and keys, each in its input's dtype; the keys' is another sweep."""
    of_query = of_positive = of_keys = None
    if wants[0] and known.grad_query is not None:
        of_query = (grad_loss[:, None] * known.grad_query).to(call.query.dtype)
    if wants[1] and known.own_weight is not None:
        of_own = grad_loss * known.own_weight / call.temperature  # [B]
        of_positive = (of_own[:, None] * call.query).to(call.positive.dtype)
    if wants[2]:
        # the own pair has no part in the keys' gradient
        arguments = call._replace(positive=call.query, use_own=None)
        of_keys = torch.ops.cpr._mil_nce_keys_gradient.default(
            *arguments,
            grad_loss=grad_loss,
            lse_all=known.lse_all,
            lse_positive=known.lse_positive,
            backend=backend,
        )
    return of_query, of_positive, of_keys


def _outside_autocast(function: Callable[..., Any], *inputs: Any) -> Any:
    """``function(*inputs)`` in the precision of the inputs, also within an autocast region."""
    device = next(x.device.type for x in inputs if isinstance(x, Tensor))
    if not torch.amp.is_autocast_available(device):
        return function(*inputs)
    with torch.autocast(device, enabled=False):
        return function(*inputs)


class _Last(torch.autograd.Function):
    """A function of tensors that is not differentiated further."""

    @staticmethod
    def forward(function: Callable[..., Any], *inputs: Any) -> Any:
        """``function(*inputs)``."""
        return _outside_autocast(function, *inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Nothing is kept."""

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        """Raises: this would be a third derivative."""
        raise RuntimeError(
            "mil_nce has first and second derivatives, and a third was needed; "
            "write the loss in plain torch for it: logsumexp of all logits minus logsumexp of the positive ones"
        )

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> Any:
        """As `backward`."""
        return _Last.backward(ctx)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Any, Any]:
        """One call after another."""
        return looped(_Last.apply, info.batch_size, in_dims, inputs)


class Directional(torch.autograd.Function):
    """The loss's derivative [B] along tangents, linear in these: a call's fields and three tangents."""

    @staticmethod
    def of(call: LossCall, tangents: Sequence[Tensor | None]) -> Tensor:
        """Along tangents of query, positive and keys."""
        return Directional.apply(*call, *tangents)

    @staticmethod
    def forward(*inputs: Any) -> Tensor:
        """See `directional`."""
        return _outside_autocast(directional, *inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """All inputs matter to the derivatives."""
        _save(ctx, inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """With respect to query, positive and keys, and to the tangents: there, the loss's own gradients."""
        inputs, needs = _saved(ctx), ctx.needs_input_grad
        call = LossCall(*inputs[:NUM_FIELDS])
        grads: list[Tensor | None] = [None] * len(inputs)
        if any(needs[:3]):
            grads[:3] = _Last.apply(second, needs[2], grad, *inputs)[1:]
        if any(needs[NUM_FIELDS:]):
            none = Known(None, None, None, None)
            grads[NUM_FIELDS:] = Gradient.of(call, grad, none, Settings(needs[NUM_FIELDS:], "auto", False))
        return tuple(grads)

    @staticmethod
    def jvp(ctx: Any, *directions: Any) -> Tensor:
        """Along directions of the inputs and of the tangents."""
        inputs = _saved(ctx)
        call, tangents = LossCall(*inputs[:NUM_FIELDS]), inputs[NUM_FIELDS:]
        change = Directional.of(call, directions[NUM_FIELDS:])
        if all(direction is None for direction in directions[:3]):
            return change
        return change + _Last.apply(curvature, *call, *tangents, *directions[:3])

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Any, Any]:
        """One call after another."""
        return looped(Directional.apply, info.batch_size, in_dims, inputs)


class Gradient(torch.autograd.Function):
    """The wanted gradients of ``grad_loss @ loss``: grad_loss, a call's fields, what is known, and settings."""

    @staticmethod
    def of(call: LossCall, grad_loss: Tensor, known: Known, settings: Settings) -> list[Tensor | None]:
        """By query, positive and keys; None where not wanted."""
        wanted = iter(Gradient.apply(grad_loss, *call, *known, settings))
        return [next(wanted) if want else None for want in settings.wants]

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        """From what is known, or else from a sweep."""
        grad_loss, call, known, settings = _gradient_inputs(inputs)
        needed = (known.grad_query, known.own_weight, known.lse_all)
        if any(want and part is None for want, part in zip(settings.wants, needed)):
            sweep = torch.ops.cpr._mil_nce_sweep.default
            _, lse_all, lse_positive, own_weight, grad_query, _ = sweep(
                *call, want_gradient=True, backend=settings.backend
            )
            known = Known(grad_query, own_weight, lse_all, lse_positive)
        found = first_gradients(call, grad_loss, known, settings.wants, settings.backend)
        return tuple(gradient for gradient in found if gradient is not None)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """All inputs matter to the derivatives, which only they that were not written to have."""
        ctx.settings = inputs[-1]
        if not ctx.settings.changed:
            _save(ctx, inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        """With respect to grad_loss, query, positive and keys."""
        grad_loss, call, known, settings = _gradient_inputs(_unchanged(ctx))
        given = iter(grads)
        tangents = [next(given) if want else None for want in settings.wants]
        by_input = _Last.apply(second, ctx.needs_input_grad[3], grad_loss, *call, *tangents)
        return (*by_input, *(None,) * (NUM_FIELDS - 3 + len(known) + 1))

    @staticmethod
    def jvp(ctx: Any, *directions: Any) -> tuple[Tensor, ...]:
        """Along directions of grad_loss, query, positive and keys."""
        grad_loss, call, known, settings = _gradient_inputs(_unchanged(ctx))
        changes: list[list[Tensor | None]] = []
        if directions[0] is not None:
            changes.append(Gradient.of(call, directions[0], known, settings))
        if any(direction is not None for direction in directions[1:4]):
            wants_keys = settings.wants[2]
            changes.append(_Last.apply(second, wants_keys, grad_loss, *call, *directions[1:4])[1:])
        columns = [column for want, column in zip(settings.wants, zip(*changes)) if want]
        return tuple(sum(column[1:], column[0]) for column in columns)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Any, Any]:
        """One call after another."""
        return looped(Gradient.apply, info.batch_size, in_dims, inputs)


def _gradient_inputs(inputs: Sequence[Any]) -> tuple[Tensor, LossCall, Known, Settings]:
    """The inputs of :class:`Gradient`, by name."""
    grad_loss, *rest, settings = inputs
    return grad_loss, LossCall(*rest[:NUM_FIELDS]), Known(*rest[NUM_FIELDS:]), settings


def _save(ctx: Any, inputs: Sequence[Any]) -> None:
    """Saves all inputs, tensors in autograd's care."""
    tensors = [x if isinstance(x, Tensor) else None for x in inputs]
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)
    ctx.plain = tuple(None if isinstance(x, Tensor) else x for x in inputs)


def _saved(ctx: Any) -> list[Any]:
    """The inputs that `_save` saved."""
    return [plain if tensor is None else tensor for tensor, plain in zip(ctx.saved_tensors, ctx.plain)]


def _unchanged(ctx: Any) -> list[Any]:
    """The inputs of a gradient; raises where they were written to between the loss and its gradient."""
    if ctx.settings.changed:
        raise RuntimeError(
            "mil_nce: one of the variables needed for the second derivative has been modified by an inplace "
            "operation between the loss and its gradient; write to the queue after the gradient was computed, or "
            "give mil_nce a clone of the keys and ids"
        )
    return _saved(ctx)
