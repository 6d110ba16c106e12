"""`python -m bench scale` runs, writes what it promises, refuses wrong answers and fills its section of docs/benchmarks.md."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from bench_tools import ROOT, run_bench

from bench import cli
from bench.scale import methods as scale_methods
from bench.scale import run as scale
from bench.scale.data import Replicas, bases, drawn
from bench.scale.memory import PROCESS, Memory, shares_bytes
from bench.scale.shares import Shares


@pytest.mark.slow
def test_a_quick_run_measures_writes_and_fills_its_page(tmp_path: Path) -> None:
    done = run_bench("scale", "--quick", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    (found,) = tmp_path.glob("*-scale-*.json")
    document = json.loads(found.read_text())
    rows = [row for row in document["measured"] if row["status"] == "ok"]
    by_key = {key: [row for row in rows if row["method"] == name] for key, name in names(4_000).items()}
    assert all(row["topk"] == 1.0 and 0 < row["pmr"] <= 1 and row["call_s"] > 0 for row in by_key["exact"])
    in_shares = by_key["sharded"]
    assert len(in_shares) == len(by_key["exact"]) > 0
    for row, alone in zip(in_shares, by_key["exact"]):
        assert row["same_as_exact"] and row["topk"] == 1.0 and row["pmr"] == alone["pmr"]
        assert row["build_s"] > 0 and row["update_s"] > 0 and row["ranks"] == 2
        replicas = Replicas(next(base for base in bases() if base.name == row["bank"]), 4_000)
        expected = shares_bytes(replicas, 2, scale.schedules_of(replicas))
        assert 2 * (row["process_bytes"] or 0) < expected and row["build_peak_bytes"] < expected
        assert expected < 3 * row["build_peak_bytes"]
    if importlib.util.find_spec("faiss"):
        indexed = [row for row in rows if row["factory"]]
        assert {row["factory"].rstrip("0123456789") for row in indexed} >= {"Flat", "HNSW"}
        assert all(row["topk"] > 0.5 and row["build_s"] > 0 and row["update_s"] > 0 for row in indexed)
        assert all(row["same_as_exact"] for row in indexed if row["factory"] == "Flat")
    if importlib.util.find_spec("matplotlib"):
        assert found.with_suffix(".png").stat().st_size > 10_000
    assert "| native, exact" in found.with_suffix(".md").read_text() and "| native, exact" in done.stdout

    page = tmp_path / "benchmarks.md"
    page.write_text("before\n<!-- scale:begin -->\nold\n<!-- scale:end -->\nafter\n")
    assert cli.main(["scale", "--page", str(page), "--out", str(tmp_path)]) == 0
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "| native, exact" in text and "| sharded, 2 processes" in text and "no independent videos" in text

    more = ["scale", "--sizes", "3000", "--methods", "exact", "--add", "--out", str(tmp_path)]
    assert cli.main(more) == 0
    added = json.loads(found.read_text())["measured"]
    assert [row for row in added if row["size"] == 4_000] == document["measured"]
    assert {row["method"] for row in added if row["size"] == 3_000} == {"native, exact"}


def names(entries: int) -> dict[str, str]:
    """What each key on the command line calls its first method."""
    return {method.key: method.name for method in reversed(scale_methods.methods(entries))}


def test_a_process_that_is_lost_is_named_and_costs_its_rows_only(monkeypatch: pytest.MonkeyPatch) -> None:
    replicas, said = Replicas(drawn(), 3_000), []
    exact = scale_methods.Exact(replicas.bank(), schedules := scale.schedules_of(replicas))
    method = next(method for method in scale_methods.methods(3_000) if method.ranks)
    plain = scale._rows

    def one_dies(method: Any, shares: Shares, *rest: Any) -> Any:
        rows = plain(method, shares, *rest)
        yield next(rows)
        os.kill(shares._processes[1].pid, signal.SIGKILL)
        yield from rows

    monkeypatch.setattr(scale, "_rows", one_dies)
    rows = list(scale._in_shares(method, replicas, 2, exact, schedules, said.append))
    assert [row["status"] for row in rows] == ["ok", "failed"]
    assert rows[1]["reason"] == "process 1 ended with code -9 (killed: out of memory?)"
    assert rows[0]["same_as_exact"] and said[-1].endswith(rows[1]["reason"])


@pytest.mark.parametrize(
    ("alter", "status"),
    [
        (lambda indices, scores: (indices, scores), "ok"),
        (lambda indices, scores: (indices.flip(1), scores), "refused"),
        (lambda indices, scores: (indices, scores.nextafter(torch.tensor(9.0))), "refused"),
    ],
)
def test_no_figure_of_shares_that_answer_otherwise(alter: Any, status: str) -> None:
    replicas = Replicas(drawn(), 3_000)
    schedule, *_ = scale.schedules_of(replicas)
    exact = scale_methods.Exact(replicas.bank(), [schedule])
    altered = scale_methods.Exact(replicas.bank(), [])
    altered.mine = lambda of: alter(*exact.mine(of))  # type: ignore[method-assign]
    altered.peak = lambda of: {}  # type: ignore[method-assign]
    method = scale_methods.Method("sharded", "in shares", exact=True, ranks=2)
    row = scale._row(method, altered, exact, schedule)
    assert row["status"] == status and ("call_s" in row) == (status == "ok")


def test_what_does_not_fit_is_left_out_and_the_rest_is_measured() -> None:
    replicas, said = Replicas(drawn(), 4_000), []
    document: dict[str, Any] = {"machine": {"threads": 1}, "banks": {}, "refused": [], "measured": []}
    wanted = [replicas, Replicas(drawn(), 10_000_000)]
    scale.run(wanted, ["exact", "sharded"], Memory(2 * PROCESS - 1), document, said.append)
    assert {(row["method"], row["status"]) for row in document["measured"]} == {
        ("native, exact", "ok"),
        ("sharded, 2 processes", "not run"),
    }
    (left_out,) = [row for row in document["measured"] if row["status"] == "not run"]
    assert "it needs about" in left_out["reason"] and "may be taken" in left_out["reason"]
    (refused,) = document["refused"]
    assert "N=10,000,000: the queue alone needs" in refused and "would fit" in refused


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--sizes", "0"), "--sizes must be from 1 to 1e12"),
        (("--sizes", "inf"), "--sizes must be from 1 to 1e12"),
        (("--memory", "0"), "--memory must be GB above 0"),
        (("--threads", "0"), "--threads must be >= 1"),
        (("--page", "{tmp}/none.md", "--out", "{tmp}"), "none.md: no such file"),
        (("--page", str(ROOT / "docs" / "benchmarks.md"), "--out", "{tmp}"), "holds no scale results"),
        (("--quick", "--add", "--out", "{tmp}"), "holds no scale results"),
    ],
)
def test_wrong_arguments_are_one_line(
    arguments: tuple[str, ...], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["scale", *(argument.replace("{tmp}", str(tmp_path)) for argument in arguments)]) == 2
    told = capsys.readouterr().err
    assert sentence in told and len(told.splitlines()) == 1
