"""The harness prints no number on a wrong answer: what its gates refuse, and what they let pass."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from bench_tools import SETTINGS, altered, another_entry, ours

from bench import cli
from bench.harness.peer import OURS, STRONG, Peer
from bench.harness.workloads import by_name, workloads_of
from bench.ops import cascade, enqueue, loss, runner, train_step
from bench.tables import report
from cpr_kernels.dispatch.calls import CascadeCall
from cpr_kernels.mining import reference

OURS_BEFORE = ours(cascade)  # before a test replaces the peers


def _late(queue):
    return {**queue, "ids": queue["ids"].roll(1)}


WRONG = {
    "cascade: one index of one query": (cascade, another_entry),
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
    assert gate.why_wrong(ours(op)) is None
    assert gate.why_wrong(altered(op, alter))


def test_gate_refuses_wrong_ties():
    # the wrong end of a tie is as good on real-valued features, so only integer-valued ones show it
    workload = by_name("cascade", "quick")
    gate = cascade.gate(workload, SETTINGS)

    def prepare(table):
        flipped = {view: rows.flip(0) for view, rows in table.keys.items()}
        call = ours(cascade).prepare(table._replace(keys=flipped))

        def later_index_first():
            indices, scores = call()
            return workload.num_keys - 1 - indices, scores

        return later_index_first

    said = gate.why_wrong(Peer(OURS, prepare, checked="exact"))
    assert said is not None and said.startswith("integer-valued")
    assert gate.why_wrong(Peer("a peer", prepare, checked="near")) is None


def test_no_number_on_a_wrong_answer(monkeypatch, capsys, tmp_path):
    wrong_peer = altered(cascade, another_entry)
    wrong_peer = Peer(STRONG, wrong_peer.prepare)
    monkeypatch.setattr(cascade, "peers", lambda settings: [OURS_BEFORE, wrong_peer])
    arguments = ["--op", "cascade", "--workload", "quick", "--quick", "--no-memory", "--out", str(tmp_path)]
    assert cli.main(arguments) == 1
    captured = capsys.readouterr()
    assert f"REFUSED {STRONG}" in captured.out and "refused" in captured.err
    (document,) = report.read_all(tmp_path)
    (row,) = [row for row in document["rows"] if row["peer"] == STRONG]
    assert row["status"] == "refused" and row["median_s"] is None and "queries checked" in row["reason"]


def test_nothing_is_timed_when_ours_is_wrong():
    op = SimpleNamespace(NAME="cascade", gate=cascade.gate)
    peers = [altered(cascade, another_entry), cascade.peers(SETTINGS)[1]]
    rows = runner.run_workload(op, by_name("cascade", "quick"), SETTINGS, peers, say=lambda line: None)
    assert [row["status"] for row in rows] == ["refused"]


def test_a_peer_that_fails_is_named_and_the_run_goes_on():
    def prepare(table):
        raise RuntimeError("no compiler here\nand a long story")

    said = []
    op = SimpleNamespace(NAME="cascade", gate=cascade.gate)
    peers = [ours(cascade), Peer("broken", prepare)]
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
    found = ours(cascade).prepare(table)()
    assert torch.equal(indices, found[0]) and torch.equal(scores, found[1])
