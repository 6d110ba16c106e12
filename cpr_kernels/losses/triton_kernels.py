# mypy: disable-error-code="no-untyped-def,attr-defined"
"""Triton kernels of `cpr::mil_nce`: a sweep over parts of the keys, a kernel that finishes each query, and the keys'
gradient. Imported only when a call is to run on them. Every sum has a fixed order; nothing of size B x N is made.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..dispatch.calls import LossCall, Sweep
from .triton_stats import NO_ENTRY, NO_RANKS, finish_stats, into_best, no_best, ranking, ranks_of

PROGRAMS_WANTED = 264  # two for each of 132 multiprocessors
MIN_PART = 128  # keys
SCANNED = 512  # ids a step when a query looks for its siblings
LOWEST: tl.constexpr = tl.constexpr(-3.402823466e38)
HIGHEST: tl.constexpr = tl.constexpr(3.402823466e38)
INTERPRETED = triton.knobs.runtime.interpret


# Larger blocks spill registers on 8.0 or 9.0: three tf32 products keep both operands' parts in them (test_triton_aot).
SWEEP_QUERIES, GRADIENT_QUERIES = 16, 32
WHOLE_DIM, CHUNK_DIM = 256, 64  # features that a program holds whole; beyond, tiles of so many


# Nothing is autotuned: the keys of a block are summed together, so a size that a timing race chose would change bits.
SWEEP_LAUNCH: dict[str, Any] = {"BLOCK_N": 32, "num_warps": 4, "num_stages": 2}
GRADIENT_LAUNCH: dict[str, Any] = {"BLOCK_N": 16, "num_warps": 4, "num_stages": 1}


@triton.jit
def _features(base, rows, stride, inside, d, dim):
    """Features d of some rows in float32, zeros beyond the end: [rows, d]."""
    there = inside[:, None] & (d < dim)[None, :]
    return tl.load(base + rows[:, None] * stride + d[None, :], mask=there, other=0.0).to(tl.float32)


@triton.jit
def _finite(features):
    """Zeros in place of NaN and infinity, so that a weight of 0 adds 0."""
    return tl.where(tl.abs(features) <= HIGHEST, features, 0.0)


@triton.jit
def _wide_scores(
    left, left_rows, left_stride, in_left, right, right_rows, right_stride, in_right, dim, PRECISION: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Inner products [left, right] of rows that are too long to be held, a tile of features after the other."""
    total = tl.zeros((left_rows.shape[0], right_rows.shape[0]), tl.float32)
    for first in tl.range(0, dim, BLOCK_D, num_stages=1):  # more would keep two tiles' parts in registers
        d = first + tl.arange(0, BLOCK_D)
        a = _features(left, left_rows, left_stride, in_left, d, dim)
        b = _features(right, right_rows, right_stride, in_right, d, dim)
        total = tl.dot(a, tl.trans(b), total, input_precision=PRECISION)
    return total


@triton.jit(do_not_specialize=["num_queries", "num_keys"])
def sweep_part(
    query, keys, query_ids, key_ids, own_scores, top_out, mass_out, attended_out, above_out, best_out, num_queries,
    num_keys, dim, query_stride, key_stride, part_keys, scale, HAS_QUERY_IDS: tl.constexpr, HAS_KEY_IDS: tl.constexpr,
    LEAVE_OUT: tl.constexpr, GRADIENT: tl.constexpr, STATS: tl.constexpr, PRECISION: tl.constexpr, EXACT: tl.constexpr,
    WIDE: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One part of the keys for a block of queries: highest score, mass, and attention output of each, for BLOCK_D
    of the features. WIDE: there are more than that, so the scores are formed tile by tile, in every program alike.
    """
    b = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    part = tl.program_id(1)
    d = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
    in_b, in_d = b < num_queries, d < dim
    rows = b.to(tl.int64)
    if not WIDE:
        q = _features(query, rows, query_stride, in_b, d, dim)
    own_id = tl.load(query_ids + b, mask=in_b, other=-1) if HAS_QUERY_IDS else b
    top = tl.full((BLOCK_B,), LOWEST, tl.float32)
    mass = tl.zeros((BLOCK_B,), tl.float32)
    attended = tl.zeros((BLOCK_B, BLOCK_D), tl.float32)
    if STATS:
        own = tl.load(own_scores + b, mask=in_b, other=0.0)[:, None]
        above = tl.zeros((BLOCK_B,), tl.int32)
        best = no_best(BLOCK_B)
    end = tl.minimum((part + 1) * part_keys, num_keys)
    for first in range(part * part_keys, end, BLOCK_N):
        j = first + tl.arange(0, BLOCK_N)
        taking = (j < end)[None, :]
        filled = j < end
        if HAS_KEY_IDS:
            key_id = tl.load(key_ids + j, mask=j < end, other=-1)
            filled = filled & (key_id >= 0)
            taking = filled[None, :]
            if LEAVE_OUT:
                taking = taking & (key_id[None, :] != own_id[:, None])
        key = _features(keys, j.to(tl.int64), key_stride, filled, d, dim)  # [BLOCK_N, BLOCK_D]
        if WIDE:
            score = _wide_scores(
                query, rows, query_stride, in_b, keys, j.to(tl.int64), key_stride, filled, dim, PRECISION, BLOCK_D
            )  # fmt: skip
        else:
            score = tl.dot(q, tl.trans(key), input_precision=PRECISION)
        if STATS:
            above += tl.sum((taking & (score > own)).to(tl.int32), axis=1)
            best = into_best(best, tl.where(taking, ranking(score, j[None, :]), NO_ENTRY))
        highest = tl.maximum(top, tl.max(tl.where(taking, score, LOWEST), axis=1))
        weight = tl.where(taking, tl.exp((score - highest[:, None]) * scale), 0.0)
        shrink = tl.exp((top - highest) * scale)
        # NaN where a score is not finite: 0 times it is NaN
        mass = mass * shrink + tl.sum(tl.where(taking, score * 0.0 + weight, 0.0), axis=1)
        if GRADIENT:
            if LEAVE_OUT:
                key = _finite(key)
            attended = tl.dot(weight, key, attended * shrink[:, None], input_precision=EXACT)
        top = highest
    at = part.to(tl.int64) * num_queries + rows
    first_features = in_b & (tl.program_id(2) == 0)
    tl.store(top_out + at, top, mask=first_features)
    tl.store(mass_out + at, mass, mask=first_features)
    if STATS:
        tl.store(above_out + at, above, mask=first_features)
        place = tl.arange(0, 8)[None, :]
        tl.store(best_out + at[:, None] * 8 + place, best, mask=first_features[:, None] & (place < 8))
    if GRADIENT:
        tl.store(attended_out + at[:, None] * dim + d[None, :], attended, mask=in_b[:, None] & in_d[None, :])


@triton.jit(do_not_specialize=["num_queries", "num_keys", "parts"])
def finish_query(
    query, positive, keys, positives, query_ids, key_ids, use_own, tops, masses, attended, loss_out, all_out,
    positive_out, weight_out, grad_out, own_counts_out, num_queries, num_keys, dim, query_stride, positive_stride,
    key_stride, num_positives, parts, scale, HAS_QUERY_IDS: tl.constexpr, HAS_KEY_IDS: tl.constexpr,
    HAS_USE_OWN: tl.constexpr, SIBLINGS: tl.constexpr, GRADIENT: tl.constexpr, STATS: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr, SCAN: tl.constexpr, TAKEN: tl.constexpr,
):  # fmt: skip
    """One query: parts put together in order, its own pair, its positives; the loss and the query's gradient."""
    b = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    in_d = d < dim
    q = tl.load(query + b * query_stride + d, mask=in_d, other=0.0).to(tl.float32)
    own_key = tl.load(positive + b * positive_stride + d, mask=in_d, other=0.0).to(tl.float32)
    own = tl.sum(q * own_key)
    own_id = tl.load(query_ids + b) if HAS_QUERY_IDS else b * 0 - 1

    top = own
    for part in range(parts):
        top = tl.maximum(top, tl.load(tops + part * num_queries + b))
    mass = tl.exp((own - top) * scale)
    summed = mass * own_key
    mass += own * 0.0  # NaN where it is not finite
    for part in range(parts):
        factor = tl.exp((tl.load(tops + part * num_queries + b) - top) * scale)
        mass += factor * tl.load(masses + part * num_queries + b)
        if GRADIENT:
            of_part = tl.load(attended + (part * num_queries + b) * dim + d, mask=in_d, other=0.0)
            summed += factor * of_part

    best = own * 0 + LOWEST  # over the positives
    gathered = own * 0
    features = tl.zeros((BLOCK_D,), tl.float32)
    place = tl.arange(0, BLOCK_P)
    listed = tl.load(positives + b * num_positives + place, mask=place < num_positives, other=-1)
    for p in range(num_positives):
        key = tl.sum(tl.where(place == p, listed, 0))
        counts = (key >= 0) & (key < num_keys)
        counts = counts & (tl.sum(((listed == key) & (place < p)).to(tl.int32)) == 0)  # a repeat counts once
        if HAS_KEY_IDS:
            key_id = tl.load(key_ids + tl.where(counts, key, 0), mask=counts, other=-1)
            counts = counts & (key_id >= 0)
            if HAS_QUERY_IDS and SIBLINGS != 0:
                counts = counts & (key_id != own_id)  # added below, or left out
        k = tl.load(keys + tl.where(counts, key, 0) * key_stride + d, mask=in_d & counts, other=0.0).to(
            tl.float32
        )
        score = tl.where(counts, tl.sum(q * k), LOWEST)
        highest = tl.maximum(best, score)
        weight = tl.where(counts, tl.exp((score - highest) * scale), 0.0)
        shrink = tl.exp((best - highest) * scale)
        gathered = gathered * shrink + weight
        features = features * shrink + weight * k
        best = highest
    if HAS_QUERY_IDS and SIBLINGS == 1:
        for first in range(0, num_keys, SCAN):
            ids = tl.load(
                key_ids + first + tl.arange(0, SCAN), mask=first + tl.arange(0, SCAN) < num_keys, other=-1
            )
            if tl.sum(((ids >= 0) & (ids == own_id)).to(tl.int32)) > 0:
                for inner in range(first, first + SCAN, TAKEN):
                    j = inner + tl.arange(0, TAKEN)
                    id16 = tl.load(key_ids + j, mask=j < num_keys, other=-1)
                    same = (id16 >= 0) & (id16 == own_id)
                    rows = keys + j.to(tl.int64)[:, None] * key_stride + d[None, :]
                    k16 = tl.load(rows, mask=same[:, None] & in_d[None, :], other=0.0).to(tl.float32)
                    score16 = tl.where(same, tl.sum(k16 * q[None, :], axis=1), LOWEST)
                    highest = tl.maximum(best, tl.max(score16))
                    weight16 = tl.where(same, tl.exp((score16 - highest) * scale), 0.0)
                    shrink = tl.exp((best - highest) * scale)
                    gathered = gathered * shrink + tl.sum(weight16)
                    features = features * shrink + tl.sum(weight16[:, None] * k16, axis=0)
                    best = highest

    own_counts = gathered == 0
    if HAS_USE_OWN:
        own_counts = own_counts | (tl.load(use_own + b) != 0)
    else:
        own_counts = own_counts | (gathered == gathered)
    if STATS:
        tl.store(own_counts_out + b, own_counts.to(tl.int8))
    highest = tl.where(own_counts, tl.maximum(best, own), best)
    shrink = tl.exp((best - highest) * scale)
    own_mass = tl.where(own_counts, tl.exp((own - highest) * scale), 0.0)
    gathered = gathered * shrink + own_mass
    features = features * shrink + own_mass * own_key
    gap = (top - highest) * scale
    gap = tl.where(gap > HIGHEST, HIGHEST, gap)
    tl.store(loss_out + b, gap + (tl.log(mass) - tl.log(gathered)))
    tl.store(all_out + b, top * scale + tl.log(mass))
    tl.store(positive_out + b, highest * scale + tl.log(gathered) + mass * 0.0)
    tl.store(weight_out + b, tl.exp((own - top) * scale) / mass - own_mass / gathered)
    if GRADIENT:
        tl.store(grad_out + b * dim + d, (summed / mass - features / gathered) * scale, mask=in_d)


@triton.jit(do_not_specialize=["num_queries", "num_keys"])
def keys_gradient_block(
    query, keys, positives, query_ids, key_ids, grad_loss, lse_all, lse_positive, grad_out, num_queries, num_keys,
    dim, query_stride, key_stride, num_positives, scale, HAS_QUERY_IDS: tl.constexpr, HAS_KEY_IDS: tl.constexpr,
    SIBLINGS: tl.constexpr, PRECISION: tl.constexpr, EXACT: tl.constexpr, WIDE: tl.constexpr, BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """d (grad_loss . loss) / d keys for a block of keys and BLOCK_D features, summed over all queries in order."""
    j = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    in_n, in_d = j < num_keys, d < dim
    wide = j.to(tl.int64)
    if not WIDE:
        key = _features(keys, wide, key_stride, in_n, d, dim)
    filled = in_n
    key_id = wide
    if HAS_KEY_IDS:
        key_id = tl.load(key_ids + j, mask=in_n, other=-1)
        filled = filled & (key_id >= 0)
    total = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    for first in range(0, num_queries, BLOCK_B):
        b = first + tl.arange(0, BLOCK_B)
        in_b = b < num_queries
        q = _features(query, b.to(tl.int64), query_stride, in_b, d, dim)
        if WIDE:
            logit = _wide_scores(
                keys, wide, key_stride, in_n, query, b.to(tl.int64), query_stride, in_b, dim, PRECISION, BLOCK_D
            )  # fmt: skip
        else:
            logit = tl.dot(key, tl.trans(q), input_precision=PRECISION)  # [BLOCK_N, BLOCK_B]
        logit = logit * scale
        taking = filled[:, None] & in_b[None, :]
        is_positive = tl.zeros((BLOCK_N, BLOCK_B), tl.int1)
        for p in range(num_positives):
            listed = tl.load(positives + b.to(tl.int64) * num_positives + p, mask=in_b, other=-1)
            is_positive = is_positive | (wide[:, None] == listed[None, :])
        if HAS_QUERY_IDS:
            own_id = tl.load(query_ids + b, mask=in_b, other=-1)
            same = key_id[:, None] == own_id[None, :]
            if SIBLINGS == 1:
                is_positive = is_positive | same
            if SIBLINGS == 2:
                taking = taking & (same == 0)
        # at most 1: a score may round to more here than in the sweep's sums, by 1e23 where scores are 1e30; NaN stays
        from_all = logit - tl.load(lse_all + b, mask=in_b, other=0.0)[None, :]
        from_positive = logit - tl.load(lse_positive + b, mask=in_b, other=0.0)[None, :]
        of_all = tl.exp(tl.where(from_all > 0, 0.0, from_all))
        of_positive = tl.exp(tl.where(from_positive > 0, 0.0, from_positive))
        weight = tl.where(taking, of_all - tl.where(is_positive, of_positive, 0.0), 0.0)
        # a query that is not finite has NaN sums: its weights are NaN, or 0 where a key takes no part
        weight = tl.where(
            taking, weight * (tl.load(grad_loss + b, mask=in_b, other=0.0) * scale)[None, :], 0.0
        )
        total = tl.dot(weight, _finite(q), total, input_precision=EXACT)
    tl.store(grad_out + wide[:, None] * dim + d[None, :], total, mask=in_n[:, None] & in_d[None, :])


def whole_block(dim: int) -> int:
    """The power of two that holds all features of a row."""
    return max(16, triton.next_power_of_2(dim))


def _shared(call: LossCall) -> dict[str, Any]:
    """Constants that every kernel takes: what is there, how products are formed, block sizes."""
    half = call.query.dtype != torch.float32
    exact = "ieee" if INTERPRETED else "tf32x3"
    return {
        "HAS_QUERY_IDS": call.query_ids is not None,
        "HAS_KEY_IDS": call.key_ids is not None,
        "WIDE": call.query.shape[1] > WHOLE_DIM,
        "BLOCK_D": CHUNK_DIM if call.query.shape[1] > WHOLE_DIM else whole_block(call.query.shape[1]),
        "PRECISION": "tf32" if half and not INTERPRETED else exact,  # 16-bit features are exact in tf32
        "EXACT": exact,
    }


def sweep(call: LossCall, want_gradient: bool, want_stats: bool = False) -> Sweep:
    """The loss and what its gradients need; see `reference.sweep`."""
    call = call.with_contiguous_rows()
    query, positive, keys = call.query, call.positive, call.keys
    (rows, dim), num_keys, device = query.shape, keys.shape[0], query.device
    loss, lse_all, lse_positive, own_weight = (torch.empty(rows, device=device) for _ in range(4))
    grad_query = torch.empty(rows if want_gradient else 0, dim, device=device)
    stats = torch.empty(rows if want_stats else 0, 3, dtype=torch.int64, device=device)
    if rows == 0:
        return Sweep(loss, lse_all, lse_positive, own_weight, grad_query, stats)
    given = _shared(call)
    tiles, chunks = (
        triton.cdiv(rows, SWEEP_QUERIES),
        triton.cdiv(dim, given["BLOCK_D"]) if want_gradient else 1,
    )
    share = max(1, PROGRAMS_WANTED // (tiles * chunks))
    part_keys = max(MIN_PART, triton.cdiv(triton.cdiv(num_keys, share), 64) * 64)
    parts = triton.cdiv(num_keys, part_keys)
    tops, masses = torch.empty(2, max(parts, 1), rows, device=device)
    attended = torch.empty(max(parts, 1) if want_gradient else 0, rows, dim, device=device)
    ranks = ranks_of(call, max(parts, 1)) if want_stats else NO_RANKS
    scale = 1.0 / call.temperature
    if parts:
        sweep_part[(tiles, parts, chunks)](
            query, keys, call.query_ids, call.key_ids, ranks.own, tops, masses, attended, ranks.above, ranks.best,
            rows, num_keys, dim, query.stride(0), keys.stride(0), part_keys, scale, LEAVE_OUT=_leaves_out(call),
            GRADIENT=want_gradient, STATS=want_stats, BLOCK_B=SWEEP_QUERIES, **SWEEP_LAUNCH, **given,
        )  # fmt: skip
    listed, has_ids = call.positives, call.query_ids is not None
    use_own = None if call.use_own is None else call.use_own.view(torch.uint8)
    listed_block = triton.next_power_of_2(max(1, listed.shape[1]))
    finish_query[(rows,)](
        query, positive, keys, listed, call.query_ids, call.key_ids, use_own, tops, masses, attended, loss, lse_all,
        lse_positive, own_weight, grad_query, ranks.own_counts, rows, num_keys, dim, query.stride(0),
        positive.stride(0), keys.stride(0), listed.shape[1], parts, scale, HAS_QUERY_IDS=has_ids,
        HAS_KEY_IDS=call.key_ids is not None, HAS_USE_OWN=use_own is not None, SIBLINGS=call.siblings,
        GRADIENT=want_gradient, STATS=want_stats, BLOCK_P=listed_block, BLOCK_D=whole_block(dim), SCAN=SCANNED,
        TAKEN=max(1, min(16, 4096 // whole_block(dim))), num_warps=4,
    )  # fmt: skip
    if want_stats:
        finish_stats[(rows,)](
            ranks.own, ranks.own_counts, listed, call.query_ids, call.key_ids, ranks.above, ranks.best, stats, rows,
            listed.shape[1], parts, HAS_QUERY_IDS=has_ids, SIBLINGS=call.siblings, BLOCK_P=listed_block, num_warps=1,
        )  # fmt: skip
        stats = stats.masked_fill(loss.isnan()[:, None], -1)
    return Sweep(loss, lse_all, lse_positive, own_weight, grad_query, stats)


def _leaves_out(call: LossCall) -> bool:
    return call.siblings == 2 and call.query_ids is not None


def keys_gradient(call: LossCall, grad_loss: Tensor, lse_all: Tensor, lse_positive: Tensor) -> Tensor:
    """d (grad_loss . loss) / d keys: [N, D] in the keys' dtype; see `reference.keys_gradient`."""
    call = call.with_contiguous_rows()
    query, keys, listed = call.query, call.keys, call.positives
    num_keys, dim = keys.shape
    grad = torch.empty(num_keys, dim, device=keys.device)
    if num_keys == 0:
        return grad.to(keys.dtype)
    state = [t.float().contiguous() for t in (grad_loss, lse_all, lse_positive)]
    given = _shared(call)
    keys_gradient_block[(triton.cdiv(num_keys, GRADIENT_LAUNCH["BLOCK_N"]), triton.cdiv(dim, given["BLOCK_D"]))](
        query, keys, listed, call.query_ids, call.key_ids, *state, grad, query.shape[0], num_keys, dim,
        query.stride(0), keys.stride(0), listed.shape[1], 1.0 / call.temperature, SIBLINGS=call.siblings,
        BLOCK_B=GRADIENT_QUERIES, **GRADIENT_LAUNCH, **given,
    )  # fmt: skip
    return grad.to(keys.dtype)
