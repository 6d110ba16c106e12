"""Progress on a terminal and in a log file."""

from __future__ import annotations

import re
import sys
import time

import pytest

from cpr_kernels import progress
from cpr_kernels.progress import ProgressBar, table, track


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that the test moves."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_log_file_gets_a_line_every_30_seconds(
    capfd: pytest.CaptureFixture[str], seconds: list[float]
) -> None:
    with ProgressBar("pretrain", total=100, done=40) as bar:
        for _ in range(30):  # 10 s each
            seconds[0] += 10
            bar.advance(status="loss 0.5")
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 11  # ten of the job, and how it ended
    assert re.fullmatch(r"pretrain: 43/100 \[00:30<09:30, .*10\.00s/ step, loss 0\.5\]", lines[0]), lines[0]
    assert lines[-1].startswith("pretrain: 70/100 [05:00<")


def test_a_long_step_gets_lines_too(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.02)
    with ProgressBar("prepare", total=2, unit="video") as bar:
        while bar.line_at < bar.began + 0.04:  # two lines, during the first step
            time.sleep(0.01)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) >= 2 and all(line.startswith("prepare: 0/2 [") for line in lines), lines


def test_short_jobs_and_hidden_ones_print_nothing(
    capfd: pytest.CaptureFixture[str], seconds: list[float]
) -> None:
    assert list(track(range(5), "encode")) == [0, 1, 2, 3, 4]
    with ProgressBar("pretrain", total=2, shown=False) as bar:
        seconds[0] += 100
        bar.advance(2)
    assert capfd.readouterr().err == ""


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with ProgressBar("encode", total=4, unit="video") as bar:
        bar.advance(4, status="loss 1")
    shown = capsys.readouterr().err
    assert "encode: 100%" in shown and "4/4" in shown and "loss 1" in shown


def test_tables_line_up(capsys: pytest.CaptureFixture[str]) -> None:
    table("videos", ["class", "train", "reason"], [["Archery", "7", "x"], ["Surf", "1,024", "too short"]])
    assert capsys.readouterr().err.splitlines() == [
        "videos",
        "class    train  reason",
        "-------  -----  ---------",
        "Archery      7  x",
        "Surf     1,024  too short",
    ]
