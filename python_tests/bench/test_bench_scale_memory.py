"""A scale run knows what it will take before it takes it, and its queue is made in place, any part of it alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from bench_tools import ROOT
from fresh_process import peak_kib

from bench import cli
from bench.scale import data as scale_data
from bench.scale import memory as scale_memory
from bench.scale.data import BLOCK, Replicas, drawn
from bench.scale.memory import Memory, available_bytes, index_bytes

DIM = 64


def test_any_part_of_a_queue_is_made_alone_and_is_the_same() -> None:
    replicas = Replicas(drawn(), 2 * BLOCK + 777)
    bank = replicas.bank()
    assert torch.equal(bank.keys["flow"][:3000], torch.nn.functional.normalize(drawn().views["flow"], dim=1))
    for first, last in [(0, 1), (2_990, 3_010), (BLOCK - 3, BLOCK + 3), (100, 2 * BLOCK + 777), (5, 5)]:
        part = replicas.rows(first, last)
        for view, rows in part.views.items():
            assert torch.equal(rows, bank.keys[view][first:last])
        assert torch.equal(part.ids, bank.key_ids[first:last])
        assert torch.equal(part.labels, bank.key_labels[first:last])
    copies = bank.key_ids[3000:]
    assert not torch.isin(copies, bank.query_ids).any()  # the queries' own videos are not copied
    source = drawn().views["rgb"][copies]
    likeness = (source * bank.keys["rgb"][3000:]).sum(dim=1)
    assert 0.8 < float(likeness.mean()) < 0.95 and float(bank.keys["rgb"].norm(dim=1).std()) < 1e-6


def test_long_queues_are_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale_data, "HALF_FROM", 4_000)
    short, long = Replicas(drawn(), 3_999), Replicas(drawn(), 4_000)
    assert short.dtype == torch.float32 and long.bank().keys["flow"].dtype == torch.float16
    assert long.queries().views["flow"].dtype == torch.float16
    assert torch.equal(long.bank().keys["flow"][:3_999], short.bank().keys["flow"].half())


def test_a_queue_is_made_in_place() -> None:
    """At its peak the queue and a block of rows, as estimated; copies of the queue would be seen."""
    replicas = Replicas(drawn(), 8 * BLOCK)
    estimate = scale_memory.queue_bytes(replicas) + scale_memory.block_bytes(replicas)
    inputs = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from bench.scale.data import Replicas, drawn\n"
        f"made = Replicas(drawn(), {replicas.size}); made.rows(0, 10)"
    )
    peak = 1024 * peak_kib(inputs, "kept = made.bank()")
    assert scale_memory.queue_bytes(replicas) < peak < 1.1 * estimate


@pytest.mark.parametrize(
    ("factory", "entries"),
    [("Flat", 262_244), ("IVF256,Flat", 100_000), ("IVF64,PQ16", 12_000), ("HNSW8", 20_000)],
)
def test_an_index_takes_what_was_estimated(factory: str, entries: int) -> None:
    pytest.importorskip("faiss", reason="FAISS: pip install 'cpr_kernels[faiss]'")
    inputs = (
        "import faiss; torch.set_num_threads(1); g = torch.Generator().manual_seed(0)\n"
        f"keys = {{v: torch.randn({entries}, {DIM}, generator=g) for v in ('flow', 'rgb')}}\n"
        f"ids = torch.arange({entries}); small = {{v: rows[:1000] for v, rows in keys.items()}}\n"
        f"c.FaissIndex(small, 'flow', {factory!r}, key_ids=ids[:1000])"
    )
    peak = 1024 * peak_kib(inputs, f"kept = c.FaissIndex(keys, 'flow', {factory!r}, key_ids=ids)")
    estimate = index_bytes(factory, entries, DIM)
    assert peak < estimate < 4 * peak, f"estimated {estimate / 1e6:.0f} MB, took {peak / 1e6:.0f} MB"


def test_the_room_is_what_is_free_and_what_was_allowed(tmp_path: Path) -> None:
    assert 0 < Memory().room() < available_bytes()
    assert 0 <= 1000 - Memory(1000).room() < 1 << 26  # less what this process has grown by since
    assert Memory(1 << 60).room() < available_bytes()
    for name, text in (("max", "5000"), ("current", "3000"), ("stat", "active_file 9\ninactive_file 700\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    assert scale_memory._left_of_container(tmp_path, 10**9) == 2700
    (tmp_path / "memory.max").write_text("max\n")
    assert scale_memory._left_of_container(tmp_path, 10**9) == 10**9


def test_a_system_that_does_not_say_is_told_to_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> str:
        raise FileNotFoundError("/proc/meminfo")

    monkeypatch.setattr(scale_memory.Path, "read_text", missing)
    with pytest.raises(ValueError, match=r"does not say how much memory is free .* give --memory GB"):
        available_bytes()
    with pytest.raises(ValueError, match="does not say"):
        Memory().room()
    assert Memory(1000).room() == 1000


def test_a_plan_says_what_is_left_out_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    asked = [
        "scale",
        "--plan",
        "--sizes",
        "1e6",
        "1e9",
        "--methods",
        "sharded",
        "flat",
        "hnsw",
        "--memory",
        "1.6",
    ]
    assert cli.main(asked) == 0
    printed = capsys.readouterr().out
    lines = {line.split("   ")[0].strip(): line for line in printed.splitlines()}
    assert "left out" not in lines["native, exact"]
    assert (
        "it needs about" in lines["sharded, 2 processes"] and "may be taken" in lines["sharded, 2 processes"]
    )
    assert "building the graph takes minutes" in lines["FAISS HNSW"]
    assert "N=1,000,000,000 (float16)" in printed and "the queue alone needs" in printed
    assert "would fit" in printed
