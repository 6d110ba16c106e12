"""The native backend of `cpr::mil_nce`: C++ on CPU tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _core
from ..calls import LossCall
from ..native import DTYPE_CODES, address, row_contiguous
from .reference import Sweep

NAME = "native"


def why_not(call: LossCall) -> str | None:
    """The native core serves CPU tensors in single and half precision."""
    if call.query.device.type != "cpu":
        return f"this build has no native kernels for {call.query.device.type} tensors"
    if call.query.dtype not in DTYPE_CODES:
        return f"the native kernels compute in float32, and {call.query.dtype} asks for more"
    return None


class _Arguments:
    """A call as the core takes it; keeps every tensor alive for as long as it lives."""

    def __init__(self, call: LossCall) -> None:
        self.features = [row_contiguous(t) for t in (call.query, call.positive, call.keys)]
        self.positives = call.positives.contiguous()
        self.masks = [
            None if t is None else t.contiguous() for t in (call.query_ids, call.key_ids, call.use_own)
        ]
        self.call = call

    def packed(self) -> tuple[object, ...]:
        """Positional arguments shared by the core's functions."""
        query, _, keys = self.features
        return (
            tuple(x for t in self.features for x in (t.data_ptr(), t.stride(0))),
            DTYPE_CODES[query.dtype],
            (query.shape[0], keys.shape[0], query.shape[1], self.positives.shape[1]),
            self.positives.data_ptr(),
            self.call.temperature,
            tuple(address(t) for t in self.masks),
            self.call.siblings,
            torch.get_num_threads(),
        )


def sweep(call: LossCall, want_gradient: bool) -> Sweep:
    """The loss and what its gradients need, in one pass over the keys; see `reference.sweep`."""
    rows, dim = call.query.shape
    loss, lse_all, lse_positive, own_weight = (torch.empty(rows) for _ in range(4))
    grad_query = torch.empty(rows if want_gradient else 0, dim)
    out = Sweep(loss, lse_all, lse_positive, own_weight, grad_query)
    arguments = _Arguments(call)
    places = (*(address(t) for t in out[:4]), grad_query.data_ptr() if want_gradient else 0)
    _core.mil_nce_sweep(*arguments.packed(), places)
    return out


def keys_gradient(call: LossCall, grad_loss: Tensor, lse_all: Tensor, lse_positive: Tensor) -> Tensor:
    """d (grad_loss . loss) / d keys: [N, D] in the keys' dtype; see `reference.keys_gradient`."""
    grad_keys = torch.empty(call.keys.shape, dtype=torch.float32)
    arguments = _Arguments(call)
    given = [t.float().contiguous() for t in (grad_loss, lse_all, lse_positive)]
    _core.mil_nce_keys_gradient(*arguments.packed(), *(t.data_ptr() for t in given), grad_keys.data_ptr())
    return grad_keys.to(call.keys.dtype)
