"""The Triton kernels under Triton's interpreter, on CPU tensors, against the reference."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
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
SCRIPT = SUPPORT / "triton_interpreter.py"


def run_script(kind: str) -> dict[str, str]:
    """What the script found wrong, by case; it runs in a process of its own."""
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(Path(cpr_kernels.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, SCRIPT, kind], capture_output=True, text=True, env=env, timeout=280
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {line["name"]: line["wrong"] for line in lines}


@pytest.fixture(scope="module")
def cascade() -> dict[str, str]:
    """All cascade cases, the long ones shortened, run once."""
    return run_script("cascade")


@pytest.fixture(scope="module")
def loss() -> dict[str, str]:
    """All loss cases, the long ones with few queries, run once."""
    return run_script("loss")


@pytest.mark.parametrize("name", [case.name for case in CASCADE_CASES])
def test_cascade_equals_the_reference(cascade: dict[str, str], name: str) -> None:
    assert cascade[name] == ""


@pytest.fixture(scope="module")
def rerank() -> dict[str, str]:
    """Cascade cases over listed candidates, run once."""
    return run_script("rerank")


@pytest.mark.parametrize("name", RERANKED + LONG_RERANKED)
def test_rerank_equals_the_reference(rerank: dict[str, str], name: str) -> None:
    assert rerank[name] == ""


@pytest.mark.parametrize("name", [case.name for case in LOSS_CASES + TIED_CASES])
def test_loss_is_near_the_reference(loss: dict[str, str], name: str) -> None:
    assert loss[name] == ""


@pytest.fixture(scope="module")
def swept() -> dict[str, str]:
    """Cascade cases in sweeps of a few queries, run once."""
    return run_script("swept")


@pytest.mark.parametrize("name", SWEPT)
def test_sweeps_change_nothing(swept: dict[str, str], name: str) -> None:
    assert swept[name] == ""


@pytest.fixture(scope="module")
def non_finite_loss() -> dict[str, str]:
    """Losses with NaN, infinities and overflowing products, run once."""
    return run_script("non-finite")


@pytest.mark.parametrize("name", [case.name for case in non_finite.CASES])
def test_losses_that_are_not_finite(non_finite_loss: dict[str, str], name: str) -> None:
    assert non_finite_loss[name] == ""
