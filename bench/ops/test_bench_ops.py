"""Times the table's workloads under pytest-benchmark, to follow one machine over time. No test here fails for speed.

``pytest bench --benchmark-only --benchmark-autosave`` keeps a run, ``pytest bench --benchmark-only
--benchmark-compare`` sets the present state against the last one kept. Answers are checked before they are timed.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ..harness.peer import MATMULS, OURS, STRONG, Gate, Op, Peer, Settings
from ..harness.workloads import Workload, workloads_of
from ..peers.loss import LOG_SOFTMAX
from .enqueue import SLICES
from .table import OPS
from .train_step import STRONG_STEP

FOLLOWED = (OURS, STRONG, MATMULS, LOG_SOFTMAX, SLICES, STRONG_STEP)  # ours, and what torch makes of the day
SETTINGS = Settings(threads=torch.get_num_threads(), compiled=False)

_last: dict[tuple[str, str], Gate] = {}


def _gate(op: Op, workload: Workload) -> Gate:
    """Returns the workload's gate, made once for all of its peers; only the last one is kept, for they are large."""
    key = (op.NAME, workload.name)
    if key not in _last:
        _last.clear()
        _last[key] = op.gate(workload, SETTINGS)
    return _last[key]


CASES = [
    pytest.param(op, workload, peer, id=f"{op.NAME}-{workload.name}-{peer.name}".replace(" ", "_"))
    for op in OPS.values()
    for workload in workloads_of(op.NAME)
    if workload.tier == "table"
    for peer in op.peers(SETTINGS)
    if peer.name in FOLLOWED and peer.why_not(workload) is None
]


@pytest.mark.parametrize(("op", "workload", "peer"), CASES)
def test_bench(benchmark: Any, op: Op, workload: Workload, peer: Peer) -> None:
    """Times one peer on one workload, its answer checked before."""
    gate = _gate(op, workload)
    assert gate.why_wrong(peer) is None
    benchmark.group = f"{op.NAME} {workload}"
    benchmark.extra_info.update(threads=torch.get_num_threads(), source=workload.source)
    benchmark(peer.prepare(gate.inputs))
