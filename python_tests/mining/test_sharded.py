"""A queue in shares against one process with the whole queue: 2 ranks under torchrun, 3 and 4 by hand, over gloo."""

from __future__ import annotations

import functools
import importlib
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import sharded_ranks
import torch
import torch.distributed as dist
from cases import LARGE_CASES, LOSS_CASES, CascadeCase, LossCase, few, name_of
from forked import Program
from places import ROOT, SUPPORT
from sharded_parts import CASES, TWO, batch_of, same_as_one_process, shard_loss

import cpr_kernels
from cpr_kernels import MultiViewQueue, ShardedMultiViewQueue, cascade_topk, mil_nce, reshard
from cpr_kernels.dispatch.sharded_keys import Shard, ShardedKeys, why_not_group
from cpr_kernels.losses import torch_share
from cpr_kernels.mining import sharded
from cpr_kernels.mining.sharded_lists import TorchLists

CHECKS = [check.__name__ for check in sharded_ranks.CHECKS]


def printed_by(world: int, folder: str) -> list[str]:
    """Runs the processes of a group to their end: torchrun's for two ranks."""
    root = str(Path(cpr_kernels.__file__).resolve().parents[1])
    paths = os.pathsep.join([root, str(SUPPORT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    script = str(SUPPORT / "sharded_ranks.py")
    if world == 2:
        runner = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script, folder]
        commands = [runner]
    else:
        commands = [[script, folder, str(rank), str(world)] for rank in range(world)]
    programs = [Program(command, env=environment) for command in commands]
    try:
        for program in programs:
            program.wait(timeout=240)
    finally:
        for program in programs:  # a rank that waits for others would stay
            program.kill()
    return ["\n".join(program.output()) for program in programs]


class Run(NamedTuple):
    """What the ranks of a group left behind."""

    reports: list[
        dict[str, str | None]
    ]  # of each rank: what went wrong in each check, None where nothing did
    traffic: list[dict[str, Any]]  # of each rank: bytes and exchanges of each call of a step


@functools.cache
def run(world: int) -> Run:
    """One run a world size, for all tests."""
    with tempfile.TemporaryDirectory() as folder:
        printed = printed_by(world, folder)
        print(*printed, sep="\n")
        files = [Path(folder, f"report{rank}.pt") for rank in range(world)]
        assert all(file.exists() for file in files), "\n".join(printed)
        traffic = [Path(folder, f"bytes{rank}.pt") for rank in range(world)]
        return Run(
            [torch.load(file) for file in files], [torch.load(file) for file in traffic if file.exists()]
        )


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("world", [2, 3, 4])
def test_ranks(world: int, check: str) -> None:
    failures = [f"rank {r}: {report[check]}" for r, report in enumerate(run(world).reports) if report[check]]
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize(
    ("carried", "device", "reason"),
    [
        ("cuda:nccl", "cuda", None),
        ("cuda:nccl", "cpu", "carries no CPU tensors"),
        ("cpu:gloo,cuda:nccl", "cuda", None),
        ("cpu:gloo,cuda:gloo", "cuda", "carries no CUDA tensors"),
        ("cpu:gloo,cuda:gloo", None, None),
    ],
)
def test_a_group_carries_the_tensors_of_its_backends(
    monkeypatch: pytest.MonkeyPatch, carried: str, device: str | None, reason: str | None
) -> None:
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda group: 2)
    monkeypatch.setattr(dist, "get_backend_config", lambda group: carried)
    found = why_not_group(Shard((3, 2), 0), device)
    assert found is None if reason is None else reason in str(found)


def test_nothing_of_tensors_elsewhere_is_made_on_the_cpu() -> None:
    """With tensors that have a device and no data: a mix of devices is an error."""
    elsewhere = torch.device("meta")
    lists = TorchLists(2, 1, 9)
    lists.index = torch.empty(2, 9, dtype=torch.int32, device=elsewhere)
    lists.scores = torch.empty(2, 1, 9, device=elsewhere)
    lists.length = torch.empty(2, dtype=torch.int64, device=elsewhere)
    counts = lists.count(0, torch.zeros_like(lists.length), 26, 0)
    search = sharded._DigitSearch(2, 3, elsewhere)
    digit = search.next_digit(counts[None])
    call = LossCase("ids", 4, 30, 8, ids=5).call("meta")
    shares = torch_share.share(call, True, torch.empty(4, device=elsewhere))
    found = [counts, digit, search.ties(counts[None], digit), *shares]
    assert {tensor.device for tensor in found} == {elsewhere}
    with pytest.raises(RuntimeError, match="not on the expected device"):
        torch.empty(2, device=elsewhere) + torch.zeros(2)


def bench(name: str) -> Any:
    """A file of bench/, which is not installed."""
    sys.path.insert(0, str(ROOT))
    try:
        return importlib.import_module(f"bench.{name}")
    finally:
        sys.path.remove(str(ROOT))


@pytest.mark.parametrize("world", [2, 4])
def test_the_model_counts_the_bytes_that_are_sent(world: int) -> None:
    model = bench("sharded.model")
    queue = model.Queue(600 * world, world, 5, (24, 16))
    own_best, survivors = (
        few(queue.entries, queue.entries // 2, 260, 30),
        few(queue.entries, queue.entries // 2, 300, 200, 9),
    )
    ranks = run(world).traffic
    assert len(ranks) == world

    def compare(name: str, messages: list[Any], bytes_more: float = 0) -> None:
        """Mean over the ranks; bytes and exchanges."""
        sent = [rank["sent"][name] for rank in ranks]
        assert sum(n for n, _ in sent) / world == sum(m.bytes for m in messages) + bytes_more, name
        assert {n for _, n in sent} == {sum(m.exchanges for m in messages)}, name

    compare("own best", model.cascade_messages(queue, own_best))
    # how the survivors are spread over the ranks is the data's; the model takes them to be spread evenly
    elsewhere = sum(rank["survivors elsewhere"] for rank in ranks) / world
    expected = model.cascade_messages(queue, survivors)
    spread = queue.others * 200 / world
    entry = 4 * (1 + model.stage_costs(survivors).judges)
    compare("survivors", expected, (elsewhere - spread) * entry)
    compare("loss", model.loss_messages(queue, 9))
    compare("loss, keys too", model.loss_messages(queue, 9, of_keys=True))
    compare("enqueue", model.enqueue_messages(queue))


def test_the_model_says_that_it_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("sharded.model_tables").main([]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("A MODEL ON PAPER, not a measurement")
    assert all(f"| {ranks} x 1e9" in printed for ranks in (8, 64, 512))


def test_a_measured_run(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--measure", "--ranks", "2", "--entries", "1500", "--batch", "3"]
    assert bench("sharded.model_tables").main(arguments) == 0
    assert "| 2     |   1,500 |              6 |" in capsys.readouterr().out


ONE_RANK = [
    case for case in LARGE_CASES if case.name in ("one off a block", "two-valued, long", "infinities, long")
]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("case", [*CASES[:-4], *ONE_RANK], ids=name_of)
def test_one_rank_needs_no_group(case: CascadeCase, threads: int, isa: str) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        same_as_one_process(case.call(), 0, 1, 0, case.name)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("case", LOSS_CASES, ids=name_of)
def test_the_loss_of_one_rank(case: LossCase, isa: str) -> None:
    part, _, _ = shard_loss(case.call(), 0, 1, 0)
    got = mil_nce(**part._asdict(), reduction="none")
    expected = torch.ops.cpr.mil_nce(*part._replace(keys=part.keys.rows))
    torch.testing.assert_close(got, expected, rtol=2e-5, atol=2e-5 / case.temperature * case.scale)


def state(sizes: list[int], rank: int) -> dict[str, torch.Tensor]:
    """A rank's part of a filled queue, made by `reshard`."""
    whole = MultiViewQueue(TWO, sum(sizes))
    whole.enqueue(*batch_of(0, 0, sum(sizes)))
    return reshard([whole.state_dict()], sizes, rank)


REFUSALS = [
    (lambda: ShardedMultiViewQueue(TWO, 9, sizes=[4, 5]), "one count >= 0 for each of 1 ranks, 9 together, got [4, 5]"),
    (lambda: ShardedMultiViewQueue(TWO, 9, sizes=[8]), "9 together, got [8]"),
    (lambda: ShardedMultiViewQueue(TWO, 9, working_bytes=0), "working_bytes must be a whole number >= 1, got 0"),
    (lambda: ShardedMultiViewQueue({}, 9), "ShardedMultiViewQueue: views is empty"),
    (lambda: ShardedMultiViewQueue(TWO, 9).load_state_dict(state([4, 5], 1)), "the state is rank 1's of 2 (entries [4, 5])"),
    (lambda: ShardedMultiViewQueue(TWO, 9).load_state_dict(MultiViewQueue(TWO, 9).state_dict()), "the state of a whole queue; cut it up with reshard([state], [9], rank=0)"),
    (lambda: MultiViewQueue(TWO, 9).load_state_dict(state([4, 5], 1)), "this is the state of rank 1 of a ShardedMultiViewQueue; join the states of all ranks with reshard(states, None)"),
    (lambda: ShardedMultiViewQueue(TWO, 9, working_bytes=1.5), "working_bytes must be a whole number >= 1, got 1.5"),
    (lambda: reshard([], [9]), "states is empty"),
    (lambda: reshard(state([9], 0), [9]), "states must be a list, the state of every old rank; got one state: [state]"),
    (lambda: reshard([state([9], 0)], 9), "sizes must hold the entries of each new rank, or be None, got 9"),
    (lambda: reshard([{f"queue.{name}": t for name, t in state([9], 0).items()}], [9]), "a state lacks 'ids'; give what a queue's own state_dict() holds"),
    (lambda: reshard([state([4, 5], 1)], [9]), "the queue had 2 ranks, and the states are of ranks [1]"),
    (lambda: reshard([state([4, 5], 0), state([3, 6], 1)], [9]), "of different queues or moments"),
    (lambda: reshard([state([9], 0)], [4, 4]), "sizes must add up to the queue's 9 entries, got [4, 4]"),
    (lambda: reshard([state([9], 0)], [4, 5], 2), "rank must be 0 to 1, got 2"),
    (lambda: reshard([MultiViewQueue(TWO, 9).state_dict(), state([9], 0)], [9]), "states must be those of a Sharded"),
    (lambda: ShardedMultiViewQueue(TWO, 9).enqueue({"flow": torch.ones(2, 8)}, torch.arange(2)), "must hold the views"),
    (lambda: ShardedMultiViewQueue(TWO, 9).enqueue(batch_of(0, 0, 2)[0], [0, 1]), "enqueue: ids must be an int64 tensor [2], got list"),
    (lambda: ShardedMultiViewQueue(TWO, 9).labels_at([[1]]), "labels_at: indices must be int64, -1 or below N=9"),
    (lambda: ShardedMultiViewQueue(TWO, 9).labels_at(torch.tensor([9])), "labels_at: indices must be int64, -1 or below N=9"),
    (lambda: ShardedKeys(torch.zeros(3, 2), Shard((2, 3), 0)), "rows must have shape [2, D] on rank 0, got [3, 2]"),
    (lambda: mined(key_ids=torch.zeros(8).long()), "key_ids must have shape [9] (one id per entry that this rank holds), got [8]"),
    (lambda: mined(exclude=torch.zeros(2, 8).bool()), "exclude must be bool of shape [2, 9]"),
    (lambda: mined(key_ids=[0] * 9), "key_ids must be an int64 tensor [9], got list"),
    (lambda: mined(query_ids=torch.zeros(2).long()), "query_ids is given without key_ids"),
    (lambda: mined(shard=Shard((4, 9), 1)), "the queue is shared by 2 ranks, and no process group is up"),
    (lambda: mined(backend="faiss"), "rank 0's share of a queue over 1 ranks"),
    (lambda: cascade_topk(batch_of(0, 0, 2)[0], MultiViewQueue(TWO, 9).views, few(9, 5), backend="sharded"), "the keys are not sharded"),
    (lambda: mil_nce(torch.ones(2, 3), torch.ones(2, 3), torch.ones(4, 3), backend="sharded"), "the keys are not sharded"),
]  # fmt: skip


def mined(shard: Shard | None = None, **more: Any) -> Any:
    """A good call on 9 entries with some arguments replaced."""
    shard = shard or Shard((9,), 0)
    keys = {v: ShardedKeys(torch.zeros(9, d), shard) for v, d in TWO.items()}
    return cascade_topk(batch_of(0, 0, 2)[0], keys, few(9, 5, 3), **more)


@pytest.mark.parametrize(("call", "sentence"), REFUSALS, ids=[sentence[:40] for _, sentence in REFUSALS])
def test_refusals(call: Any, sentence: str) -> None:
    with pytest.raises(ValueError) as caught:
        call()
    assert sentence in str(caught.value)


def test_compiled_code_calls_it_as_it_is() -> None:
    """Traced, the buffers whose addresses the core is given would not be those that the graph uses afterwards."""
    queue = ShardedMultiViewQueue(TWO, 90)
    features, ids, labels = batch_of(0, 0, 60)

    def step(queries: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        queue.enqueue(features, ids, labels)
        found, scores = cascade_topk(queries, queue.views, few(90, 40, 5), key_ids=queue.ids)
        loss = mil_nce(queries["flow"], queries["flow"], queue.views["flow"], found, key_ids=queue.ids)
        return found, scores, loss, queue.labels_at(found), queue.pointer.clone()

    before, queries = {name: t.clone() for name, t in queue.state_dict().items()}, batch_of(1, 0, 3)[0]
    expected = step(queries)
    queue.load_state_dict(before)
    torch.compiler.reset()
    got = torch.compile(step, backend="eager")(queries)
    assert int(got[-1]) == 60 and all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    torch.compiler.reset()
    with pytest.raises(Exception, match="marked as skipped"):
        torch.compile(step, backend="eager", fullgraph=True)(queries)
