"""Measures peak memory of an op's peers in a process of its own.

The process runs a peer on a small shape first, so that code and thread pools are there. Freed blocks above 64 KB go
back to the system at once (``mallopt``), so what an earlier call left cannot hide a later one's need.
"""

from __future__ import annotations

import ctypes
from typing import Any

from ..harness.machine import configure
from ..harness.memory import peak_of
from ..harness.peer import Op, Peer, Settings
from ..harness.process import returned_by
from ..harness.workloads import Workload, by_name
from .table import OPS

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of glibc's mallopt
_TIME_LIMIT_S = 600


def peaks(op_name: str, workload: Workload, names: list[str], settings: Settings) -> dict[str, int]:
    """Returns the peak bytes of a call of each named peer, measured in a process of its own.

    Raises:
        RuntimeError: the process failed; its last lines are in the message.
    """
    what = f"measuring memory of {workload.name}"
    return returned_by(_peaks, op_name, workload.name, names, settings, what=what, limit_s=_TIME_LIMIT_S)


def _peak(op: Op, peer: Peer, workload: Workload, inputs: Any, settings: Settings) -> int:
    """Returns a peer's peak bytes on `inputs`, after a call that is not measured."""
    if peer.warms_itself:
        peer.prepare(inputs)()
    else:
        small = workload.small()
        if peer.why_not(small) is None:
            peer.prepare(op.make_inputs(small, settings))()
    call = peer.prepare(inputs)
    if peer.warms_itself:
        call()
    return peak_of(call, settings.device)


def _peaks(op_name: str, workload_name: str, names: list[str], settings: Settings) -> dict[str, int]:
    """Measures in this process, which frees early from here on."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, 64 << 10)
        mallopt(_TRIM_THRESHOLD, 128 << 10)
    configure(settings)
    op, workload = OPS[op_name], by_name(op_name, workload_name)
    inputs = op.make_inputs(workload, settings)
    peers = [peer for peer in op.peers(settings) if peer.name in names]
    return {peer.name: _peak(op, peer, workload, inputs, settings) for peer in peers}
