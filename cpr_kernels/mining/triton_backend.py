"""The Triton backend of the cascade, over all entries or listed ones; its kernels are imported when a call runs."""

from __future__ import annotations

from torch import Tensor

from ..dispatch.calls import CascadeCall, RerankCall
from ..dispatch.tensor_checks import STORED_DTYPES
from ..dispatch.triton_support import why_not_triton

NAME = "triton"
MAX_KEYS = 2**30  # positions are 32-bit, with room for a block beyond the end


def why_not(call: CascadeCall | RerankCall) -> str | None:
    """Triton serves CUDA tensors where it is installed."""
    if call.sharded:
        return call.sharded
    if call.queries[0].dtype not in STORED_DTYPES:
        return f"the Triton kernels score in float32, and {call.queries[0].dtype} asks for more"
    if not isinstance(call, RerankCall) and call.keys[0].shape[0] > MAX_KEYS:
        return f"the Triton kernels count up to {MAX_KEYS} entries, and keys hold {call.keys[0].shape[0]}"
    return why_not_triton(call.queries[0].device)


def run(call: CascadeCall) -> tuple[Tensor, Tensor]:
    """`(indices [B, k], scores [B, k])`; see `reference.run` for the meaning."""
    from . import triton_kernels

    return triton_kernels.run(call)


def rerank(call: RerankCall) -> tuple[Tensor, Tensor]:
    """`(indices [B, k], scores [B, k])`; see `reference.rerank` for the meaning."""
    from . import triton_rerank

    return triton_rerank.rerank(call)
