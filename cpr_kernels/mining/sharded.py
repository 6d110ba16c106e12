"""Runs `cpr::cascade_topk` over a queue that several ranks hold in shares; each gets its own queries' result.

Every rank scores its share for the queries of all ranks, with the native core's own scores (of CUDA tensors: with the
reference's), and lists what each query may select. A stage's threshold is then found digit by digit: each rank counts
its entries by the next bits of their score, the query's own rank adds the counts up and answers which digit holds the
m-th highest; after 32 bits it says how many of those exactly at it each rank keeps, the first in global order. The last
few survivors are sent to the query's rank, which ends the cascade. Each rank sends to each other one, for any N:

- once: a handshake of 64 bytes, and its own queries, features and ids;
- for each threshold: 1,024 bytes (`DIGIT_COUNTS` numbers) for each query of the receiver, 13 for each of its own;
- at the end: 4 bytes for each query of the receiver and 4 (1 + rows of scores left) for each survivor, of which a query
  has at most `SEND_SURVIVORS` in all (or k), or `SEND_OWN_BEST` on each rank.

Only `exclude` is sent as it is: B bytes for each entry of the receiver. `bench/sharded/model.py` sums it up.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from ..dispatch.calls import CascadeCall, row_contiguous
from ..dispatch.checks import check_cascade, check_key_bias
from ..dispatch.native import DTYPE_CODES, core
from ..dispatch.sharded_keys import (
    Shard,
    ShardedKeys,
    exchange,
    fingerprint,
    gather_rows,
    handshake,
    why_not_group,
)
from ..dispatch.tensor_checks import check_ids, check_like, check_memory
from .reference import ranking
from .sharded_lists import DIGITS, NativeLists, TorchLists, lists_for
from .weightings import Rows, plan_rows

NAME = "sharded"
DIGIT_COUNTS = sum(1 << bits for bits in DIGITS)  # numbers that a rank sends to find one threshold
SEND_SURVIVORS = 256  # from this `keep` on, survivors are sent to the query's rank
SEND_OWN_BEST = 64  # from this `keep` on, each rank sends its own best at once
WORKING_BYTES = 1 << 28  # of lists at a time, or a quarter of what the largest share of the features takes;
KEYS_A_LIST_BYTE = 4  # queries whose lists do not fit wait for the next sweep of the keys


def why_not(call: CascadeCall) -> str | None:
    """Returns None for keys that are a shard, while a group is up that carries such tensors; else the reason."""
    keys = call.keys[0]
    if not isinstance(keys, ShardedKeys):
        return "the keys are not sharded; pass the views of a ShardedMultiViewQueue"
    if call.queries[0].device.type not in ("cpu", "cuda"):
        return f"shards are searched in CPU or CUDA tensors, and these are on {call.queries[0].device}"
    if call.queries[0].dtype not in DTYPE_CODES:
        return f"shards are searched in float32, and {call.queries[0].dtype} asks for more"
    return why_not_group(keys.shard, call.queries[0].device.type)


def check(call: CascadeCall) -> None:
    """Checks a call as `check_cascade`; key_ids and key_bias are of this rank's entries, exclude has a column for
    every entry.

    Raises:
        ValueError: naming the argument, what was expected and what came.
    """
    op, shard = "cascade_topk", call.keys[0].shard
    check_cascade(call._replace(query_ids=None, key_ids=None, key_bias=None))
    for v, tensor in enumerate((*call.queries, *call.keys)):
        name = f"queries[{v}]" if v < len(call.queries) else f"keys[{v - len(call.queries)}]"
        check_like(op, name, tensor, ("queries[0]", call.queries[0]))
    device, held = call.queries[0].device, "entry that this rank holds"
    if call.key_bias is not None:
        check_key_bias(op, call.key_bias, shard.local, held, device)
        check_memory(op, key_bias=call.key_bias)
    if call.key_ids is not None:
        check_ids(op, "key_ids", call.key_ids, shard.local, held, device)
    if call.query_ids is not None:
        if call.key_ids is None:
            raise ValueError(f"{op}: query_ids is given without key_ids; give both or only key_ids")
        check_ids(op, "query_ids", call.query_ids, call.queries[0].shape[0], "query", device)


@torch.no_grad()
def run(call: CascadeCall) -> tuple[Tensor, Tensor]:
    """Returns `(indices [B, k], scores [B, k])` of this rank's queries; indices are global. Every rank must call."""
    shard, rows = call.keys[0].shard, plan_rows(call)
    batch = handshake(shard, "cascade_topk", call.queries[0].shape[0], _facts(call, shard))
    work = _Share(call, shard, rows, batch)
    k, device = call.stage_keep[-1], call.queries[0].device
    indices = torch.full((batch[shard.rank], k), -1, dtype=torch.int64, device=device)
    scores = torch.full((batch[shard.rank], k), -torch.inf, device=device)
    kind = lists_for(device)
    group_size = _queries_at_a_time(shard, work, kind)
    lists = kind(min(group_size, sum(batch)), work.weightings, shard.local)
    begins, done = [0, *accumulate(batch)], 0
    for first in range(0, sum(batch), group_size):
        last = min(first + group_size, sum(batch))
        owned = [max(0, min(last, begins[r + 1]) - max(first, begins[r])) for r in range(shard.world)]
        part = slice(done, done + owned[shard.rank])
        done = part.stop
        work.collect(slice(first, last), lists)
        _cascade(call, rows, lists, _GroupSearch(shard, owned), indices[part], scores[part])
    return indices, scores


def _queries_at_a_time(shard: Shard, work: _Share, kind: type[NativeLists] | type[TorchLists]) -> int:
    """Returns the number of queries whose lists fit the working memory: the same on every rank."""
    entries = max(shard.sizes)
    features = entries * sum(key.shape[1] * key.element_size() for key in work.keys)
    room = shard.working_bytes or max(WORKING_BYTES, features // KEYS_A_LIST_BYTE)
    return max(1, room // kind.query_bytes(entries, work.weightings))


def _facts(call: CascadeCall, shard: Shard) -> list[tuple[str, int]]:
    """Returns what must be equal on all ranks, and its number."""
    schedule = ([float(w) for w in call.stage_weights], list(call.stage_keep))
    features = (str(call.queries[0].dtype), [q.shape[1] for q in call.queries])
    masks = tuple(mask is not None for mask in (call.query_ids, call.key_ids, call.exclude, call.key_bias))
    return [
        ("the schedule", fingerprint(schedule)),
        ("the size or dtype of the features", fingerprint(features)),
        ("the choice of ids, exclude and key_bias", fingerprint(masks)),
        ("the layout of the queue, or its working_bytes,", fingerprint(shard.sizes, shard.working_bytes)),
        ("the kind of device, or the core's arithmetic (fused multiply-add or not),", _arithmetic(call)),
    ]


def _arithmetic(call: CascadeCall) -> int:
    """Returns a number for what forms the scores: one on all ranks, or they could not be compared."""
    return int(core.cpu_isa() != "generic") if call.queries[0].device.type == "cpu" else 2


class _Share:
    """Holds this rank's entries and the queries of all ranks."""

    def __init__(self, call: CascadeCall, shard: Shard, rows: Rows, batch: Sequence[int]) -> None:
        self.weights = list(rows.weights)
        self.weightings = len(rows.weights) // len(rows.views)
        self.keys = [row_contiguous(call.keys[v].rows) for v in rows.views]
        self.key_ids = None if call.key_ids is None else call.key_ids.contiguous()
        self.key_bias = None if call.key_bias is None else call.key_bias.contiguous()
        columns = [call.queries[v] for v in rows.views] + ([] if call.query_ids is None else [call.query_ids])
        gathered = gather_rows(shard, columns, batch, "cascade_topk, gathering the queries")
        self.queries = gathered[: len(rows.views)]  # [M, D_v], M queries of all ranks
        self.query_ids = None if call.query_ids is None else gathered[-1]
        self.exclude = None if call.exclude is None else _excluded_here(call.exclude, shard, batch)

    def collect(self, part: slice, lists: NativeLists | TorchLists) -> None:
        """Scores every entry for some of the queries, and lists those that each may select."""
        query_ids = None if self.query_ids is None else self.query_ids[part]
        exclude = None if self.exclude is None else self.exclude[part]
        queries = [query[part] for query in self.queries]
        lists.collect(queries, self.keys, self.weights, (query_ids, self.key_ids, exclude), self.key_bias)


def _excluded_here(exclude: Tensor, shard: Shard, batch: Sequence[int]) -> Tensor:
    """Returns the columns of every rank's `exclude` that are entries of this rank: [M, n] bytes."""
    bounds = shard.bounds()
    outgoing = [
        exclude[:, bounds[r] : bounds[r + 1]].contiguous().view(torch.uint8) for r in range(shard.world)
    ]
    what = "cascade_topk, sending exclude to the ranks that hold its entries"
    parts = exchange(shard, outgoing, [rows * shard.local for rows in batch], what)
    return torch.cat(parts).view(sum(batch), shard.local)


class _DigitSearch:
    """Finds the `keep`-th highest key of each query, digit by digit, from all ranks' counts."""

    def __init__(self, queries: int, keep: int, device: torch.device) -> None:
        self.need = torch.full(
            (queries,), keep, device=device
        )  # rank of the key sought among those with the prefix so far
        self.all_stay = torch.zeros(queries, dtype=torch.bool, device=device)

    def next_digit(self, counts: Tensor) -> Tensor:
        """Returns the digit [m] of the key sought; `counts` [ranks, m, 2^bits]."""
        in_digit = counts.sum(dim=0)  # [m, 2^bits] int64
        at_least = in_digit.flip(1).cumsum(1).flip(1)  # entries with this digit or a higher one
        self.all_stay |= at_least[:, 0] < self.need
        digit = ((at_least >= self.need[:, None]).sum(dim=1) - 1).clamp(min=0)
        above = at_least - in_digit
        self.need = self.need - above.gather(1, digit[:, None])[:, 0]
        return digit

    def ties(self, counts: Tensor, digit: Tensor) -> Tensor:
        """Returns how many entries exactly at the key each rank keeps: [ranks, m]; -1 where everything stays."""
        at_key = counts.long().gather(2, digit[None, :, None].expand(counts.shape[0], -1, 1))[:, :, 0]
        before = at_key.cumsum(0) - at_key
        kept = (self.need - before).clamp(min=0).minimum(at_key)
        return kept.masked_fill(self.all_stay, -1)


class _GroupSearch:
    """Searches a threshold over all ranks' entries; the rank that the query came from decides."""

    def __init__(self, shard: Shard, owned: Sequence[int]) -> None:
        self.shard = shard
        self.owned = list(owned)  # queries of each rank in this group
        self.mine = self.owned[shard.rank]

    def search(self, keep: int, device: torch.device) -> _DigitSearch:
        return _DigitSearch(self.mine, keep, device)

    def counts(self, counts: Tensor, what: str) -> Tensor:
        """Returns [m, 2^bits] here as [W, mine, 2^bits] at each query's rank."""
        bins = counts.shape[1]
        parts = exchange(self.shard, counts.split(self.owned), [self.mine * bins] * self.shard.world, what)
        return torch.stack([part.view(self.mine, bins) for part in parts])

    def digits(self, digit: Tensor, what: str) -> Tensor:
        """Returns each query's digit, from its rank to all: [m] int64."""
        sent = digit.to(torch.uint8)
        return torch.cat(exchange(self.shard, [sent] * self.shard.world, self.owned, what)).long()

    def cuts(self, digit: Tensor, ties: Tensor, what: str) -> tuple[Tensor, Tensor]:
        """Returns each query's last digit and this rank's ties: [m] each."""
        sent = [torch.stack([digit, kept], dim=1).to(torch.int32) for kept in ties]
        parts = exchange(self.shard, sent, [2 * n for n in self.owned], what)
        both = torch.cat(parts).view(-1, 2).long()
        return both[:, 0], both[:, 1]


class _LocalSearch:
    """Searches a threshold among this rank's own entries, without communication."""

    def __init__(self, queries: int) -> None:
        self.queries = queries

    def search(self, keep: int, device: torch.device) -> _DigitSearch:
        return _DigitSearch(self.queries, keep, device)

    def counts(self, counts: Tensor, what: str) -> Tensor:
        return counts[None]

    def digits(self, digit: Tensor, what: str) -> Tensor:
        return digit

    def cuts(self, digit: Tensor, ties: Tensor, what: str) -> tuple[Tensor, Tensor]:
        return digit, ties[0]


def _cut(
    lists: NativeLists | TorchLists, row: int, keep: int, searcher: _GroupSearch | _LocalSearch, what: str
) -> None:
    """Keeps each query's `keep` best by score row `row`, over all ranks or over this rank's entries."""
    search = searcher.search(keep, lists.length.device)
    key, shift = torch.zeros_like(lists.length), 32
    for step, bits in enumerate(DIGITS):
        shift -= bits
        counts = searcher.counts(lists.count(row, key, shift, step), what)
        digit = search.next_digit(counts)
        if shift:
            key = (key << bits) | searcher.digits(digit, what)
        else:
            last, ties = searcher.cuts(digit, search.ties(counts, digit), what)
            lists.keep(row, (key << bits) | last, ties)


def _cascade(
    call: CascadeCall,
    rows: Rows,
    lists: NativeLists | TorchLists,
    group: _GroupSearch,
    indices: Tensor,
    scores: Tensor,
) -> None:
    """Runs the stages for a group of queries, and writes this rank's results into `indices` and `scores`."""
    stages, first_left = len(call.stage_keep), len(call.stage_keep) - 1
    for s, keep in enumerate(call.stage_keep):
        row, what = rows.row_of_stage[s], f"cascade_topk, stage {s + 1}"
        if keep <= SEND_OWN_BEST:
            _cut(lists, row, keep, _LocalSearch(lists.length.shape[0]), what)
            first_left = s
            break
        _cut(lists, row, keep, group, what)
        if keep <= SEND_SURVIVORS:
            first_left = min(s + 1, stages - 1)
            break
    left = list(range(first_left, stages))
    score_rows = sorted({rows.row_of_stage[s] for s in left})
    index, table = _survivors(lists, score_rows, group)
    alive = index >= 0
    order = index[:, :0]
    for s in left:
        score = table[score_rows.index(rows.row_of_stage[s])]
        order = ranking(score, alive)[:, : call.stage_keep[s]]
        alive = torch.zeros_like(alive).scatter_(1, order, alive.gather(1, order))
    width, chosen = order.shape[1], alive.gather(1, order)
    indices[:, :width] = torch.where(chosen, index.gather(1, order), -1)
    scores[:, :width] = torch.where(chosen, score.gather(1, order), -torch.inf)


def _survivors(
    lists: NativeLists | TorchLists, score_rows: Sequence[int], group: _GroupSearch
) -> tuple[Tensor, Tensor]:
    """Returns all ranks' survivors of this rank's queries: global indices [mine, C] and scores [R, mine, C].

    R is the number of `score_rows`. The indices ascend and are padded with -1.
    """
    shard, mine, what = group.shard, group.mine, "cascade_topk, sending the survivors"
    device = lists.length.device
    lengths = exchange(shard, lists.length.int().split(group.owned), [mine] * shard.world, what)
    widest = int(lists.length.max()) if lists.length.numel() else 0
    inside = torch.arange(widest, device=device) < lists.length[:, None]
    columns = [lists.index[:, :widest][inside]]
    columns += [lists.scores[:, r, :widest][inside].view(torch.int32) for r in score_rows]
    entries = torch.stack(columns, dim=1)  # [survivors here, 1 + R] int32
    outgoing = entries.split([int(part.sum()) for part in lists.length.split(group.owned)])
    arriving = [int(n.sum()) * entries.shape[1] for n in lengths]
    parts = [part.view(-1, entries.shape[1]) for part in exchange(shard, outgoing, arriving, what)]
    found = torch.cat([p[:, 0].long() + begin for p, begin in zip(parts, shard.bounds())])
    query = torch.cat([torch.arange(mine, device=device).repeat_interleave(n.long()) for n in lengths])
    by_query = query.argsort(stable=True)  # ranks in order, and indices ascending in each
    number = torch.stack([n.long() for n in lengths]).sum(dim=0)  # [mine]
    place = torch.arange(query.shape[0], device=device) - (number.cumsum(0) - number)[query[by_query]]
    room = int(number.max()) if mine else 0
    index = torch.full((mine, room), -1, dtype=torch.int64, device=device)
    index[query[by_query], place] = found[by_query]
    table = torch.zeros(len(score_rows), mine, room, device=device)
    table[:, query[by_query], place] = torch.cat(parts)[by_query, 1:].contiguous().view(torch.float32).T
    return index, table
