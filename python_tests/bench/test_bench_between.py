"""Mining between torch's own products: every peer is checked and timed in both situations."""

from __future__ import annotations

import pytest

from bench import cli
from bench.harness.peer import Peer, Settings
from bench.harness.workloads import QUICK
from bench.ops import between

SETTINGS = Settings(threads=1, budget_s=0.01, compiled=False)


def test_every_peer_in_both_situations() -> None:
    rows = between.measure(QUICK[0], SETTINGS, "passive")
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
        between.measure(QUICK[0], SETTINGS, "passive")


def test_an_unknown_workload(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["between", "--quick", "--workload", "nothing"]) == 2
    assert "--workload 'nothing' is not one of quick" in capsys.readouterr().err
