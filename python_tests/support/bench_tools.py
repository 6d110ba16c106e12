"""What the tests of the harness share: where it is, its command as a process, our peer, right and altered."""

from __future__ import annotations

import subprocess
import sys

import torch
from forked import run_python
from places import ROOT

if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))  # last: an installed cpr_kernels stays the one under test

from bench.harness.peer import Peer, Settings

SETTINGS = Settings(threads=torch.get_num_threads(), compiled=False, memory=False, quick=True, budget_s=0.05)


def run_bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    """``python -m bench`` in a process of its own."""
    return run_python("-m", "bench", *arguments, cwd=ROOT, timeout=280)


def ours(op):
    """Our peer of an op."""
    return op.peers(SETTINGS)[0]


def altered(op, alter):
    """Our peer, its answer altered afterwards."""
    mine = ours(op)

    def prepare(inputs):
        call = mine.prepare(inputs)
        return lambda: alter(call())

    return Peer(mine.name, prepare, mine.why_not, checked=mine.checked)


def another_entry(answer):
    """One index of one query is another one."""
    indices, scores = (t.clone() for t in answer)
    unused = next(j for j in range(1000) if j not in indices[1].tolist())
    indices[1, -1] = unused
    return indices, scores
