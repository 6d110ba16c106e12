# mypy: disable-error-code="no-untyped-def,attr-defined"
"""Triton kernels of `cpr::cascade_topk`: a score kernel, and a kernel that runs every stage of one query.

Imported only when a call is to run on them. Each program of the select kernel owns one query and keeps its
survivors as a list (one ordered key per judging row, and the entry's index) in index order, so that ties fall to the
lower index by position. A stage's threshold is found by counting, two bits of the key a pass; no atomics, no sort.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..dispatch.calls import CascadeCall
from .weightings import Rows, plan_rows

RING_BYTES = 32 << 20  # scores that stay in a 50 to 60 MB L2, half of it left to the keys
MIN_CHUNK = 128  # queries a sweep: below, reading the keys again costs more than writing their scores
MAX_RING_BYTES = 1 << 30  # never more workspace than this, unless a single query needs it
BLOCK_B = 64  # fixed, like BLOCK_D: the order of a sum must not depend on the batch
BLOCK_D = 32
MAX_GRID_Y = 65_535  # blocks of BLOCK_B queries that one launch may have
ROW_UNIT = 16  # floats: strides that are multiples of it compile to one kernel, whatever the batch
RANKED_IN_KERNEL = 128  # longest result that is put in order by comparing all with all
INTERPRETED = triton.knobs.runtime.interpret


def score_config(num_keys: int) -> dict[str, int]:
    """Keys a program and launch settings of the score kernel. Not autotuned: a race of timings cannot run while a CUDA
    graph is captured. A short queue is cut finer, so that more multiprocessors have work.
    """
    if INTERPRETED:
        return {"BLOCK_N": 64, "num_warps": 4, "num_stages": 1}
    if num_keys <= 4096:
        return {"BLOCK_N": 32, "num_warps": 4, "num_stages": 3}
    return {"BLOCK_N": 64, "num_warps": 8, "num_stages": 3}


def select_config(num_keys: int) -> dict[str, int]:
    """Entries a step and warps for one query. A queue of 4,096 is four steps of 1,024 by one warp a scheduler; a longer
    one is given 16 warps, half of what a multiprocessor schedules at 128 registers a thread, to keep more loads in
    flight. Interpreted, a short queue too is given several steps.
    """
    if INTERPRETED and num_keys <= 1024:
        return {"BLOCK": 64, "num_warps": 4}
    return {"BLOCK": 1024, "num_warps": 4} if num_keys <= 4096 else {"BLOCK": 2048, "num_warps": 16}


@triton.jit(do_not_specialize=["num_queries", "num_keys"])
def score_tile(
    query, key, out, query_ids, key_ids, exclude, num_queries, num_keys, dim, query_stride, key_stride, out_stride,
    exclude_stride, HAS_QUERY_IDS: tl.constexpr, HAS_KEY_IDS: tl.constexpr, HAS_EXCLUDE: tl.constexpr,
    UPCAST: tl.constexpr, PRECISION: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """out[b, j] = <query[b], key[j]> in float32, NaN where entry j may never be b's. Tile [BLOCK_B, BLOCK_N]."""
    j = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    b = tl.program_id(1) * BLOCK_B + tl.arange(0, BLOCK_B)
    in_b, in_n = b < num_queries, j < num_keys
    query_row = query + b.to(tl.int64)[:, None] * query_stride
    key_row = key + j.to(tl.int64)[None, :] * key_stride
    total = tl.zeros((BLOCK_B, BLOCK_N), dtype=tl.float32)
    for first in range(0, dim, BLOCK_D):
        d = first + tl.arange(0, BLOCK_D)
        of_query = tl.load(query_row + d[None, :], mask=in_b[:, None] & (d < dim)[None, :], other=0.0)
        of_key = tl.load(key_row + d[:, None], mask=in_n[None, :] & (d < dim)[:, None], other=0.0)
        if UPCAST:
            of_query = of_query.to(tl.float32)
            of_key = of_key.to(tl.float32)
        total = tl.dot(of_query, of_key, total, input_precision=PRECISION)
    never = tl.zeros((BLOCK_B, BLOCK_N), dtype=tl.int1)
    if HAS_KEY_IDS:
        key_id = tl.load(key_ids + j, mask=in_n, other=-1)
        never = never | (key_id < 0)[None, :]
        if HAS_QUERY_IDS:
            query_id = tl.load(query_ids + b, mask=in_b, other=0)
            never = never | (key_id[None, :] == query_id[:, None])
    inside = in_b[:, None] & in_n[None, :]
    if HAS_EXCLUDE:
        place = exclude + b.to(tl.int64)[:, None] * exclude_stride + j[None, :]
        never = never | (tl.load(place, mask=inside, other=1) != 0)
    total = tl.where(never, float("nan"), total)
    tl.store(out + b.to(tl.int64)[:, None] * out_stride + j[None, :], total, mask=inside)


@triton.jit
def _row_score(
    ring, slot_stride, bias, j, inside, ROW: tl.constexpr, WEIGHTS: tl.constexpr, VIEWS: tl.constexpr,
    BIASED: tl.constexpr,
):  # fmt: skip
    """Scores of judging row ROW at positions j: the views weighted and added in order, each step rounded; row BIASED
    adds the positions' bias last.
    """
    total = tl.zeros(j.shape, dtype=tl.float32)
    for view in tl.static_range(VIEWS):
        if WEIGHTS[ROW * VIEWS + view] != 0:
            term = tl.load(ring + view * slot_stride + j, mask=inside, other=float("nan"))
            if WEIGHTS[ROW * VIEWS + view] != 1:
                term = term * WEIGHTS[ROW * VIEWS + view]
            total = total + term  # 0 + x is x, but for the sign of a zero, which no comparison sees
    if ROW == BIASED:
        total = total + tl.load(bias + j, mask=inside, other=float("nan"))
    return total


@triton.jit
def _ordered(score):
    """Unsigned keys in the order of the scores; -0 and +0 are one score. 0 is below every score's key."""
    score = tl.where(score == 0, 0.0, score)
    bits = score.to(tl.uint32, bitcast=True)
    return tl.where(bits >= 0x80000000, bits ^ 0xFFFFFFFF, bits | 0x80000000)


@triton.jit
def _score_of(key):
    """The score whose key this is."""
    bits = tl.where(key >= 0x80000000, key ^ 0x80000000, key ^ 0xFFFFFFFF)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _threshold(keys, n, keep, BLOCK: tl.constexpr):
    """The key of the keep-th best of a list of n > keep, and how many entries of exactly that key are kept."""
    place = tl.arange(0, BLOCK)
    low = tl.zeros((), dtype=tl.uint32)  # at least `keep` entries are >= low
    at_low = n
    above = keep * 0  # entries >= low + 2^(shift + 2): fewer than `keep`
    shift = 30
    while (shift >= 0) & (at_low != keep):
        step = (tl.zeros((), dtype=tl.uint32) + 1) << shift.to(tl.uint32)
        one = tl.zeros((BLOCK,), dtype=tl.int32)
        two = tl.zeros((BLOCK,), dtype=tl.int32)
        three = tl.zeros((BLOCK,), dtype=tl.int32)
        for first in range(0, n, BLOCK):
            inside = first + place < n
            key = tl.load(keys + first + place, mask=inside, other=0).to(tl.uint32, bitcast=True)
            one += (inside & (key >= low + step)).to(tl.int32)
            two += (inside & (key >= low + step * 2)).to(tl.int32)
            three += (inside & (key >= low + step * 3)).to(tl.int32)
        least_one, least_two, least_three = tl.sum(one), tl.sum(two), tl.sum(three)
        if least_three >= keep:
            low += step * 3
            at_low = least_three
        elif least_two >= keep:
            low += step * 2
            at_low = least_two
            above = least_three
        elif least_one >= keep:
            low += step
            at_low = least_one
            above = least_two
        else:
            above = least_one
        shift -= 2
    ties = tl.where(at_low == keep, n, keep - above)  # an exact cut between two keys needs no tie broken
    return low, ties


@triton.jit
def _compact(
    source, target, list_stride, n, judge, low, ties, ROWS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Keep the entries whose judging key is above low, and the first `ties` at low. Order stays."""
    place = tl.arange(0, BLOCK)
    kept = n * 0
    seen = n * 0
    for first in range(0, n, BLOCK):
        at = first + place
        inside = at < n
        key = tl.load(source + judge * list_stride + at, mask=inside, other=0).to(tl.uint32, bitcast=True)
        equal = (inside & (key == low)).to(tl.int32)
        stays = inside & ((key > low) | ((key == low) & (seen + tl.cumsum(equal) <= ties)))
        count = stays.to(tl.int32)
        to = kept + tl.cumsum(count) - 1
        for row in tl.static_range(ROWS + 1):
            value = tl.load(source + row * list_stride + at, mask=stays, other=0)
            tl.store(target + row * list_stride + to, value, mask=stays)
        kept += tl.sum(count)
        seen += tl.sum(equal)
    return kept


@triton.jit
def _take_eligible(
    ring, slot_stride, bias, target, list_stride, num_keys, ROWS: tl.constexpr, VIEWS: tl.constexpr,
    WEIGHTS: tl.constexpr, BIASED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Entries without a NaN score in any judging row become the first list: keys of each row, then the index."""
    place = tl.arange(0, BLOCK)
    kept = num_keys * 0
    for first in range(0, num_keys, BLOCK):
        j = first + place
        alive = j < num_keys
        for row in tl.static_range(ROWS):
            score = _row_score(ring, slot_stride, bias, j, j < num_keys, row, WEIGHTS, VIEWS, BIASED)
            alive = alive & (score == score)
        count = alive.to(tl.int32)
        to = kept + tl.cumsum(count) - 1
        for row in tl.static_range(ROWS):
            key = _ordered(_row_score(ring, slot_stride, bias, j, alive, row, WEIGHTS, VIEWS, BIASED))
            tl.store(target + row * list_stride + to, key.to(tl.int32, bitcast=True), mask=alive)
        tl.store(target + ROWS * list_stride + to, j, mask=alive)
        kept += tl.sum(count)
    return kept


@triton.jit(do_not_specialize=["num_keys"])
def select_query(
    ring, lists, bias, indices, scores, num_keys, slot_stride, ring_stride, list_stride, bias_stride,
    KEEP: tl.constexpr, JUDGE: tl.constexpr, WEIGHTS: tl.constexpr, STAGES: tl.constexpr, ROWS: tl.constexpr,
    VIEWS: tl.constexpr, BIASED: tl.constexpr, K: tl.constexpr, RANKED: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """All stages of one query. ring: VIEWS slots of score rows; lists: two lists a query, used in turn; bias: a row
    a query, bias_stride apart, for the score row BIASED (-1: none).
    """
    query = tl.program_id(0).to(tl.int64)
    slot_stride = query * 0 + slot_stride  # 64 bits, whatever came
    list_stride = query * 0 + list_stride
    row = ring + query * ring_stride
    half = (ROWS + 1) * list_stride
    source = lists + query * 2 * half
    target = source + half
    if BIASED >= 0:
        bias = bias + query * bias_stride
    n = _take_eligible(
        row, slot_stride, bias, source, list_stride, num_keys, ROWS, VIEWS, WEIGHTS, BIASED, BLOCK
    )
    tl.debug_barrier()  # what one thread wrote another reads
    for stage in tl.static_range(STAGES):
        if n > KEEP[stage]:
            keys = source + JUDGE[stage] * list_stride
            low, ties = _threshold(keys, n, n * 0 + KEEP[stage], BLOCK)
            n = _compact(source, target, list_stride, n, JUDGE[stage], low, ties, ROWS, BLOCK)
            tl.debug_barrier()
            swapped = source
            source = target
            target = swapped
    best = source + JUDGE[STAGES - 1] * list_stride
    index = source + ROWS * list_stride
    if RANKED:
        place = tl.arange(0, BLOCK_K)
        key = tl.load(best + place, mask=place < n, other=0).to(tl.uint32, bitcast=True)
        other = tl.load(best + place, mask=place < n, other=0).to(tl.uint32, bitcast=True)
        before = (other[None, :] > key[:, None]) | (
            (other[None, :] == key[:, None]) & (place[None, :] < place[:, None])
        )
        rank = tl.sum(before.to(tl.int32), axis=1)  # padding has key 0 and comes last
        found = tl.load(index + place, mask=place < n, other=-1).to(tl.int64)
        value = tl.where(place < n, _score_of(key), float("-inf"))
        tl.store(indices + query * K + rank, found, mask=rank < K)
        tl.store(scores + query * K + rank, value, mask=rank < K)
    else:
        for first in range(0, K, BLOCK):
            place = first + tl.arange(0, BLOCK)
            key = tl.load(best + place, mask=place < n, other=0).to(tl.uint32, bitcast=True)
            found = tl.load(index + place, mask=place < n, other=-1).to(tl.int64)
            value = tl.where(place < n, _score_of(key), float("-inf"))
            tl.store(indices + query * K + place, found, mask=place < K)
            tl.store(scores + query * K + place, value, mask=place < K)


def chunk_of(num_queries: int, num_keys: int, slots: int) -> int:
    """Queries a sweep: their scores fit the L2 ring, or, for a long queue, as many as keep key traffic small."""
    a_query = 4 * max(num_keys, 1) * slots
    fitting = RING_BYTES // a_query
    if fitting < MIN_CHUNK:
        fitting = min(MIN_CHUNK, MAX_RING_BYTES // a_query)
    return max(1, min(num_queries, fitting, MAX_GRID_Y * BLOCK_B))


class Masks(NamedTuple):
    """Who may not be selected, as the score kernels take it."""

    places: tuple[Tensor | None, Tensor | None, Tensor | None]  # query ids, key ids, exclude as bytes
    exclude_stride: int
    there: dict[str, bool]


def masks_of(call: CascadeCall) -> Masks:
    """The masks of a walkable call."""
    exclude = None if call.exclude is None else call.exclude.view(torch.uint8)
    places = (call.query_ids, call.key_ids, exclude)
    names = ("HAS_QUERY_IDS", "HAS_KEY_IDS", "HAS_EXCLUDE")
    there = {name: place is not None for name, place in zip(names, places)}
    return Masks(places, 0 if exclude is None else exclude.stride(0), there)


def _score_part(call: CascadeCall, rows: Rows, ring: Tensor) -> None:
    """Scores of the call's queries into ring [slots, B, N]."""
    num_queries, num_keys = call.queries[0].shape[0], call.keys[0].shape[0]
    masks, config = masks_of(call), score_config(num_keys)
    for slot, view in enumerate(rows.views):
        query, key = call.queries[view], call.keys[view]
        score_tile[(triton.cdiv(num_keys, config["BLOCK_N"]), triton.cdiv(num_queries, BLOCK_B))](
            query, key, ring[slot], *masks.places, num_queries, num_keys, query.shape[1], query.stride(0),
            key.stride(0), ring.stride(1), masks.exclude_stride, **masks.there, UPCAST=INTERPRETED,
            PRECISION="tf32x3" if query.dtype == torch.float32 and not INTERPRETED else "ieee",
            BLOCK_B=BLOCK_B, BLOCK_D=BLOCK_D, **config,
        )  # fmt: skip


def _in_order(indices: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Results in index order, put into (score descending, index ascending)."""
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    return indices.gather(1, order), scores


def select_and_order(
    call: CascadeCall,
    rows: Rows,
    length: int,
    score: Callable[[CascadeCall, int, Tensor], None],
    bias: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Positions [B, k] and scores [B, k] of the cascade over score rows of `length`, a chunk of queries at a time.

    `score(part, first, ring [slots, B of the part, pitch])` writes the scores of a part of the call, whose queries
    are those from `first` on. `bias` [1 or B, length] is of the positions.
    """
    call = call.with_contiguous_rows()
    query = call.queries[0]
    num_queries, k = query.shape[0], call.stage_keep[-1]
    indices = torch.empty(num_queries, k, dtype=torch.int64, device=query.device)
    scores = torch.empty(num_queries, k, dtype=torch.float32, device=query.device)
    if num_queries == 0:
        return indices, scores
    slots, count = len(rows.views), len(rows.weights) // len(rows.views)
    chunk = chunk_of(num_queries, length, slots)
    pitch = max(1, triton.cdiv(length, ROW_UNIT)) * ROW_UNIT
    ring = torch.empty(slots, chunk, pitch, dtype=torch.float32, device=query.device)
    lists = torch.empty(chunk, 2, count + 1, pitch, dtype=torch.int32, device=query.device)
    ranked = k <= RANKED_IN_KERNEL
    bias_stride = 0 if bias is None or bias.shape[0] == 1 else bias.stride(0)
    for first in range(0, num_queries, chunk):
        part = min(chunk, num_queries - first)
        if length:
            score(call.part(first, part), first, ring[:, :part])
        select_query[(part,)](
            ring, lists, bias if bias is None or not bias_stride else bias[first:], indices[first:], scores[first:],
            length, ring.stride(0), ring.stride(1), pitch, bias_stride,
            KEEP=tuple(min(keep, 2**31 - 1) for keep in call.stage_keep), JUDGE=rows.row_of_stage,
            WEIGHTS=rows.weights, STAGES=len(call.stage_keep), ROWS=count, VIEWS=slots,
            BIASED=rows.biased, K=k, RANKED=ranked,
            BLOCK_K=max(16, triton.next_power_of_2(k)) if ranked else 16,
            **select_config(length), num_stages=1,
            enable_fp_fusion=False,  # a weighted view is rounded before it is added, as everywhere
        )  # fmt: skip
    return (indices, scores) if ranked else _in_order(indices, scores)


@torch.no_grad()
def run(call: CascadeCall) -> tuple[Tensor, Tensor]:
    """`(indices [B, k], scores [B, k])`; see `reference.run` for the meaning."""
    rows = plan_rows(call)
    bias = None if call.key_bias is None else call.key_bias.contiguous()[None]
    return select_and_order(
        call, rows, call.keys[0].shape[0], lambda part, first, ring: _score_part(part, rows, ring), bias
    )
