"""How the harness takes time and memory, and judges figures against the goals."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from bench_tools import ROOT

from bench import cli
from bench.harness import memory, timing
from bench.harness.peer import OURS, STRONG, Peer, Settings
from bench.harness.workloads import QUICK, by_name
from bench.ops import between, goals, memory_process, miner
from cpr_kernels import MiningPlan, _core

BRIEFLY = Settings(threads=1, budget_s=0.01, compiled=False)


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
    code = (  # a process of its own, as for the figures: what other tests left behind would count in part
        "import torch; from bench.harness import memory\n"
        f"print(memory.peak_of(lambda: torch.ones({size} // 4).sum(), 'cpu'), memory.peak_of(lambda: None, 'cpu'))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    peak, nothing = map(int, done.stdout.split())
    assert size - (1 << 20) <= peak <= size + (4 << 20)  # the kernel counts pages in batches
    assert nothing < 1 << 20


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


def test_multiplying_and_adding_alone_has_a_rate(isa: str) -> None:
    """The ceiling of the floors; at a hundred million a second any machine of this century is faster."""
    assert max(_core.cpu_flops_per_second(torch.get_num_threads()) for _ in range(3)) > 1e8


def test_memory_kept_between_calls_is_measured_too():
    """Otherwise a small call before would hide it."""
    if memory.cannot_measure("cpu"):
        pytest.skip(memory.cannot_measure("cpu"))
    workload = by_name("cascade", "ucf-b16")
    needed = 2 * workload.num_queries * workload.num_keys * 4  # the scores that it selects from
    assert memory_process.peaks("cascade", workload, [OURS], Settings(threads=2))[OURS] > 0.8 * needed


def test_every_peer_in_both_situations() -> None:
    rows = between.measure(QUICK[0], BRIEFLY, "passive")
    seen = {(row.situation, row.peer) for row in rows}
    peers = {*between.COMPARED, between.ONE_THREAD, between.KEY_BIAS}
    assert seen == {(situation, peer) for situation in ("between products", "in a loop") for peer in peers}
    assert all(0 < row.least <= row.median <= row.p80 for row in rows)
    table = between.table_of(rows)
    assert table.count("cpr_kernels, key_bias") == 2 and "median/ours" in table


def test_a_wrong_answer_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = Peer("shifted", lambda table: lambda: (between._ours(table)()[0] + 1, None))
    monkeypatch.setattr(between, "compared", lambda settings: [wrong])
    with pytest.raises(RuntimeError, match="quick: shifted: real-valued features"):
        between.measure(QUICK[0], BRIEFLY, "passive")


def test_a_tuned_miner_s_step_is_checked_and_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = miner.measure(QUICK[0], BRIEFLY)
    assert [row.call for row in rows] == [
        miner.CASCADE, miner.STEP, miner.MINED, miner.ONE_JOINT, miner.BIASED, miner.WIDE,
    ]  # fmt: skip
    assert all(0 < row.least <= row.median for row in rows) and rows[0].times == 1
    goal = rows[1]._replace(workload="k400-b64", times=1.5)
    assert "1.50x" in miner.table_of([goal]) and "at most 2x" in miner.table_of([goal])
    monkeypatch.setattr(MiningPlan, "mine", lambda *_: (torch.zeros(1, 1, dtype=torch.int64), None))
    with pytest.raises(RuntimeError, match="quick: the step mines other entries than its plan"):
        miner.measure(QUICK[0], BRIEFLY)


def test_an_unknown_workload(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["between", "--quick", "--workload", "nothing"]) == 2
    assert "--workload 'nothing' is not one of quick" in capsys.readouterr().err
