"""What the checks of sharded_ranks.py are made of: shares of calls, queues beside a whole one, counted messages."""

from __future__ import annotations

import torch
import torch.distributed as dist
from cases import SMALL_CASES, CascadeCase, few

from cpr_kernels import MILNCELoss, MultiViewQueue, ShardedMultiViewQueue, cascade_topk, cpr_schedule
from cpr_kernels.dispatch.calls import CascadeCall, LossCall
from cpr_kernels.dispatch.sharded_keys import Shard, ShardedKeys
from cpr_kernels.mining import native, sharded

TWO = {"flow": 8, "rgb": 5}
CASES = [
    *SMALL_CASES,
    CascadeCase("all rounds", 13, 3001, TWO, few(3001, 1500, 700, 300, 20), ids=True, empty_slots=True),
    CascadeCase("long last stage", 5, 1500, TWO, few(1500, 1400, 900, 800)),
    CascadeCase("few values", 7, 900, TWO, few(900, 700, 400, 300, 9), high=1, exclude=0.3),
    CascadeCase("paper", 6, 2048, {"flow": 128, "rgb": 128}, cpr_schedule(num_keys=2048)),
]


def uneven(total: int, world: int, turn: int = 0) -> list[int]:
    """A total cut into very different shares, one of them empty where there are three or more."""
    weights = {1: [1], 2: [1, 3]}.get(world, list(range(world)))
    weights = [weights[(i + turn) % world] for i in range(world)]
    shares = [total * w // sum(weights) for w in weights]
    shares[shares.index(max(shares))] += total - sum(shares)
    return shares


def share(total: int, world: int, rank: int, turn: int = 0) -> tuple[slice, list[int]]:
    """This rank's part of an uneven cut, and the cut."""
    sizes = uneven(total, world, turn)
    return slice(sum(sizes[:rank]), sum(sizes[: rank + 1])), sizes


def shard_call(
    call: CascadeCall, rank: int, world: int, turn: int, working_bytes: int | None = None
) -> tuple[CascadeCall, slice]:
    """A rank's part of a call of one process: some of the queries, a share of the keys."""
    here, sizes = share(call.keys[0].shape[0], world, rank, turn)
    mine, _ = share(call.queries[0].shape[0], world, rank, turn + 1)
    shard = Shard(tuple(sizes), rank, None, working_bytes)
    part = call._replace(
        queries=[q[mine] for q in call.queries],
        keys=[ShardedKeys(k[here], shard) for k in call.keys],
        query_ids=None if call.query_ids is None else call.query_ids[mine],
        key_ids=None if call.key_ids is None else call.key_ids[here],
        exclude=None if call.exclude is None else call.exclude[mine],
        key_bias=None if call.key_bias is None else call.key_bias[here],
    )
    return part, mine


def same_as_one_process(
    call: CascadeCall, rank: int, world: int, turn: int, name: str, working_bytes: int | None = None
) -> None:
    part, mine = shard_call(call, rank, world, turn, working_bytes)
    sharded.check(part)
    assert sharded.why_not(part) is None
    got, expected = sharded.run(part), native.run(call)
    assert torch.equal(got[0], expected[0][mine]), f"{name}: indices"
    assert torch.equal(got[1], expected[1][mine]), f"{name}: scores"


def shard_loss(call: LossCall, rank: int, world: int, turn: int) -> tuple[LossCall, slice, slice]:
    """A rank's part of a loss call of one process, the tensors as leaves: some queries, a share of the keys."""
    here, sizes = share(call.keys.shape[0], world, rank, turn)
    mine, _ = share(call.query.shape[0], world, rank, turn + 1)
    query, positive, rows = (
        t.clone().requires_grad_() for t in (call.query[mine], call.positive[mine], call.keys[here])
    )
    part = call._replace(
        query=query,
        positive=positive,
        keys=ShardedKeys(rows, Shard(tuple(sizes), rank)),
        positives=call.positives[mine],
        query_ids=None if call.query_ids is None else call.query_ids[mine],
        key_ids=None if call.key_ids is None else call.key_ids[here],
        use_own=None if call.use_own is None else call.use_own[mine],
    )
    return part, mine, here


def loss_and_gradients(loss: torch.Tensor, weights: torch.Tensor, leaves: list) -> list[torch.Tensor]:
    """`loss` and the gradients of its weighted sum; zeros where a leaf has no part in it."""
    found = torch.autograd.grad((loss * weights).sum(), leaves, allow_unused=True)
    return [loss.detach(), *(torch.zeros_like(x) if g is None else g for x, g in zip(leaves, found))]


class Counted:
    """What this rank sends to others by `all_to_all_single` while it is entered."""

    def __enter__(self) -> Counted:
        self.bytes, self.exchanges, self._send = 0, 0, dist.all_to_all_single

        def counting(received, sent, arriving, leaving, group=None):
            rank = dist.get_rank(group)
            self.bytes += sum(n for r, n in enumerate(leaving) if r != rank) * sent.element_size()
            self.exchanges += 1
            return self._send(received, sent, arriving, leaving, group=group)

        dist.all_to_all_single = counting
        return self

    def __exit__(self, *_: object) -> None:
        dist.all_to_all_single = self._send


def batch_of(step: int, rank: int, rows: int) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    """Returns a rank's batch at a step, which any process can make."""
    g = torch.Generator().manual_seed(1000 * step + rank)
    features = {
        v: torch.nn.functional.normalize(torch.randn(rows, d, generator=g), dim=1) for v, d in TWO.items()
    }
    return features, torch.randint(0, 60, (rows,), generator=g), torch.randint(0, 5, (rows,), generator=g)


def write_all(whole: MultiViewQueue, batches: list[tuple]) -> None:
    """All ranks' batches into a whole queue, as one process would."""
    features = [torch.cat([b[0][v] for b in batches]) for v in TWO]
    rows = [*features, torch.cat([b[1] for b in batches]), torch.cat([b[2] for b in batches])]
    columns = [*whole.views.values(), whole.ids, whole.labels]
    torch.ops.cpr.enqueue_(columns, whole.pointer, whole.count, rows)


def assert_part_of(queue: ShardedMultiViewQueue, whole: MultiViewQueue) -> None:
    here = slice(queue.shard.offset, queue.shard.offset + queue.shard.local)
    for view, keys in queue.views.items():
        assert torch.equal(keys.rows, whole.views[view][here])
    assert torch.equal(queue.ids, whole.ids[here]) and torch.equal(queue.labels, whole.labels[here])
    assert queue.pointer == whole.pointer and queue.count == whole.count


def grow(queue: ShardedMultiViewQueue, whole: MultiViewQueue, steps: range) -> None:
    """Enqueue in both, ranks bringing different numbers of rows, at times none and at times more than fit."""
    shard = queue.shard
    for step in steps:
        counts = [(7 * step + 5 * r) % 23 * (4 if step % 3 == 2 else 1) for r in range(shard.world)]
        batches = [batch_of(step, r, n) for r, n in enumerate(counts)]
        queue.enqueue(*batches[shard.rank])
        write_all(whole, batches)
        assert_part_of(queue, whole)


def mines_alike(queue: ShardedMultiViewQueue, whole: MultiViewQueue) -> None:
    features, ids, _ = batch_of(99, queue.shard.rank, 3)
    schedule = few(101, 70, 30, 5)
    picks, scores = cascade_topk(features, queue.views, schedule, query_ids=ids, key_ids=queue.ids)
    expected = cascade_topk(features, whole.views, schedule, query_ids=ids, key_ids=whole.ids)
    assert torch.equal(picks, expected[0]) and torch.equal(scores, expected[1])
    labels = torch.where(picks >= 0, whole.labels[picks], -1)
    assert torch.equal(queue.labels_at(picks), labels)
    criterion = MILNCELoss()
    q, k = (torch.nn.functional.normalize(f, dim=1) for f in (features["rgb"], features["rgb"] + 0.2))
    got = criterion(q, k, queue.views["rgb"], picks, query_ids=ids, key_ids=queue.ids)
    torch.testing.assert_close(
        got, criterion(q, k, whole.views["rgb"], picks, query_ids=ids, key_ids=whole.ids)
    )


def refused(call, kind: type, *words: str) -> None:
    """The call raises `kind`, with all the words."""
    try:
        call()
    except kind as error:
        missing = [word for word in words if word not in str(error)]
        assert not missing, f"{missing} not in: {error}"
        return
    raise AssertionError(f"nothing was raised; expected {words}")
