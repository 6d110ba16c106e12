"""The Triton backend of `cpr::mil_nce`; the kernels are imported when a call runs on them."""

from __future__ import annotations

from torch import Tensor

from ..dispatch.calls import LossCall, Sweep
from ..dispatch.tensor_checks import STORED_DTYPES
from ..dispatch.triton_support import why_not_triton

NAME = "triton"
MAX_DIM = 4096  # the kernel that finishes a query holds its features in registers, 32 a thread
MAX_KEYS = 2**30


def why_not(call: LossCall) -> str | None:
    """Triton serves CUDA tensors where it is installed, up to float32."""
    if call.sharded:
        return call.sharded
    if call.negatives is not None:
        return "the Triton kernels sweep all keys, and negatives list some for each query"
    if call.query.dtype not in STORED_DTYPES:
        return f"the Triton kernels compute in float32, and {call.query.dtype} asks for more"
    if call.query.shape[1] > MAX_DIM:
        return f"the Triton kernels hold features of at most {MAX_DIM} numbers, and D={call.query.shape[1]}"
    if call.keys.shape[0] > MAX_KEYS:
        return f"the Triton kernels count up to {MAX_KEYS} entries, and keys hold {call.keys.shape[0]}"
    return why_not_triton(call.query.device)


def sweep(call: LossCall, want_gradient: bool, want_stats: bool = False) -> Sweep:
    """The loss and what its gradients need; see `reference.sweep`."""
    from . import triton_kernels

    return triton_kernels.sweep(call, want_gradient, want_stats)


def keys_gradient(call: LossCall, grad_loss: Tensor, lse_all: Tensor, lse_positive: Tensor) -> Tensor:
    """d (grad_loss . loss) / d keys: [N, D] in the keys' dtype; see `reference.keys_gradient`."""
    from . import triton_kernels

    return triton_kernels.keys_gradient(call, grad_loss, lse_all, lse_positive)
