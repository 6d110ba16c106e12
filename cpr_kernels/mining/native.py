"""The native backend of `cpr::cascade_topk`: C++ on CPU tensors, CUDA on CUDA tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..dispatch.calls import CascadeCall, RerankCall, row_contiguous
from ..dispatch.fast_path import dispatcher_is_idle
from ..dispatch.native import DTYPE_CODES, LIMITS, address, core, on_current_stream, why_not_cuda
from .candidate_lists import bias_of_listed, gather_entries, sorted_unique
from .schedule import Schedule
from .weightings import plan_rows

NAME = "native"
BIAS_ALIGNMENT = 16  # bytes: the CUDA kernels read four numbers at once
MAX_STAGES, MAX_VIEWS, MAX_ROWS = LIMITS["stages"], LIMITS["views"], LIMITS["rows"]


def why_not(call: CascadeCall | RerankCall) -> str | None:
    """The native core serves CPU tensors, and CUDA tensors where its CUDA part was built."""
    device = call.queries[0].device
    if call.sharded:
        return call.sharded
    if device.type == "cuda":
        return why_not_cuda(device) or why_unsupported(call)
    if device.type != "cpu":
        return f"there are no native kernels for {device.type} tensors"
    return _why_not_dtype(call)


def _why_not_dtype(call: CascadeCall | RerankCall) -> str | None:
    dtype = call.queries[0].dtype
    return None if dtype in DTYPE_CODES else f"the native kernels score in float32, and {dtype} asks for more"


def why_unsupported(call: CascadeCall | RerankCall) -> str | None:
    """None where the CUDA kernels can run the call on some device, else the sentence: what they cannot hold."""
    if call.sharded or _why_not_dtype(call):
        return call.sharded or _why_not_dtype(call)
    stages = len(call.stage_keep)
    if stages <= MAX_ROWS and len(call.queries) <= MAX_VIEWS:
        return None
    if stages > MAX_STAGES:
        return f"the CUDA kernels run at most {MAX_STAGES} stages, and the schedule has {stages}"
    rows = plan_rows(call.cascade if isinstance(call, RerankCall) else call)
    if len(rows.views) > MAX_VIEWS:
        return f"the CUDA kernels weigh at most {MAX_VIEWS} views, and the schedule weighs {len(rows.views)}"
    distinct = len(rows.weights) // len(rows.views)
    if distinct > MAX_ROWS:
        return (
            f"the CUDA kernels judge by at most {MAX_ROWS} weightings of the views, and there are {distinct}"
        )
    return None


def run(call: CascadeCall) -> tuple[Tensor, Tensor]:
    """`(indices [B, k], scores [B, k])`; see `reference.run` for the meaning."""
    device = call.queries[0].device
    if device.type == "cuda":
        with on_current_stream(device) as stream:
            return run_on_stream(call, core, stream)
    return _run_on_cpu(call)


class _Arguments:
    """A call as the core takes it; keeps every tensor alive for as long as it lives."""

    def __init__(self, call: CascadeCall) -> None:
        query = call.queries[0]
        rows, k, device = query.shape[0], call.stage_keep[-1], query.device
        self.indices = torch.empty(rows, k, dtype=torch.int64, device=device)
        self.scores = torch.empty(rows, k, dtype=torch.float32, device=device)
        self.call = call = call.with_contiguous_rows()
        self.features = (
            [
                (q.data_ptr(), q.stride(0), key.data_ptr(), key.stride(0), q.shape[1])
                for q, key in zip(call.queries, call.keys)
            ],
            DTYPE_CODES[query.dtype],
            rows,
            call.keys[0].shape[0],
            call.stage_weights,
            call.stage_keep,
        )
        self.masks = (
            address(call.query_ids),
            address(call.key_ids),
            address(call.exclude),
            0 if call.exclude is None else call.exclude.stride(0),
            address(call.key_bias),
        )
        self.out = (self.indices.data_ptr(), self.scores.data_ptr())


def _run_on_cpu(call: CascadeCall) -> tuple[Tensor, Tensor]:
    given = _Arguments(call)
    core.cascade_topk(*given.features, given.masks, given.out, torch.get_num_threads())
    return given.indices, given.scores


def run_directly(
    queries: Mapping[str, Tensor],
    keys: Mapping[str, Any],
    schedule: Schedule,
    query_ids: Tensor | None,
    key_ids: Tensor | None,
    key_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor] | None:
    """The result of plain CPU tensors that fit together, where nothing listens to torch's calls; None for all else,
    which the op runs or refuses.
    """
    if not dispatcher_is_idle() or type(schedule) is not Schedule or queries.keys() != keys.keys():
        return None
    weights, keep = schedule.judged
    try:
        of_queries = [queries[view] for view in schedule.views]
        of_keys = [keys[view] for view in schedule.views]
    except KeyError:
        return None
    masks = (query_ids, key_ids, key_bias)
    return core.cascade_topk_of_tensors(of_queries, of_keys, weights, keep, *masks, torch.get_num_threads())


def run_on_stream(call: CascadeCall, core: Any, stream: int) -> tuple[Tensor, Tensor]:
    """Queue the CUDA kernels of `core` on a stream of the current device; the workspace is torch's memory."""
    if call.key_bias is not None and call.key_bias.data_ptr() % BIAS_ALIGNMENT:
        call = call._replace(key_bias=call.key_bias.clone())
    given = _Arguments(call)
    arguments = (*given.features, given.masks, given.out)
    size = core.cuda_cascade_topk_workspace(*arguments)
    workspace = torch.empty(size, dtype=torch.uint8, device=given.indices.device)
    core.cuda_cascade_topk(*arguments, workspace.data_ptr(), size, stream)
    return given.indices, given.scores


def rerank(call: RerankCall) -> tuple[Tensor, Tensor]:
    """`(indices [B, k], scores [B, k])`; see `reference.rerank` for the meaning."""
    device = call.queries[0].device
    if device.type == "cuda":
        with on_current_stream(device) as stream:
            return rerank_on_stream(call, core, stream)
    given = _Arguments(call.cascade)
    candidates = row_contiguous(call.candidates)
    listed = (candidates.data_ptr(), candidates.shape[1], candidates.stride(0))
    core.cascade_rerank(*given.features, listed, given.masks, given.out, torch.get_num_threads())
    return given.indices, given.scores


def rerank_on_stream(call: RerankCall, core: Any, stream: int) -> tuple[Tensor, Tensor]:
    """Queue the CUDA kernels of `core` on a stream of the current device: places in ordered lists, then entries."""
    candidates = sorted_unique(call.candidates, call.keys[0].shape[0])
    cascade = call.cascade
    if cascade.key_bias is not None:
        cascade = cascade._replace(key_bias=bias_of_listed(cascade.key_bias, candidates))
    given = _Arguments(cascade)
    listed = (candidates.data_ptr(), candidates.shape[1], candidates.stride(0))
    arguments = (*given.features, listed, given.masks, given.out)
    size = core.cuda_cascade_rerank_workspace(*arguments)
    workspace = torch.empty(size, dtype=torch.uint8, device=given.indices.device)
    core.cuda_cascade_rerank(*arguments, workspace.data_ptr(), size, stream)
    return gather_entries(candidates, given.indices), given.scores
