"""Defines what a peer is: a name, a way to prepare one call on given inputs, and the reason it cannot run."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from torch import Tensor

from .workloads import Workload

Call = Callable[[], Any]

OURS = "cpr_kernels"
STRONG = "strong torch"
MATMULS = "matmuls alone"
PUBLISHED = "published code"
RESTATED = "published algorithm, restated"


@dataclass(frozen=True)
class Settings:
    """The settings of a run; written into the results and passed to the memory process.

    Args:
        device: "cpu" or "cuda".
        threads: torch threads, which are the package's too.
        isa: instruction set of the native core ("" keeps the machine's best).
        published: folder of the user's checkout of the published code, or "".
        compiled: whether peers under torch.compile run (they take seconds to compile).
        budget_s: seconds of timing per workload.
        memory: whether peak memory is measured (a process per workload).
        cold: whether calls with flushed caches are timed too.
        quick: tiny workloads, for a smoke test.
    """

    device: str = "cpu"
    threads: int = 1
    isa: str = ""
    published: str = ""
    compiled: bool = True
    budget_s: float = 8.0
    memory: bool = True
    cold: bool = False
    quick: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values, for JSON; `Settings(**...)` reads them back."""
        return asdict(self)


def runs_everywhere(workload: Workload) -> str | None:
    """Returns the `why_not` of a peer that serves every workload."""
    return None


@dataclass(frozen=True)
class Peer:
    """One way to do the work of an op.

    Args:
        name: what the tables call it.
        prepare: inputs of the op -> a call without arguments. Copies and layout changes belong here.
        why_not: workload -> the sentence why this peer does not run it, or None.
        checked: "exact" (equal bit for bit where arithmetic is exact), "near" (equal but for near ties and
            rounding) or "part" (does a part of the work only, so there is no answer to check).
        variant: which of an op's answers is expected, where there are several (see the op's gate).
        graphable: whether a CUDA graph can hold the call.
        warms_itself: needs a call on the real shape before it is measured (a compiler).
    """

    name: str
    prepare: Callable[[Any], Call]
    why_not: Callable[[Workload], str | None] = runs_everywhere
    checked: str = "near"
    variant: str = ""
    graphable: bool = True
    warms_itself: bool = False


class Gate(Protocol):
    """Right answers for one workload; `inputs` are what is then timed."""

    inputs: Any

    def why_wrong(self, peer: Peer) -> str | None:
        """Runs the peer on the gate's inputs: the sentence why its answer is wrong, or None."""
        ...


class Op(Protocol):
    """What a file of an op provides (`cascade.py`, `loss.py`, `enqueue.py`, `train_step.py`)."""

    NAME: str

    def peers(self, settings: Settings) -> list[Peer]:
        """Returns every peer, ours first."""
        ...

    def make_inputs(self, workload: Workload, settings: Settings) -> Any:
        """Returns real-valued inputs."""
        ...

    def gate(self, workload: Workload, settings: Settings) -> Gate:
        """Returns right answers for the workload."""
        ...

    def flops(self, workload: Workload) -> float:
        """Returns the floating-point operations that no exact method can avoid."""
        ...

    def least_bytes(self, workload: Workload) -> float:
        """Returns the bytes that must be read or written once."""
        ...


def not_installed(module: str, package: str) -> str | None:
    """Returns the sentence that a library is missing, or None."""
    if importlib.util.find_spec(module) is None:
        return f"not installed (pip install {package})"
    return None


def first_reason(*reasons: str | None) -> str | None:
    """Returns the first sentence that is one."""
    return next((reason for reason in reasons if reason is not None), None)


def siblings(query_ids: Tensor, key_ids: Tensor) -> Tensor:
    """Returns a mask [B, N], True where an entry is of the query's own source."""
    return key_ids[None, :] == query_ids[:, None]


def gigabytes(count: float) -> str:
    """Returns a size for a sentence."""
    return f"{count / 1e9:.1f} GB"
