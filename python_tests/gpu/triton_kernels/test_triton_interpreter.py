"""The Triton kernels under Triton's interpreter, on CPU tensors, against the reference."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import non_finite
import pytest
from cases import CASCADE_CASES, LOSS_CASES, TIED_CASES
from places import SUPPORT
from triton_interpreter import LONG_RERANKED, RERANKED, SWEPT

import cpr_kernels
from cpr_kernels.dispatch.triton_support import interpreter_fault

TRITON = importlib.util.find_spec("triton") is not None
FAULT = interpreter_fault(version("triton"), version("numpy")) if TRITON else None
pytestmark = [
    pytest.mark.skipif(not TRITON, reason="triton is not installed (pip install cpr_kernels[triton])"),
    pytest.mark.skipif(FAULT is not None, reason=str(FAULT)),
]
Wrong = Mapping[tuple[str, str], str]  # by kind and case: what is wrong
SCRIPT = SUPPORT / "triton_interpreter.py"


@pytest.fixture(scope="module")
def wrong() -> Wrong:
    """What the script finds wrong, by kind and case; it runs once, in a process of its own. Long cases are shortened."""
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(Path(cpr_kernels.__file__).parents[1])}
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, env=env, timeout=290)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {(line["kind"], line["name"]): line["wrong"] for line in lines}


@pytest.mark.parametrize("name", [case.name for case in CASCADE_CASES])
def test_cascade_equals_the_reference(wrong: Wrong, name: str) -> None:
    assert wrong["cascade", name] == ""


@pytest.mark.parametrize("name", RERANKED + LONG_RERANKED)
def test_rerank_equals_the_reference(wrong: Wrong, name: str) -> None:
    assert wrong["rerank", name] == ""


@pytest.mark.parametrize("name", [case.name for case in LOSS_CASES + TIED_CASES])
def test_loss_is_near_the_reference(wrong: Wrong, name: str) -> None:
    assert wrong["loss", name] == ""


@pytest.mark.parametrize("name", SWEPT)
def test_sweeps_change_nothing(wrong: Wrong, name: str) -> None:
    assert wrong["swept", name] == ""


@pytest.mark.parametrize("name", [case.name for case in non_finite.CASES])
def test_losses_that_are_not_finite(wrong: Wrong, name: str) -> None:
    assert wrong["non-finite", name] == ""
