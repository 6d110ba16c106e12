"""The harness runs, writes what it promises, and prints no number on a wrong answer."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))  # last: an installed cpr_kernels stays the one under test

from bench import (  # noqa: E402
    cascade,
    cli,
    enqueue,
    goals,
    gpu_peers,
    gpu_tune,
    loss,
    memory,
    readme,
    report,
    runner,
    text,
    timing,
    train_step,
)
from bench.peer import OURS, STRONG, Peer, Settings  # noqa: E402
from bench.workloads import OPS, Workload, by_name, growth, workloads_of  # noqa: E402
from cpr_kernels.calls import CascadeCall  # noqa: E402
from cpr_kernels.mining import reference  # noqa: E402

SETTINGS = Settings(threads=torch.get_num_threads(), compiled=False, memory=False, quick=True, budget_s=0.05)


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory):
    """``python -m bench --quick`` on all ops, once: its output and folder."""
    out = tmp_path_factory.mktemp("results")
    done = subprocess.run(
        [sys.executable, "-m", "bench", "--quick", "--out", str(out)],
        cwd=ROOT,
        env={**os.environ, "OMP_WAIT_POLICY": "passive"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout, out


def test_quick_run_writes_valid_json_for_every_op(quick_run):
    documents = {d["op"]: d for d in report.read_all(quick_run[1])}
    assert set(documents) == set(OPS)
    for op, document in documents.items():
        assert {w["name"] for w in document["workloads"]} == {w.name for w in workloads_of(op, quick=True)}
        assert document["commit"] and document["versions"]["torch"] == torch.__version__
        assert document["ceilings"]["flops_per_s"] > 0
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


def _ours(op):
    return op.peers(SETTINGS)[0]


def _altered(op, alter):
    """Our peer, its answer altered afterwards."""
    mine = _ours(op)

    def prepare(inputs):
        call = mine.prepare(inputs)
        return lambda: alter(call())

    return Peer(mine.name, prepare, mine.why_not, checked=mine.checked)


def _another_entry(answer):
    indices, scores = (t.clone() for t in answer)
    unused = next(j for j in range(1000) if j not in indices[1].tolist())
    indices[1, -1] = unused
    return indices, scores


def _late(queue):
    return {**queue, "ids": queue["ids"].roll(1)}


WRONG = {
    "cascade: one index of one query": (cascade, _another_entry),
    "cascade: order": (cascade, lambda a: (a[0].flip(1), a[1].flip(1))),
    "cascade: one repeated": (cascade, lambda a: (a[0][:, [0, 0, 1, 2, 3]], a[1])),
    "cascade: scores": (cascade, lambda a: (a[0], a[1] * 1.001)),
    "cascade: too few": (cascade, lambda a: (a[0][:, :4], a[1][:, :4])),
    "loss: value": (loss, lambda a: (a[0] + 2e-5, a[1])),
    "loss: nan": (loss, lambda a: (a[0] * float("nan"), a[1])),
    "loss: gradient": (loss, lambda a: (a[0], a[1] * 1.001)),
    "enqueue: ids one late": (enqueue, _late),
    "train_step: gradient": (train_step, lambda a: a._replace(gradient=a.gradient * 1.001)),
    "train_step: queue": (train_step, lambda a: a._replace(queue=_late(a.queue))),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_gate_refuses_a_wrong_answer(wrong):
    op, alter = WRONG[wrong]
    gate = op.gate(workloads_of(op.NAME, quick=True)[0], SETTINGS)
    assert gate.why_wrong(_ours(op)) is None
    assert gate.why_wrong(_altered(op, alter))


def test_gate_refuses_wrong_ties():
    # the wrong end of a tie is as good on real-valued features, so only integer-valued ones show it
    workload = by_name("cascade", "quick")
    gate = cascade.gate(workload, SETTINGS)

    def prepare(table):
        flipped = {view: rows.flip(0) for view, rows in table.keys.items()}
        call = _ours(cascade).prepare(table._replace(keys=flipped))

        def later_index_first():
            indices, scores = call()
            return workload.num_keys - 1 - indices, scores

        return later_index_first

    said = gate.why_wrong(Peer(OURS, prepare, checked="exact"))
    assert said is not None and said.startswith("integer-valued")
    assert gate.why_wrong(Peer("a peer", prepare, checked="near")) is None


def test_no_number_on_a_wrong_answer(monkeypatch, capsys, tmp_path):
    wrong_peer = _altered(cascade, _another_entry)
    wrong_peer = Peer(STRONG, wrong_peer.prepare)
    monkeypatch.setattr(cascade, "peers", lambda settings: [_ours_before, wrong_peer])
    arguments = ["--op", "cascade", "--workload", "quick", "--quick", "--no-memory", "--out", str(tmp_path)]
    assert cli.main(arguments) == 1
    captured = capsys.readouterr()
    assert f"REFUSED {STRONG}" in captured.out and "refused" in captured.err
    (document,) = report.read_all(tmp_path)
    (row,) = [row for row in document["rows"] if row["peer"] == STRONG]
    assert row["status"] == "refused" and row["median_s"] is None and "queries checked" in row["reason"]


_ours_before = _ours(cascade)


def test_nothing_is_timed_when_ours_is_wrong():
    op = SimpleNamespace(NAME="cascade", gate=cascade.gate)
    peers = [_altered(cascade, _another_entry), cascade.peers(SETTINGS)[1]]
    rows = runner.run_workload(op, by_name("cascade", "quick"), SETTINGS, peers, say=lambda line: None)
    assert [row["status"] for row in rows] == ["refused"]


def test_a_peer_that_fails_is_named_and_the_run_goes_on():
    def prepare(table):
        raise RuntimeError("no compiler here\nand a long story")

    said = []
    op = SimpleNamespace(NAME="cascade", gate=cascade.gate)
    peers = [_ours(cascade), Peer("broken", prepare)]
    rows = runner.run_workload(op, by_name("cascade", "quick"), SETTINGS, peers, say=said.append)
    assert {row["peer"]: row["status"] for row in rows} == {OURS: "ok", "broken": "not run"}
    assert said == ["  broken failed: no compiler here"]


def test_near_tie_bounds_hold_what_rounding_may_select():
    generator = torch.Generator().manual_seed(0)
    rows, size, keep, slack = 200, 60, [30, 12, 4], 0.02
    scores = [torch.rand(rows, size, generator=generator) for _ in keep]
    eligible = torch.rand(rows, size, generator=generator) > 0.1

    def selected(scores):
        alive = eligible
        for score, count in zip(scores, keep):
            order = reference.ranking(score, alive)[:, :count]
            alive = alive & torch.zeros_like(alive).scatter_(1, order, True)
        return alive

    certain, possible = cascade.near_tie_bounds(scores, eligible, keep, 0.0)
    assert torch.equal(certain, possible) and torch.equal(certain, selected(scores))
    certain, possible = cascade.near_tie_bounds(scores, eligible, keep, slack)
    assert (
        10 < int((possible != certain).any(1).sum()) < rows - 10
    )  # some queries hang on a near tie, some do not
    for _ in range(10):
        rounded = [
            score + slack / 2 * (torch.rand(score.shape, generator=generator) - 0.5) for score in scores
        ]
        chosen = selected(rounded)
        assert not (chosen & ~possible).any() and not (certain & ~chosen).any()


def test_reference_call_is_the_ops_call():
    table = cascade.make_inputs(by_name("cascade", "quick-ids"), SETTINGS)
    rows = torch.arange(4)
    call = cascade.as_call(table, rows)
    assert isinstance(call, CascadeCall) and len(call.queries) == 2
    indices, scores = torch.ops.cpr.cascade_topk(*call)
    ours = _ours(cascade).prepare(table)()
    assert torch.equal(indices, ours[0]) and torch.equal(scores, ours[1])


def test_turns_are_interleaved_and_slow_peers_take_fewer():
    log = []

    def sampler(name, seconds):
        def sample(calls):
            log.append(name)
            return seconds * calls

        return sample

    found = timing.interleave({"fast": sampler("fast", 0.01), "slow": sampler("slow", 0.1)}, budget_s=2.0)
    assert len(found["fast"].seconds) == timing.MOST_TURNS and len(found["slow"].seconds) == 10
    turns = "".join(name[0] for name in log[6:])  # after three warm-up calls each
    assert "s" in turns[:12] and "ss" not in turns and turns.count("s") == 10
    assert found["slow"].times_ours(found["fast"]) == pytest.approx([10.0] * 10)


def test_ratios_are_taken_within_a_round():
    # a machine that halves its speed half-way changes the medians, not the ratio
    ours = timing.Timing(1, [0, 1, 2, 3], [1.0, 1.0, 2.0, 2.0])
    peer = timing.Timing(1, [0, 3], [3.0, 6.0])
    assert peer.times_ours(ours) == [3.0, 3.0]


def test_peak_of_sees_what_a_call_touches():
    if memory.cannot_measure("cpu"):
        pytest.skip(memory.cannot_measure("cpu"))
    size = 64 << 20
    peak = memory.peak_of(lambda: torch.ones(size // 4).sum(), "cpu")
    assert size - (256 << 10) <= peak <= size + (4 << 20)  # the kernel counts pages in batches
    assert memory.peak_of(lambda: None, "cpu") < 1 << 20


def _measured(workload, peer, times_ours, peak_bytes=None):
    row = {"workload": workload, "peer": peer, "mode": "warm", "status": "ok"}
    return {**row, "times_ours": times_ours, "peak_bytes": peak_bytes}


def test_goals_are_judged_cell_by_cell():
    rows = [
        _measured("k400-b64", OURS, 1.0),
        _measured("k400-b64", STRONG, 7.1),
        _measured("k400-b64", "matmuls alone", 1.0),
        _measured("k400-b64", "published algorithm, restated", 250.0),
    ]
    verdicts = {goal["against"]: goal for goal in goals.judged("cascade", rows, 2, "cpu")}
    assert verdicts[STRONG]["verdict"] == "met"
    assert (
        verdicts["matmuls alone"]["verdict"] == "not met" and "1.00x" in verdicts["matmuls alone"]["measured"]
    )
    assert verdicts["published algorithm, restated"]["verdict"] == "not met"
    assert all("not judged" in goal["verdict"] for goal in goals.judged("cascade", rows, 4, "cpu"))
    assert goals.judged("cascade", rows, 2, "cuda") == []
    memory_goal = [_measured("k400-b512", OURS, 1.0, peak_bytes=11_000_000)]
    assert [g["verdict"] for g in goals.judged("loss", memory_goal, 2, "cpu")][-1] == "not met"


def test_readme_section_is_rewritten_between_its_markers(quick_run, tmp_path):
    page = tmp_path / "README.md"
    page.write_text(f"# title\n{readme.BEGIN}\nold\n{readme.END}\n## after\n")
    assert cli.main(["readme", "--readme", str(page), "--out", str(quick_run[1])]) == 0
    once = page.read_text()
    assert once.startswith("# title\n") and once.endswith(f"{readme.END}\n## after\n") and "old" not in once
    assert "over the floor" in once and "### Mining" in once
    assert cli.main(["readme", "--readme", str(page), "--out", str(quick_run[1])]) == 0
    assert page.read_text() == once


def test_errors_are_one_line_and_name_the_argument(tmp_path, capsys):
    page = tmp_path / "README.md"
    page.write_text("no markers")
    threads = ["--quick", "--op", "cascade", "--threads", str(torch.get_num_threads())]
    for arguments, named in (
        (["readme", "--readme", str(page), "--out", str(tmp_path)], "bench:begin"),
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


def test_gpu_peers_say_what_they_need():
    settings = Settings(device="cuda", compiled=False)
    reasons = {
        peer.name: peer.why_not(by_name(op.NAME, name))
        for op, name in ((cascade, "coclr-b64"), (loss, "infonce-b16"))
        for peer in op.peers(settings)
    }
    for name, package in (
        ("torch matmul + flashinfer top_k", "flashinfer"),
        ("cuVS brute force, one stage", "cuvs"),
        ("cut-cross-entropy", "cut_cross_entropy"),
        ("liger-kernel", "liger_kernel"),
    ):
        assert (reasons[name] is None) == (importlib.util.find_spec(package) is not None)
    assert "GPU part" in (reasons["faiss-gpu, one stage"] or "") or "not installed" in (
        reasons["faiss-gpu, one stage"] or ""
    )


def test_gpu_peers_restate_the_work(monkeypatch):
    """Their adapters, on stand-ins with the libraries' signatures that compute in plain torch."""
    stand_ins = {
        "flashinfer": SimpleNamespace(top_k=lambda x, k, sorted=False: x.topk(k, dim=1, sorted=sorted)),
        "cuvs.neighbors.brute_force": SimpleNamespace(
            build=lambda keys, metric: keys,
            search=lambda index, query, k: (query @ index.T).topk(k, dim=1),
        ),
        "cut_cross_entropy": SimpleNamespace(
            linear_cross_entropy=lambda e, c, targets: torch.nn.functional.cross_entropy(e @ c.T, targets)
        ),
        "liger_kernel.transformers": SimpleNamespace(
            LigerFusedLinearCrossEntropyLoss=lambda: (
                lambda weight, x, target: torch.nn.functional.cross_entropy(x @ weight.T, target)
            )
        ),
    }
    monkeypatch.setattr(gpu_peers.importlib, "import_module", stand_ins.__getitem__)
    plain = by_name("cascade", "quick")
    nearest = Workload("coclr", 5, 512, "smoke", dim=32, views=1, stages=1)
    infonce = Workload("infonce", 5, 512, "smoke", dim=32, topk=0)
    found = {peer.name: peer for peer in [*gpu_peers.cascade_peers(), *gpu_peers.loss_peers(lambda w: None)]}
    for op, workload, name in (
        (cascade, plain, "torch matmul + flashinfer top_k"),
        (cascade, by_name("cascade", "quick-ids"), "torch matmul + flashinfer top_k"),
        (cascade, nearest, "cuVS brute force, one stage"),
        (loss, infonce, "cut-cross-entropy"),
        (loss, infonce, "liger-kernel"),
    ):
        assert op.gate(workload, SETTINGS).why_wrong(found[name]) is None, name


def test_choices_for_a_device_are_timed_and_a_wrong_answer_is_seen(monkeypatch, capsys):
    assert gpu_tune.main([]) == 2 and "CUDA" in capsys.readouterr().err
    workload, chosen, lines = by_name("cascade", "quick"), [], []
    table = cascade.make_inputs(workload, SETTINGS)
    core = SimpleNamespace(cuda_tune=lambda **choice: chosen.append(choice))

    def sometimes_wrong(*args, **kwargs):
        answer = torch.ones(2)
        return answer, answer * (2 if chosen[-1] == {"score_queries": 64} else 1)

    monkeypatch.setattr(gpu_tune, "make_table", lambda workload, device: table)
    monkeypatch.setattr(gpu_tune, "cascade_topk", sometimes_wrong)
    monkeypatch.setattr(gpu_tune, "graphed", lambda call: call)
    monkeypatch.setattr(gpu_tune, "cuda_sampler", timing.cpu_sampler)
    monkeypatch.setattr(gpu_tune, "applies", lambda choice, workload: True)
    assert not gpu_tune.tune(workload, core, lines.append)
    assert sum("WRONG" in line for line in lines) == 1 and len(lines) == len(gpu_tune.CHOICES)
    assert chosen[1::2] == [{}] * len(gpu_tune.CHOICES)  # the rules again after each
    monkeypatch.undo()
    timed = [c for c in gpu_tune.CHOICES if gpu_tune.applies(c, by_name("cascade", "k400-b64"))]
    assert {} in timed and {"sweep": 128} not in timed and {"sweep": 64} in timed
