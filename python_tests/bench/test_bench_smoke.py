"""The harness runs, writes what it promises, keeps what a run cut short had, and words its errors."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from bench_tools import SETTINGS, run_bench

from bench import RESULTS, cli
from bench.harness import memory, text
from bench.harness.peer import OURS
from bench.harness.workloads import OPS, Workload, growth, workloads_of
from bench.ops import cascade, runner
from bench.tables import readme, report


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory):
    """``python -m bench --quick`` on all ops, once: its output and folder."""
    out = tmp_path_factory.mktemp("results")
    done = run_bench("--quick", "--out", str(out))
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout, out


def test_quick_run_writes_valid_json_for_every_op(quick_run):
    documents = {d["op"]: d for d in report.read_all(quick_run[1])}
    assert set(documents) == set(OPS)
    for op, document in documents.items():
        assert {w["name"] for w in document["workloads"]} == {w.name for w in workloads_of(op, quick=True)}
        assert document["commit"] and document["versions"]["torch"] == torch.__version__
        assert min(document["ceilings"]["flops_per_s"], document["ceilings"]["flops_per_s_alone"]) > 0
        for row in document["rows"]:
            assert row["status"] in ("ok", "not run")
            if row["status"] == "ok":
                assert 0 < row["p20_s"] <= row["median_s"] <= row["p80_s"] and row["turns"] > 0
            else:
                assert row["reason"] and row["median_s"] is None
        ours = {row["workload"] for row in document["rows"] if row["peer"] == OURS and row["status"] == "ok"}
        assert ours == {w["name"] for w in document["workloads"]}


def test_quick_run_prints_and_writes_tables(quick_run):
    stdout, out = quick_run
    written = (out / "report.md").read_text()
    for op in OPS:
        assert f"## {op}" in stdout and f"## {op}" in written
    assert "| workload" in stdout and "| quick" in written
    assert "not installed" in written or importlib.util.find_spec("faiss")


def test_quick_run_measures_memory(quick_run):
    if memory.cannot_measure("cpu"):
        pytest.skip(memory.cannot_measure("cpu"))
    document = next(d for d in report.read_all(quick_run[1]) if d["op"] == "cascade")
    sizes = [r["peak_bytes"] for r in document["rows"] if r["status"] == "ok" and r["workload"] == "quick"]
    assert sizes and all(size is not None for size in sizes)


def test_quick_run_draws_growth(quick_run):
    pytest.importorskip("matplotlib")
    for ending in ("png", "svg"):
        plots = list(quick_run[1].glob(f"*-growth.{ending}"))
        assert len(plots) == len(OPS) and all(plot.stat().st_size > 2000 for plot in plots)


def test_the_pages_are_rewritten_between_their_markers(quick_run, tmp_path):
    short, page = tmp_path / "README.md", tmp_path / "benchmarks.md"
    for path in (short, page):
        path.write_text(f"# title\n{readme.BEGIN}\nold\n{readme.END}\n## after\n")
    arguments = ["readme", "--readme", str(short), "--page", str(page), "--out", str(quick_run[1])]
    assert cli.main(arguments) == 0
    once = [path.read_text() for path in (short, page)]
    for written in once:
        assert written.startswith("# title\n") and written.endswith(f"{readme.END}\n## after\n")
        assert "old" not in written
    assert "over the floor" in once[1] and "## Mining" in once[1]
    rows = [line for line in once[0].splitlines() if line.startswith("| ")]
    workloads = [w for w in workloads_of("cascade", quick=True) if not w.axis]
    assert len(rows) == 1 + len(workloads) and "strong torch" in rows[0] and "floor" not in once[0]
    assert cli.main(arguments) == 0
    assert [path.read_text() for path in (short, page)] == once


def test_errors_are_one_line_and_name_the_argument(tmp_path, capsys):
    page = tmp_path / "README.md"
    page.write_text("no markers")
    threads = ["--quick", "--op", "cascade", "--threads", str(torch.get_num_threads())]
    for arguments, named in (
        (["readme", "--readme", str(page), "--page", str(page), "--out", str(RESULTS)], "bench:begin"),
        (["readme", "--readme", str(page), "--page", str(tmp_path / "none.md")], "--page"),
        (["readme", "--readme", str(tmp_path / "none.md")], "--readme"),
        ([*threads, "--isa", "sse9"], "--isa sse9"),
        ([*threads, "--workload", "nope"], "nope"),
        ([*threads, "--published", str(tmp_path)], "--published"),
    ):
        assert cli.main(arguments) == 2
        said = capsys.readouterr().err
        assert said.startswith("bench: ") and said.count("\n") == 1 and named in said


def test_workloads_are_named_once_and_have_a_source():
    for op in OPS:
        listed = workloads_of(op)
        names = [w.name for w in listed]
        assert len(set(names)) == len(names) and all(w.source for w in listed)
        for axis in {w.axis for w in growth(op)}:
            values = [w.at(axis) for w in listed if w.axis == axis]
            assert values == sorted(set(values)) and len(values) > 3
    for workload in workloads_of("cascade"):
        assert len(workload.schedule) == workload.stages
        assert isinstance(workload.small(), Workload) and workload.small().schedule


def test_numbers_read_well():
    assert [text.duration(s) for s in (4.024e-3, 1.5e-6, 0.9999, 12.34)] == [
        "4.02 ms",
        "1.50 us",
        "1.00 s",
        "12.3 s",
    ]
    assert [text.size(b) for b in (4096, 1.5e6, 2.1e9)] == ["4 kB", "1.5 MB", "2.1 GB"]
    assert text.significant(0.0123) == "0.0123" and text.significant(1234.0) == "1234"


def test_a_run_cut_short_has_kept_its_figures(tmp_path):
    kept = []

    def keep(document):
        kept.append([row["workload"] for row in document["rows"] if row["peer"] == OURS])
        if len(kept) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runner.run_op(cascade, workloads_of("cascade", quick=True), SETTINGS, lambda line: None, keep)
    assert kept == [["quick"], ["quick", "quick-ids"]]
