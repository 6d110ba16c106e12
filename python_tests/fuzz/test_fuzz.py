"""A short run of every fuzzer, and that the fuzzers see what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import train_sets  # noqa: F401  skips without the trainer's packages

from .runner import Target, fuzz
from .targets import TARGETS

CASES, CASES_WITH_A_PROCESS = 25, 8  # the store is looked at by a process of its own


@pytest.mark.parametrize("kind", TARGETS)
def test_damaged_files_are_read_right_or_refused(kind: str) -> None:
    if kind.startswith(("faiss", "clip")):
        pytest.importorskip("faiss", reason="indexes need faiss: pip install 'cpr_kernels[faiss]'")
    counts = fuzz(TARGETS[kind], seed=0, cases=CASES_WITH_A_PROCESS if kind == "data.mdb" else CASES)
    assert not counts.wrong, "\n".join(counts.reports)
    assert counts.refused > counts.tried // 4  # the damage reaches the reader


def write(folder: Path) -> None:
    (folder / "a.json").write_text(json.dumps({"one": 1, "two": [2, 3]}))


def as_text(folder: Path) -> Any:
    return (folder / "a.json").read_bytes()


def unchecked(folder: Path) -> Any:
    return json.loads((folder / "a.json").read_text(errors="replace"))["one"] + 1


def test_the_fuzzer_sees_readers_that_believe_everything() -> None:
    believed = fuzz(Target("believed", write, ("a.json",), as_text), 0, 40)
    assert believed.wrong >= 38 and "another value was read" in believed.reports[0]
    raised = fuzz(Target("raised", write, ("a.json",), unchecked), 0, 200)
    assert any("KeyError" in report or "TypeError" in report for report in raised.reports)
    assert raised.tried == 200 and raised.refused > 0


def test_a_case_is_the_same_again() -> None:
    first, second = (fuzz(TARGETS["schedule"], 7, 30) for _ in range(2))
    assert (first.refused, first.right, first.sentences) == (second.refused, second.right, second.sentences)
