# mypy: disable-error-code="no-untyped-def,attr-defined"
"""`cpr::cascade_rerank` in Triton: candidates' scores by gathering, then the selection of `triton_kernels`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..calls import CascadeCall, RerankCall
from .rerank_lists import entries_at, in_order
from .rows import Rows, plan_rows
from .triton_kernels import select_and_order

BLOCK_C = 16  # candidates a program; with BLOCK_D a tile of 1,024 numbers, 8 a thread of 4 warps
BLOCK_D = 64  # fixed: the order of a sum must not depend on anything but D


@triton.jit
def score_candidates(
    query, key, listed, out, query_ids, key_ids, exclude, num_listed, blocks, dim, query_stride, key_stride,
    listed_stride, out_stride, exclude_stride, HAS_QUERY_IDS: tl.constexpr, HAS_KEY_IDS: tl.constexpr,
    HAS_EXCLUDE: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """out[b, c] = <query[b], key[listed[b, c]]> in float32, NaN where the entry may never be b's, or is none."""
    b = (tl.program_id(0) // blocks).to(tl.int64)
    c = tl.program_id(0) % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = c < num_listed
    entry = tl.load(listed + b * listed_stride + c, mask=inside, other=-1)
    real = entry >= 0
    row = key + tl.where(real, entry, 0)[:, None] * key_stride
    total = tl.zeros((BLOCK_C,), dtype=tl.float32)
    for first in range(0, dim, BLOCK_D):
        d = first + tl.arange(0, BLOCK_D)
        of_query = tl.load(query + b * query_stride + d, mask=d < dim, other=0.0).to(tl.float32)
        of_key = tl.load(row + d[None, :], mask=real[:, None] & (d < dim)[None, :], other=0.0).to(tl.float32)
        total += tl.sum(of_key * of_query[None, :], axis=1)
    never = entry < 0
    if HAS_KEY_IDS:
        key_id = tl.load(key_ids + entry, mask=real, other=-1)
        never = never | (key_id < 0)
        if HAS_QUERY_IDS:
            never = never | (key_id == tl.load(query_ids + b))
    if HAS_EXCLUDE:
        never = never | (tl.load(exclude + b * exclude_stride + entry, mask=real, other=1) != 0)
    total = tl.where(never, float("nan"), total)
    tl.store(out + b * out_stride + c, total, mask=inside)


def _score(call: CascadeCall, rows: Rows, listed: Tensor, first: int, ring: Tensor) -> None:
    """Scores of queries [first, first + ring.shape[1]) and their candidates into ring [slots, chunk, C]."""
    chunk, count = ring.shape[1], listed.shape[1]
    blocks = triton.cdiv(count, BLOCK_C)
    query_ids = None if call.query_ids is None else call.query_ids[first:].contiguous()
    key_ids = None if call.key_ids is None else call.key_ids.contiguous()
    exclude = None if call.exclude is None else call.exclude[first:].view(torch.uint8)
    if exclude is not None and exclude.stride(1) != 1:
        exclude = exclude.contiguous()
    for slot, view in enumerate(rows.views):
        query, key = (
            t if t.stride(1) == 1 else t.contiguous() for t in (call.queries[view], call.keys[view])
        )
        query = query[first : first + chunk]
        score_candidates[(chunk * blocks,)](
            query, key, listed[first:], ring[slot], query_ids, key_ids, exclude, count, blocks,
            query.shape[1], query.stride(0), key.stride(0), listed.stride(0), ring.stride(1),
            0 if exclude is None else exclude.stride(0), HAS_QUERY_IDS=query_ids is not None,
            HAS_KEY_IDS=key_ids is not None, HAS_EXCLUDE=exclude is not None, BLOCK_C=BLOCK_C, BLOCK_D=BLOCK_D,
        )  # fmt: skip


@torch.no_grad()
def rerank(call: RerankCall) -> tuple[Tensor, Tensor]:
    """`(indices [B, k], scores [B, k])`; see `reference.rerank` for the meaning."""
    listed = in_order(call.candidates, call.keys[0].shape[0])
    cascade = call.cascade
    rows = plan_rows(cascade)

    def score(first: int, ring: Tensor) -> None:
        if listed.shape[1]:
            _score(cascade, rows, listed, first, ring)

    positions, scores = select_and_order(cascade, rows, listed.shape[1], score)
    return entries_at(listed, positions), scores
