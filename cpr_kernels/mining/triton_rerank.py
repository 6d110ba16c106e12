# mypy: disable-error-code="no-untyped-def,attr-defined"
"""`cpr::cascade_rerank` in Triton: candidates' scores by gathering, then the selection of `triton_kernels`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..dispatch.calls import CascadeCall, RerankCall
from .candidate_lists import bias_of_listed, gather_entries, sorted_unique
from .triton_kernels import masks_of, select_and_order
from .weightings import Rows, plan_rows

BLOCK_C = 16  # candidates a program; with BLOCK_D a tile of 1,024 numbers, 8 a thread of 4 warps
BLOCK_D = 64  # fixed: the order of a sum must not depend on anything but D


@triton.jit(do_not_specialize=["num_listed", "blocks"])
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


def _score_part(call: CascadeCall, rows: Rows, listed: Tensor, ring: Tensor) -> None:
    """Scores of the call's queries and their candidates `listed [B, C]` into ring [slots, B, C]."""
    count = listed.shape[1]
    blocks = triton.cdiv(count, BLOCK_C)
    masks = masks_of(call)
    for slot, view in enumerate(rows.views):
        query, key = call.queries[view], call.keys[view]
        score_candidates[(query.shape[0] * blocks,)](
            query, key, listed, ring[slot], *masks.places, count, blocks, query.shape[1], query.stride(0),
            key.stride(0), listed.stride(0), ring.stride(1), masks.exclude_stride, **masks.there,
            BLOCK_C=BLOCK_C, BLOCK_D=BLOCK_D,
        )  # fmt: skip


@torch.no_grad()
def rerank(call: RerankCall) -> tuple[Tensor, Tensor]:
    """`(indices [B, k], scores [B, k])`; see `reference.rerank` for the meaning."""
    listed = sorted_unique(call.candidates, call.keys[0].shape[0])
    cascade = call.cascade
    rows = plan_rows(cascade)

    def score(part: CascadeCall, first: int, ring: Tensor) -> None:
        _score_part(part, rows, listed[first : first + ring.shape[1]], ring)

    bias = None if cascade.key_bias is None else bias_of_listed(cascade.key_bias, listed)
    positions, scores = select_and_order(cascade, rows, listed.shape[1], score, bias)
    return gather_entries(listed, positions), scores
