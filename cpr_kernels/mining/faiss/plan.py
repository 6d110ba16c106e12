"""Decides whether an index pays: from which queue and stage 1 on FAISS is faster than the exact cascade."""

from __future__ import annotations

from itertools import pairwise
from math import exp, log
from typing import NamedTuple

from ..schedule import Schedule
from .store import GPU_MAX_K

MAX_SHARE = 0.1  # of the queue that stage 1 may keep: beyond, a search returns entries slower than a sweep scores them
# What stage 1 keeps, and the queue from which an IVF-Flat search is faster than the exact cascade: 64 queries, two
# views of 101 numbers, 2 cores with AVX-512, `python -m bench scale`.
CROSSOVER = ((5, 30_000), (100, 50_000), (1_000, 250_000))
MAX_CELLS = 65_536


class FaissPlan(NamedTuple):
    """Says whether an index pays, which one, and why."""

    use: bool
    factory: str  # of FAISS, "" where none is advised
    reason: str

    def __str__(self) -> str:
        return f"FAISS {self.factory}: {self.reason}" if self.use else f"no index: {self.reason}"


def why_not_schedule(keep: int, num_keys: int, max_k: int = 2**31 - 1) -> str | None:
    """Returns None where an index can serve a stage 1 that keeps `keep` of `num_keys`, else why it cannot."""
    if num_keys and keep > max(MAX_SHARE * num_keys, 16):
        return (
            f"stage 1 keeps {keep:,} of {num_keys:,} entries ({keep / num_keys:.0%}), and an index pays up to "
            f"{MAX_SHARE:.0%}: returning that many neighbours takes longer than scoring the whole queue; "
            "use backend='auto', or a stage 1 that keeps less"
        )
    if keep > max_k:
        return f"stage 1 keeps {keep:,} entries, and a FAISS search on a GPU returns at most {max_k:,}"
    return None


def crossover(keep: int) -> int:
    """Returns the queue from which an index is faster than the exact cascade where stage 1 keeps `keep`.

    Between measured points the value is on a straight line of logarithms, beyond the last one in proportion to `keep`.
    """
    (least, from_least), *_ = CROSSOVER
    if keep <= least:
        return from_least
    for (low, from_low), (high, from_high) in pairwise(CROSSOVER):
        if keep <= high:
            share = log(keep / low) / log(high / low)
            return round(exp(log(from_low) + share * log(from_high / from_low)))
    most, from_most = CROSSOVER[-1]
    return keep * from_most // most


def cells_for(num_keys: int) -> int:
    """Returns the number of cells of an IVF index: the power of two at or below 4 sqrt(N)."""
    return min(max(2 ** (int(4 * num_keys**0.5).bit_length() - 1), 16), MAX_CELLS)


def plan_faiss(num_keys: int, schedule: Schedule, *, device: str = "cpu") -> FaissPlan:
    """Says whether a :class:`FaissIndex` pays for a queue of N entries under a schedule, and which one.

    On CPU by the crossover measured on two cores against the exact native cascade (`CROSSOVER`); an index also
    costs its building and, every step, the replacing of entries, which the reason names. On a GPU only FAISS's
    limits are known: nothing has been measured there.

    Args:
        num_keys: N.
        schedule: what is to be mined; only what its stage 1 keeps matters.
        device: "cpu" or "cuda".

    Raises:
        ValueError: another device, or no queue.

    Example:
        >>> print(plan_faiss(1_000_000, parse_schedule("flow:100,rgb:20,flow:5")))
        FAISS IVF2048,Flat: ...
    """
    if device not in ("cpu", "cuda"):
        raise ValueError(f"plan_faiss: device must be 'cpu' or 'cuda', got {device!r}")
    if num_keys < 1 or num_keys != int(num_keys):
        raise ValueError(f"plan_faiss: num_keys must be >= 1 and a whole number, got {num_keys}")
    num_keys = int(num_keys)
    keep = Schedule(schedule)[0].keep
    refused = why_not_schedule(keep, num_keys, GPU_MAX_K if device == "cuda" else 2**31 - 1)
    if refused:
        return FaissPlan(False, "", refused)
    factory = f"IVF{cells_for(num_keys)},Flat"
    if device == "cuda":
        return FaissPlan(
            False, "", f"FAISS could serve it ({factory}), but on a GPU nothing has been measured yet"
        )
    least = crossover(keep)
    if num_keys < least:
        return FaissPlan(
            False, "", f"stage 1 keeps {keep:,}, where an index is faster from about {least:,} entries on, and there "
            f"are {num_keys:,}: the exact cascade is faster, and exact",
        )  # fmt: skip
    return FaissPlan(
        True, factory, f"stage 1 keeps {keep:,} of {num_keys:,} entries; from about {least:,} on a search is faster "
        "than the exact sweep, at the price of recall (faiss_recall measures it), of the build and of every update",
    )  # fmt: skip
