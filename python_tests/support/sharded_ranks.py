"""What each rank of test_sharded.py runs, in a process of its own: ``sharded_ranks.py FOLDER [RANK WORLD]``.

Without rank and world it is under torchrun. A check that fails is reported, not raised, so that the ranks stay in step.
"""

from __future__ import annotations

import datetime
import os
import sys
import time
import traceback
from pathlib import Path

import torch
import torch.distributed as dist
from cases import LOSS_CASES, TIED_CASES, few
from sharded_parts import (
    CASES,
    TWO,
    Counted,
    assert_part_of,
    batch_of,
    grow,
    loss_and_gradients,
    mines_alike,
    refused,
    same_as_one_process,
    shard_loss,
    uneven,
)

from cpr_kernels import (
    MultiViewQueue,
    ShardedMultiViewQueue,
    cascade_rerank,
    cascade_topk,
    cascade_trace,
    explain,
    mil_nce,
    reshard,
)
from cpr_kernels.dispatch.calls import CascadeCall
from cpr_kernels.dispatch.sharded_keys import Shard, ShardedKeys, why_not_group
from cpr_kernels.losses import reference as losses_reference
from cpr_kernels.losses import sharded as losses_sharded
from cpr_kernels.losses import torch_share
from cpr_kernels.mining import sharded as mining_sharded
from cpr_kernels.mining.sharded_lists import TorchLists


def check_integers_with_ties(rank: int, world: int, folder: Path) -> None:
    for turn, case in enumerate(CASES):
        same_as_one_process(case.call(), rank, world, turn, case.name)


def check_real_values(rank: int, world: int, folder: Path) -> None:
    g = torch.Generator().manual_seed(3)
    schedule = ([1.0, 0.0, 0.3, 1.7, 0.0, 1.0, 1.0, 0.0], [2500, 1200, 400, 5])
    for turn, dtype in enumerate((torch.float32, torch.bfloat16, torch.float16)):
        queries, keys = ([torch.randn(n, d, generator=g).to(dtype) for d in (96, 200)] for n in (9, 5003))
        ids = torch.randint(0, 99, (9,), generator=g), torch.randint(-1, 99, (5003,), generator=g)
        call = CascadeCall(queries, keys, *schedule, *ids, None)
        same_as_one_process(call, rank, world, turn, str(dtype))


def check_the_loss(rank: int, world: int, folder: Path) -> None:
    """Loss and gradients as exact as one process's native ones, and the same bits every time."""
    for turn, case in enumerate(LOSS_CASES):
        call = case.call()
        part, mine, here = shard_loss(call, rank, world, turn)
        leaves, weights = [part.query, part.positive, part.keys.rows], torch.linspace(0.5, 1, case.queries)
        runs = [
            loss_and_gradients(mil_nce(**part._asdict(), reduction="none"), weights[mine], leaves)
            for _ in range(2)
        ]
        assert all(torch.equal(a, b) for a, b in zip(*runs)), f"{case.name}: another result"
        expected = []
        for dtype, function in ((torch.float64, losses_reference.run), (None, torch.ops.cpr.mil_nce)):
            whole = [t.to(dtype or t.dtype).requires_grad_() for t in (call.query, call.positive, call.keys)]
            loss = function(*([call._replace(query=whole[0], positive=whole[1], keys=whole[2])] if dtype else
                              [*whole, *call[3:]]))  # fmt: skip
            expected.append(loss_and_gradients(loss, weights, whole))
        for name, got, exact, native_one, cut in zip(
            ("loss", "query", "positive", "keys"), runs[0], *expected, (mine, mine, mine, here)
        ):
            allowed = (
                4 * (native_one - exact).abs().max() + 2e-6 * exact.abs().max().clamp(min=1)
                if exact.numel()
                else 0
            )
            worst = (got - exact[cut]).abs().max() if got.numel() else 0
            assert worst <= allowed, f"{case.name}: {name} is off by {worst}, allowed {allowed}"
    for turn, case in enumerate(TIED_CASES):
        call = case.call()
        part, mine, _ = shard_loss(call, rank, world, turn)
        each = part._asdict() | {"reduction": "none"}  # a rank may have no query
        loss, stats = mil_nce(**each, return_stats=True)
        assert torch.equal(loss, mil_nce(**each)), f"{case.name}: statistics changed the loss"
        expected = losses_reference.sweep(call, False, True).stats[mine]
        assert torch.equal(torch.stack(stats, dim=1), expected), f"{case.name}: statistics"


def check_what_cuda_tensors_use(rank: int, world: int, folder: Path) -> None:
    """Lists and sums in plain torch, as for CUDA tensors, here on the CPU: the same protocol, the same results."""
    plain = mining_sharded.lists_for, losses_sharded._kernels
    mining_sharded.lists_for = lambda device: TorchLists
    losses_sharded._kernels = lambda device: torch_share
    torch_share.BLOCK_SCORES = 300  # several blocks
    assert "carries no CUDA tensors" in str(why_not_group(Shard((1,) * world, rank), "cuda"))  # it is gloo's
    try:
        for turn, case in enumerate(CASES):
            same_as_one_process(case.call(), rank, world, turn, case.name, 60_000 if turn % 2 else None)
        for turn, case in enumerate([*LOSS_CASES, *TIED_CASES]):
            call = case.call()
            part, mine, here = shard_loss(call, rank, world, turn)
            leaves, weights = (
                [part.query, part.positive, part.keys.rows],
                torch.linspace(0.5, 1, case.queries),
            )
            each = part._asdict() | {"reduction": "none"}
            loss, stats = mil_nce(**each, return_stats=True)
            got = loss_and_gradients(loss, weights[mine], leaves)
            whole = [t.double().requires_grad_() for t in (call.query, call.positive, call.keys)]
            exact_call = call._replace(query=whole[0], positive=whole[1], keys=whole[2])
            exact = loss_and_gradients(losses_reference.run(exact_call), weights, whole)
            rounding = {torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}[call.keys.dtype]
            logits = max(1.0, float(losses_reference.logits_of(call).abs().max())) if case.queries else 1.0
            for name, value, wanted, cut in zip(
                ("loss", "query", "positive", "keys"), got, exact, (mine, mine, mine, here)
            ):
                size = wanted.abs().max().clamp(min=1) if wanted.numel() else 0
                error = (value - wanted[cut]).abs()
                assert (error <= size * (rounding + 4e-7 * logits)).all(), (
                    f"{case.name}: {name} is off by {error.max()}"
                )
            if case in TIED_CASES:
                expected = losses_reference.sweep(call, False, True).stats[mine]
                assert torch.equal(torch.stack(stats, dim=1), expected), f"{case.name}: statistics"
    finally:
        mining_sharded.lists_for, losses_sharded._kernels = plain


def check_little_memory(rank: int, world: int, folder: Path) -> None:
    """Several sweeps of the keys, for a few queries each: nothing changes."""
    for turn, case in enumerate(CASES[-4:]):
        same_as_one_process(case.call(), rank, world, turn, case.name, working_bytes=60_000)


def check_bytes_sent(rank: int, world: int, folder: Path) -> None:
    """Counts what the calls of one step send, for test_sharded.py to hold against the model of bench/."""
    entries, batch, dims = 600 * world, 5, {"flow": 24, "rgb": 16}
    queue, g = ShardedMultiViewQueue(dims, entries), torch.Generator().manual_seed(5)

    def rows(n: int) -> dict[str, torch.Tensor]:
        return {
            v: torch.nn.functional.normalize(torch.randn(n, d, generator=g), dim=1) for v, d in dims.items()
        }

    filling = [(rows(600), torch.arange(600 * r, 600 * r + 600)) for r in range(world)]
    queue.enqueue(*filling[rank])
    queries = [rows(batch) for _ in range(world)]
    mine, ids, counted = queries[rank], torch.arange(10_000, 10_000 + batch), {}
    schedules = {
        "own best": few(entries, entries // 2, 260, 30),
        "survivors": few(entries, entries // 2, 300, 200, 9),
    }
    for name, schedule in schedules.items():
        with Counted() as counted[name]:
            picks, _ = cascade_topk(mine, queue.views, schedule, query_ids=ids, key_ids=queue.ids)
    trace = cascade_trace(mine, queue.views, schedules["survivors"], query_ids=ids, key_ids=queue.ids)
    sent_here = trace[2].indices  # [B, 200] survivors of the stage after which they are sent
    here = (sent_here >= queue.shard.offset) & (sent_here < queue.shard.offset + queue.shard.local)
    query, key = mine["flow"].clone().requires_grad_(), mine["flow"]
    view = queue.views["flow"]
    masks = {"query_ids": ids, "key_ids": queue.ids}
    with Counted() as counted["loss"]:
        mil_nce(query, key, view, picks, **masks).backward()
    with Counted() as counted["loss, keys too"]:
        leaf = ShardedKeys(view.rows.clone().requires_grad_(), queue.shard)
        mil_nce(query, key, leaf, picks, **masks).backward()
    with Counted() as counted["enqueue"]:
        queue.enqueue(mine, ids)
    traffic = {name: (count.bytes, count.exchanges) for name, count in counted.items()}
    torch.save({"sent": traffic, "survivors elsewhere": int((~here).sum())}, folder / f"bytes{rank}.pt")


def check_the_queue_is_one_queue(rank: int, world: int, folder: Path) -> None:
    for sizes in (None, uneven(101, world)):
        queue, whole = ShardedMultiViewQueue(TWO, 101, sizes=sizes), MultiViewQueue(TWO, 101)
        grow(queue, whole, range(3))
        mines_alike(queue, whole)
        grow(queue, whole, range(3, 8))
        mines_alike(queue, whole)


def check_other_world_sizes(rank: int, world: int, folder: Path) -> None:
    """Loads the states of all ranks in a group of one rank less, in another layout, and in a whole queue."""
    queue, whole = ShardedMultiViewQueue(TWO, 50, sizes=uneven(50, world)), MultiViewQueue(TWO, 50)
    grow(queue, whole, range(5))
    torch.save(queue.state_dict(), folder / f"state{rank}.pt")
    dist.barrier()
    states = [torch.load(folder / f"state{r}.pt", mmap=True) for r in range(world)]
    fewer = dist.new_group(list(range(world - 1)))
    if rank < world - 1:
        smaller = ShardedMultiViewQueue(TWO, 50, group=fewer)
        try:
            smaller.load_state_dict(states[rank])
            raise AssertionError("a state of another world size was loaded")
        except ValueError as error:
            assert f"rank {rank}'s of {world}" in str(error) and "reshard(states, sizes, rank)" in str(error)
        smaller.load_state_dict(reshard(states[::-1], smaller.shard.sizes, rank))
        assert_part_of(smaller, whole)
        if world > 2:
            whole_too = MultiViewQueue(TWO, 50)
            whole_too.load_state_dict(whole.state_dict())
            grow(smaller, whole_too, range(5, 8))
            mines_alike(smaller, whole_too)
    else:
        refused(
            lambda: ShardedMultiViewQueue(TWO, 50, group=fewer),
            ValueError,
            "this process is not in the group",
        )
    resumed, again = ShardedMultiViewQueue(TWO, 50), MultiViewQueue(TWO, 50)
    resumed.load_state_dict(reshard(states, resumed.shard.sizes, rank))
    again.load_state_dict(reshard(states, None))
    grow(resumed, whole, range(5, 8))
    assert_part_of(resumed, whole)
    again.load_state_dict(whole.state_dict())
    resumed.load_state_dict(reshard([again.state_dict()], resumed.shard.sizes, rank))
    assert_part_of(resumed, whole)


def check_disagreement_is_an_error_on_all_ranks(rank: int, world: int, folder: Path) -> None:
    queue, schedule = ShardedMultiViewQueue(TWO, 40), few(40, 20, 10, 5)
    features, ids, _ = batch_of(0, rank, 2)

    def mine(features=features, schedule=schedule, **more):
        return cascade_topk(features, queue.views, schedule, key_ids=queue.ids, **more)

    wrong = {v: f[:, 1:] for v, f in features.items()} if rank == 1 else features
    if rank == 1:
        refused(lambda: mine(wrong), ValueError, "queries[0] has D=7, but keys[0] has D=8")
    else:
        refused(lambda: mine(wrong), RuntimeError, "rank 1 refused its arguments")
    mine()  # the group is as good as before
    other = few(40, 20, 10, 4) if rank == 1 else schedule
    refused(lambda: mine(schedule=other), RuntimeError, "the schedule of rank")
    asks = ids if rank == 0 else None
    other_memory = ShardedMultiViewQueue(TWO, 40, working_bytes=1000 + rank).views
    refused(
        lambda: cascade_topk(features, other_memory, schedule), RuntimeError, "or its working_bytes, of rank"
    )
    refused(lambda: mine(query_ids=asks), RuntimeError, "the choice of ids, exclude and key_bias of rank")
    if rank == 0:
        refused(lambda: queue.enqueue(features, ids), RuntimeError, "rank 1 called cascade_topk")
    else:
        refused(mine, RuntimeError, "rank 0 called enqueue while")
    half = {"flow": queue.views["flow"], "rgb": queue.views["rgb"].rows}
    refused(lambda: cascade_topk(features, half, schedule), ValueError, "must all be of one sharded queue")
    rerank = torch.zeros(2, 3).long()
    refused(
        lambda: cascade_rerank(features, queue.views, schedule, rerank), ValueError, "share of a queue over"
    )
    keys = queue.views["rgb"]
    far = torch.tensor([[0], [40 if rank == 1 else 39]])
    said = (
        (ValueError, "positives[1, 0] = 40 is out of range")
        if rank == 1
        else (RuntimeError, "rank 1 refused")
    )
    refused(lambda: mil_nce(features["rgb"], features["rgb"], keys, far), *said)
    warm = 0.1 if rank == 1 else 0.07
    refused(
        lambda: mil_nce(features["rgb"], features["rgb"], keys, temperature=warm),
        RuntimeError,
        "the temperature,",
    )
    wide = features["rgb"].double()
    refused(
        lambda: mil_nce(wide, wide, keys), ValueError, "query is torch.float64, but keys is torch.float32"
    )
    refused(lambda: mine(backend="native"), ValueError, f"rank {rank}'s share of a queue over {world} ranks")
    if rank == 1:
        queue.pointer += 1
    refused(lambda: queue.enqueue(features, ids), RuntimeError, "the pointer of rank")


def check_explain(rank: int, world: int, folder: Path) -> None:
    queue = ShardedMultiViewQueue(TWO, 40)
    features, _, _ = batch_of(0, rank, 2)
    table = dict(explain(cascade_topk, features, queue.views, few(40, 20, 5)))
    assert table["sharded"] is None
    assert all(f"share of a queue over {world} ranks" in table[name] for name in ("native", "reference"))
    table = dict(explain(cascade_topk, features, MultiViewQueue(TWO, 40).views, few(40, 20, 5)))
    assert table["native"] is None and "not sharded" in table["sharded"]


def check_a_queue_made_before_its_group(rank: int, world: int, folder: Path) -> None:
    """It would silently be a whole queue of each rank's own; in a group of one rank that is correct."""
    features, ids, _ = batch_of(0, rank, 2)
    early = ShardedMultiViewQueue(TWO, 40)
    early.shard = Shard((40,), 0)
    keys = {view: ShardedKeys(torch.zeros(40, dim), early.shard) for view, dim in TWO.items()}
    words = f"made for this process only, and the group has {world} ranks; make it after init_process_group"
    refused(lambda: cascade_topk(features, keys, few(40, 20, 5)), ValueError, words)
    refused(lambda: mil_nce(features["rgb"], features["rgb"], keys["rgb"]), ValueError, words)
    refused(lambda: early.enqueue(features, ids), RuntimeError, words)
    groups = [dist.new_group([r]) for r in range(world)]
    own = ShardedMultiViewQueue(TWO, 40, group=groups[rank])
    own.enqueue(features, ids)
    found, _ = cascade_topk(features, own.views, few(40, 20, 5), key_ids=own.ids)
    assert int(own.count) == 2 and set(found.flatten().tolist()) == {-1, 0, 1}


def check_a_lost_rank(rank: int, world: int, folder: Path) -> None:
    """The last rank ends, or of four ranks never comes: the others say so, within the timeout."""
    doomed = dist.new_group(timeout=datetime.timedelta(seconds=10))
    queue = ShardedMultiViewQueue(TWO, 40, group=doomed)
    features, _, _ = batch_of(0, rank, 2)
    cascade_topk(features, queue.views, few(40, 20, 5), key_ids=queue.ids)
    others = [folder / f"gave_up{r}" for r in range(world - 1)]
    started = time.monotonic()
    if rank == world - 1:
        while world == 4 and time.monotonic() - started < 100 and not all(other.exists() for other in others):
            time.sleep(0.1)
        return
    words = (f"rank {rank} of {world} lost the group", "within the group's timeout")
    refused(lambda: cascade_topk(features, queue.views, few(40, 20, 5)), RuntimeError, *words)
    assert time.monotonic() - started < 90
    others[rank].touch()


CHECKS = [check for name, check in list(globals().items()) if name.startswith("check_")]


def main(folder: Path, rank: int, world: int, init: str) -> None:
    """Run every check in order and leave a report."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=init, rank=rank, world_size=world)
    report = {}
    for check in CHECKS:
        started = time.monotonic()
        try:
            check(rank, world, folder)
            report[check.__name__] = None
        except Exception:
            report[check.__name__] = traceback.format_exc()
        print(f"rank {rank}: {check.__name__} {time.monotonic() - started:.1f} s", flush=True)
    torch.save(report, folder / f"report{rank}.pt")
    os._exit(0)  # the group is lost by now: there is nothing to take leave of


if __name__ == "__main__":
    if len(sys.argv) > 2:
        place = Path(sys.argv[1])
        main(place, int(sys.argv[2]), int(sys.argv[3]), f"file://{place}/store")
    else:
        main(Path(sys.argv[1]), int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), "env://")
