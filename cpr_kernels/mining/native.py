"""The native backend of `cpr::cascade_topk`: C++ on CPU tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _core
from ..calls import CascadeCall
from ..native import DTYPE_CODES, address, row_contiguous

NAME = "native"


def why_not(call: CascadeCall) -> str | None:
    """The native core serves CPU tensors."""
    device = call.queries[0].device
    if device.type != "cpu":
        return f"this build has no native kernels for {device.type} tensors"
    return None


def run(call: CascadeCall) -> tuple[Tensor, Tensor]:
    """`(indices [B, k], scores [B, k])`; see `reference.run` for the meaning."""
    num_queries, num_keys, k = call.queries[0].shape[0], call.keys[0].shape[0], call.stage_keep[-1]
    indices = torch.empty(num_queries, k, dtype=torch.int64)
    scores = torch.empty(num_queries, k, dtype=torch.float32)
    # the tensors of this list stay alive until the kernel has returned
    pairs = [(row_contiguous(query), row_contiguous(key)) for query, key in zip(call.queries, call.keys)]
    query_ids = None if call.query_ids is None else call.query_ids.contiguous()
    key_ids = None if call.key_ids is None else call.key_ids.contiguous()
    exclude = None if call.exclude is None else row_contiguous(call.exclude)
    _core.cascade_topk(
        [(q.data_ptr(), q.stride(0), key.data_ptr(), key.stride(0), q.shape[1]) for q, key in pairs],
        DTYPE_CODES[call.queries[0].dtype],
        num_queries,
        num_keys,
        list(call.stage_weights),
        list(call.stage_keep),
        address(query_ids),
        address(key_ids),
        address(exclude),
        0 if exclude is None else exclude.stride(0),
        indices.data_ptr(),
        scores.data_ptr(),
        torch.get_num_threads(),
    )
    return indices, scores
