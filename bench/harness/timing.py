"""Times all peers in one process, interleaved (A B C A B C ...), so that noise falls on all alike.

A turn is a burst of calls, about two milliseconds of them, and counts as one sample: seconds per call. Fast
peers get up to 60 turns, slow ones fewer, spread evenly over the rounds, within the time budget. Ratios are
taken within a round (each sample of a peer against our sample nearest in time) and their median is reported:
a machine that is slow for a while is slow for both sides of a ratio.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

import torch

from .peer import Call

Sampler = Callable[[int], float]  # how many calls -> seconds for all of them

BURST_S = 0.002
MOST_CALLS = 200
MOST_TURNS = 60
LEAST_TURNS = 5
LEAST_TURNS_SLOW = 3  # of peers that take more than SLOW_S a turn
SLOW_S = 0.5
FLUSH_BYTES = 256 << 20  # above any last-level cache here, and twice the L2 of the largest GPU


@dataclass
class Timing:
    """Samples of one peer, in seconds per call."""

    repeats: int  # calls in a burst
    rounds: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Returns the middle sample."""
        return median(self.seconds)

    def quantile(self, share: float) -> float:
        """Returns the sample below which this share of them is."""
        return quantile(self.seconds, share)

    def times_ours(self, ours: Timing) -> list[float]:
        """Returns each sample over our sample nearest in time."""
        return [
            seconds / min(zip(ours.rounds, ours.seconds), key=lambda other: abs(other[0] - turn))[1]
            for turn, seconds in zip(self.rounds, self.seconds)
        ]


def quantile(values: Sequence[float], share: float) -> float:
    """Returns the value below which this share of the values is (nearest rank)."""
    ranked = sorted(values)
    return ranked[min(int(share * len(ranked)), len(ranked) - 1)]


def cpu_sampler(call: Call) -> Sampler:
    """Returns the wall-clock time of a burst on the CPU."""

    def sample(calls: int) -> float:
        begin = time.perf_counter()
        for _ in range(calls):
            call()
        return time.perf_counter() - begin

    return sample


def cold(call: Call, device: str) -> Sampler:
    """Times a call after the caches were overwritten; only the call is timed. A burst is one call, counted as all."""
    flushed = torch.empty(FLUSH_BYTES // 4, dtype=torch.float32, device=device)
    one = cuda_sampler(call) if device == "cuda" else cpu_sampler(call)

    def sample(calls: int) -> float:
        flushed.zero_()
        return one(1) * calls

    return sample


def cuda_sampler(call: Call) -> Sampler:
    """Returns the time between two CUDA events around a burst."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def sample(calls: int) -> float:
        start.record()
        for _ in range(calls):
            call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3

    return sample


def graphed(call: Call) -> Call:
    """Returns the call captured into a CUDA graph; what comes back replays it.

    Raises:
        RuntimeError: the call cannot be captured (it waits for the device, or allocates outside torch).
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = call()

    def replay() -> object:
        graph.replay()
        return kept  # the graph's outputs live as long as the call

    return replay


def interleave(samplers: Mapping[str, Sampler], budget_s: float) -> dict[str, Timing]:
    """Times every sampler alternately for about `budget_s` seconds in all; each gets at least a few turns."""
    timings, turns = {}, {}
    share = budget_s / max(len(samplers), 1)
    for name, sample in samplers.items():
        once = sample(1)  # warm-up: code, caches, pools
        if once < SLOW_S:
            once = min(sample(1), sample(1))
        repeats = max(1, min(MOST_CALLS, round(BURST_S / max(once, 1e-9))))
        burst = once * repeats
        least = LEAST_TURNS if burst < SLOW_S else LEAST_TURNS_SLOW
        timings[name] = Timing(repeats)
        turns[name] = max(least, min(MOST_TURNS, int(share / max(burst, 1e-9))))
    rounds = max(turns.values(), default=0)
    for turn in range(rounds):
        for name, sample in samplers.items():
            due = (turn + 1) * turns[name] // rounds > turn * turns[name] // rounds
            if due:
                timings[name].rounds.append(turn)
                timings[name].seconds.append(sample(timings[name].repeats) / timings[name].repeats)
    return timings
