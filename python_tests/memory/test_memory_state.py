"""Queue and bank: empty again, filled after to_empty, without ids, with names, with uneven ranks; what is refused."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from two_ranks import on_two_ranks

from cpr_kernels import MemoryBank, MultiViewQueue, cascade_topk, coclr_schedule, source_ids
from cpr_kernels.memory.ids import OWN_SOURCE


def queue_of(rows: int, size: int = 5) -> MultiViewQueue:
    queue = MultiViewQueue({"v": 2}, size)
    queue.enqueue({"v": torch.ones(rows, 2)}, torch.arange(rows), labels=torch.arange(rows))
    return queue


def bank_of(rows: int, size: int = 5) -> MemoryBank:
    bank = MemoryBank({"v": 2}, size)
    bank.update(torch.arange(rows), {"v": torch.ones(rows, 2)}, torch.arange(rows), labels=torch.arange(rows))
    return bank


@pytest.mark.parametrize(("made", "new"), [(queue_of, MultiViewQueue), (bank_of, MemoryBank)])
def test_len_and_is_full_and_reset(made, new) -> None:
    held = made(3)
    assert (len(held), held.is_full, bool(held)) == (3, False, True)
    full = made(5)
    assert (len(full), full.is_full) == (5, True)
    pointers = {name: buffer.data_ptr() for name, buffer in full.named_buffers()}
    full.reset()
    assert (len(full), full.is_full, bool(full)) == (0, False, True)
    for name, expected in new({"v": 2}, 5).state_dict().items():
        assert torch.equal(full.state_dict()[name], expected), name
    assert pointers == {name: buffer.data_ptr() for name, buffer in full.named_buffers()}


@pytest.mark.parametrize("new", [MultiViewQueue, MemoryBank])
def test_reset_parameters_fills_what_to_empty_made(new) -> None:
    held = new({"v": 2}, 5, device="meta").to_empty(device="cpu")
    for buffer in held.buffers():
        buffer.fill_(7)  # whatever the memory held
    held.reset_parameters()
    for name, expected in new({"v": 2}, 5).state_dict().items():
        assert torch.equal(held.state_dict()[name], expected), name


def test_rows_without_ids_are_sources_of_their_own() -> None:
    queue = MultiViewQueue({"v": 2}, 5)
    for _ in range(3):  # 12 rows: wraps twice
        queue.enqueue({"v": torch.ones(4, 2)})
    queue.enqueue({"v": torch.ones(2, 2)}, torch.tensor([8, 9]))
    assert queue.ids.tolist() == [OWN_SOURCE, OWN_SOURCE + 1, 8, 9, OWN_SOURCE + 4]
    queue.enqueue({"v": torch.ones(7, 2)})  # more than the queue holds
    assert sorted(queue.ids.tolist()) == [OWN_SOURCE + slot for slot in range(5)]
    mined, _ = cascade_topk(
        {"v": torch.ones(1, 2)},
        queue.views,
        coclr_schedule("v", 5),
        query_ids=queue.ids[2:3].clone(),
        key_ids=queue.ids,
    )
    assert mined.tolist() == [[0, 1, 3, 4, -1]]
    bank = MemoryBank({"v": 2}, 5)
    bank.update(torch.tensor([3, 1]), {"v": torch.ones(2, 2)})
    assert bank.ids.tolist() == [-1, OWN_SOURCE + 1, -1, OWN_SOURCE + 3, -1]


@pytest.mark.parametrize("which", ["queue", "bank"])
def test_a_negative_id_is_refused_and_nothing_is_written(which: str) -> None:
    held = queue_of(3) if which == "queue" else bank_of(3)
    before = {name: buffer.clone() for name, buffer in held.named_buffers()}
    ids, features = torch.tensor([4, -1]), {"v": torch.zeros(2, 2)}
    with pytest.raises(ValueError, match=r"ids\[1\] is -1; ids must be >= 0"):
        held.enqueue(features, ids) if which == "queue" else held.update(torch.arange(2), features, ids)
    for name, buffer in held.named_buffers():
        assert torch.equal(buffer, before[name]), name


@pytest.mark.slow
def test_compiled_code_refuses_a_negative_id() -> None:
    queue = queue_of(3)
    step = torch.compile(lambda v, ids: queue.enqueue({"v": v}, ids), fullgraph=True, backend="aot_eager")
    step(torch.zeros(2, 2), torch.tensor([4, 1]))
    with pytest.raises(RuntimeError, match="ids must be >= 0"):
        step(torch.zeros(2, 2), torch.tensor([4, -1]))


def test_names_have_ids_of_their_own_in_every_process() -> None:
    names = ["v_Archery_g01", "v_Archery_g02", "\u6f22\u5b57", "", "v_Archery_g01"]
    ids = source_ids(names)
    assert ids.dtype == torch.int64 and ids.min() >= 0 and ids.max() < OWN_SOURCE
    assert ids[0] == ids[4] and len(set(ids.tolist())) == 4
    program = "from cpr_kernels import source_ids; print(source_ids(['v_Archery_g02']).item())"
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(told.stdout) == ids[1]
    assert len(set(source_ids(f"clip {i}" for i in range(20_000)).tolist())) == 20_000
    for names, says in (("one", "must be several strings, got one"), ([3], r"names\[0\] must be a string")):
        with pytest.raises(ValueError, match=says):
            source_ids(names)


def uneven_queue(rank: int) -> dict:
    queue = MultiViewQueue({"v": 2, "w": 3}, size=6)
    for step, rows in enumerate(((3, 1), (0, 2), (0, 0), (1, 1))):
        numbers = torch.arange(rows[rank]) + 10 * step + 100 * rank
        features = {name: numbers[:, None].expand(-1, d).float() for name, d in (("v", 2), ("w", 3))}
        queue.enqueue(features, None if step == 3 and rank else numbers)
    return queue.state_dict()


def test_ranks_may_bring_different_numbers_of_rows(tmp_path) -> None:
    first, second = on_two_ranks(uneven_queue, tmp_path)
    # written in turn: 0 1 2 100 | 110 111 | - | 30 130, the last one without an id
    assert first["ids"].tolist() == [30, OWN_SOURCE + 1, 2, 100, 110, 111]
    assert first["view_v"][:, 0].tolist() == [30, 130, 2, 100, 110, 111]
    assert (int(first["pointer"]), int(first["count"])) == (2, 6)
    for name in first:
        assert torch.equal(first[name], second[name]), name


def uneven_bank(rank: int) -> dict:
    bank = MemoryBank({"v": 2}, 6)
    rows = torch.tensor([0, 1, 2] if rank == 0 else [2])
    bank.update(rows, {"v": torch.full((len(rows), 2), 1.0 + rank) * torch.tensor([1.0, rank])}, rows)
    return bank.state_dict()


def test_ranks_may_update_different_numbers_of_rows(tmp_path) -> None:
    first, second = on_two_ranks(uneven_bank, tmp_path)
    assert first["ids"].tolist() == [0, 1, 2, -1, -1, -1]
    assert first["view_v"][:2].tolist() == [[1.0, 0.0]] * 2
    torch.testing.assert_close(first["view_v"][2], torch.full((2,), 0.5**0.5))  # the last rank's counts
    for name in first:
        assert torch.equal(first[name], second[name]), name
