# mypy: disable-error-code="no-untyped-def,attr-defined"
"""Statistics of the logits in Triton: how many rank above the own pair, and the best few of each part of the keys."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..dispatch.calls import LossCall

BEST: tl.constexpr = tl.constexpr(5)  # entries of highest score that statistics are about
NO_ENTRY: tl.constexpr = tl.constexpr(-(2**63))  # below every entry's number
ALWAYS: tl.constexpr = tl.constexpr(2**63 - 1)


@triton.jit
def ranking(scores, index):
    """int64 numbers that order entries by (score descending, index ascending, from -1), the first the greatest."""
    bits = (scores + 0.0).to(tl.int32, bitcast=True)  # a zero has no sign
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.to(tl.int64) << 32) | (0x7FFFFFFF - index.to(tl.int64))


@triton.jit
def into_best(best, entries):
    """The greatest numbers of `best` [rows, 8], of which as many as it held are kept, and of `entries` [rows, n]."""
    if tl.max((entries > tl.min(best, axis=1)[:, None]).to(tl.int32)) > 0:
        for _ in tl.static_range(BEST):
            most, least = tl.max(entries, axis=1)[:, None], tl.min(best, axis=1)[:, None]
            best = tl.where((best == least) & (most > least), most, best)
            entries = tl.where(entries == most, NO_ENTRY, entries)
    return best


@triton.jit
def no_best(rows: tl.constexpr):
    """Room [rows, 8] for BEST entries: places beyond them hold what nothing replaces."""
    place = tl.arange(0, 8).to(tl.int64)
    empty = tl.where(place < BEST, NO_ENTRY + place, ALWAYS)
    return tl.zeros((rows, 8), tl.int64) + empty[None, :]


@triton.jit(do_not_specialize=["num_queries", "parts"])
def finish_stats(
    own_scores, own_counts, positives, query_ids, key_ids, above, best, stats_out, num_queries, num_positives, parts,
    HAS_QUERY_IDS: tl.constexpr, SIBLINGS: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Statistics of one query: its own pair and the parts' best entries put together, and which are positives."""
    b = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, 8).to(tl.int64)
    found = tl.where(
        place[None, :] == 0, ranking(tl.load(own_scores + b), tl.full((), -1, tl.int64)), no_best(1)
    )
    rank = b * 0
    for part in range(parts):
        at = b + tl.full((), 1, tl.int64) * part * num_queries
        rank += tl.load(above + at)
        entries = tl.load(best + at * 8 + place[None, :])
        there = (place[None, :] < BEST) & (entries >= NO_ENTRY + 8)
        found = into_best(found, tl.where(there, entries, NO_ENTRY))
    found = tl.where(place < BEST, tl.max(found, axis=0), NO_ENTRY)  # [8]
    there = found >= NO_ENTRY + 8
    key = 0x7FFFFFFF - (found & 0xFFFFFFFF)
    listed_at = tl.arange(0, BLOCK_P)
    listed = tl.load(positives + b * num_positives + listed_at, mask=listed_at < num_positives, other=-1)
    positive = tl.max((listed[:, None] == key[None, :]).to(tl.int32), axis=0)
    if HAS_QUERY_IDS and SIBLINGS == 1:
        in_keys = there & (key >= 0)
        key_id = tl.load(key_ids + tl.where(in_keys, key, 0), mask=in_keys, other=-1)
        positive = positive | (in_keys & (key_id == tl.load(query_ids + b))).to(tl.int32)
    positive = tl.where(key == -1, tl.load(own_counts + b).to(tl.int32), positive)
    positive = tl.where(there, positive, 0)
    tl.store(stats_out + b * 3, rank)
    tl.store(stats_out + b * 3 + 1, tl.sum(tl.where(found == tl.max(found), positive, 0)).to(tl.int64))
    tl.store(stats_out + b * 3 + 2, tl.sum(positive).to(tl.int64))


class Ranks(NamedTuple):
    """What statistics are made of; None where they are not wanted."""

    own: Tensor | None  # [B] scores of the own pairs
    own_counts: Tensor | None  # [B] int8, is the own pair a positive?
    above: Tensor | None  # [parts, B] int32, scores above it
    best: Tensor | None  # [parts, B, 8] int64, the part's best entries (`ranking`)


NO_RANKS = Ranks(None, None, None, None)


def ranks_of(call: LossCall, parts: int) -> Ranks:
    """Own scores, and room for what the kernels find."""
    rows, device = call.query.shape[0], call.query.device
    return Ranks(
        (call.query.float() * call.positive.float()).sum(dim=1),
        torch.empty(rows, dtype=torch.int8, device=device),
        torch.empty(parts, rows, dtype=torch.int32, device=device),
        torch.empty(parts, rows, 8, dtype=torch.int64, device=device),
    )
