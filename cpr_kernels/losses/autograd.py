"""The gradients of MIL-NCE: from what one sweep over the keys left behind, for the op and for plain CPU tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import _core
from ..dispatch.calls import LossCall
from ..dispatch.checks import check_loss, check_positives_in_range
from ..dispatch.fast_path import nothing_listens
from . import native


def setup_context(
    ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Sequence[Tensor]
) -> None:
    """What `backward` needs of the op `_mil_nce_sweep`."""
    _keep(ctx, inputs, keyword_only_inputs["backend"], output)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _keep(ctx: Any, inputs: tuple[Any, ...], backend: str, output: Sequence[Tensor]) -> None:
    tensors = [x for x in inputs if isinstance(x, Tensor)]
    ctx.save_for_backward(*tensors, *output[1:])
    ctx.pattern = [None if isinstance(x, Tensor) else (x,) for x in inputs]
    ctx.backend = backend


@once_differentiable
def backward(ctx: Any, grad_loss: Tensor | None, *_: Any) -> tuple[Any, ...]:
    """With respect to a call's fields, from d loss [B]; the keys' is another sweep."""
    none = (None,) * len(ctx.pattern)
    if grad_loss is None:
        return none
    *tensors, lse_all, lse_positive, own_weight, grad_query = ctx.saved_tensors
    given = iter(tensors)
    inputs = [next(given) if slot is None else slot[0] for slot in ctx.pattern]
    query, positive, _, _, temperature = inputs[:5]
    wants_query, wants_positive, wants_keys = ctx.needs_input_grad[:3]
    of_query = of_positive = of_keys = None
    if wants_query:
        of_query = (grad_loss[:, None] * grad_query).to(query.dtype)
    if wants_positive:
        of_own = grad_loss * own_weight / temperature  # [B]
        of_positive = (of_own[:, None] * query).to(positive.dtype)
    if wants_keys:
        of_keys = torch.ops.cpr._mil_nce_keys_gradient.default(
            *inputs,
            grad_loss=grad_loss,
            lse_all=lse_all,
            lse_positive=lse_positive,
            backend=ctx.backend,
        )
    return (of_query, of_positive, of_keys, *none[3:])


class _Sweep(torch.autograd.Function):
    """The native sweep of a :class:`LossCall` that was checked, past torch's dispatcher: loss [B]."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        """`inputs` are the call's."""
        output = native.sweep(LossCall(*inputs), ctx.needs_input_grad[0])
        _keep(ctx, inputs, "auto", output)
        return output.loss

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """With respect to the call's fields."""
        return backward(ctx, *grads)


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
    if not (numbers and nothing_listens() and _core.are_plain(*tensors)):
        return None
    if native.why_not(call) is not None:
        return None
    check_loss(call)
    check_positives_in_range(call.positives, call.keys.shape[0])
    if torch.is_grad_enabled() and any(x.requires_grad for x in (call.query, call.positive, call.keys)):
        return _Sweep.apply(*call)
    return native.sweep(call, False).loss
