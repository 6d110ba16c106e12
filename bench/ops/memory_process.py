"""Measures peak memory of an op's peers in a process of its own: ``python -m bench.ops.memory_process JSON``.

The process runs a peer on a small shape first, so that code and thread pools are there. Freed blocks above 64 KB go
back to the system at once (``MALLOC_MMAP_THRESHOLD_``), so what an earlier call left cannot hide a later one's need.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from ..harness.machine import configure
from ..harness.memory import peak_of
from ..harness.peer import Op, Peer, Settings
from ..harness.process import answer_of
from ..harness.workloads import Workload, by_name
from .table import OPS

_ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": str(64 << 10), "MALLOC_TRIM_THRESHOLD_": str(128 << 10)}
_TIME_LIMIT_S = 600


def peaks(op_name: str, workload: Workload, names: list[str], settings: Settings) -> dict[str, int]:
    """Returns the peak bytes of a call of each named peer, measured in a fresh process.

    Raises:
        RuntimeError: the process failed; its last lines are in the message.
    """
    request = {"op": op_name, "workload": workload.name, "peers": names, "settings": settings.to_dict()}
    what = f"measuring memory of {workload.name}"
    found = answer_of("bench.ops.memory_process", request, _ENVIRONMENT, what, _TIME_LIMIT_S)
    return {name: int(size) for name, size in found.items()}


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


def main(request: str) -> None:
    """Measures what the request names and prints ``{peer: bytes}``."""
    wanted = json.loads(request)
    settings = Settings(**wanted["settings"])
    configure(settings)
    op, workload = OPS[wanted["op"]], by_name(wanted["op"], wanted["workload"])
    inputs = op.make_inputs(workload, settings)
    peers = [peer for peer in op.peers(settings) if peer.name in wanted["peers"]]
    print(json.dumps({peer.name: _peak(op, peer, workload, inputs, settings) for peer in peers}))


if __name__ == "__main__":
    main(sys.argv[1])
