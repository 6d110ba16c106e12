"""Launch plans: returns how the native kernels would run a call, without running it, for CUDA also without a device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from .calls import CascadeCall, LossCall, RerankCall, has_unit_inner_stride
from .native import DTYPE_CODES, MIN_CAPABILITY, address, core, on_current_stream


class CudaLimits(NamedTuple):
    """Holds the limits of a CUDA device that the planner reads (csrc/cuda/device/device_limits.h)."""

    capability: int  # 90 for 9.0
    shared_bytes: int  # that a block may have
    cache_bytes: int  # of L2
    clusters_of_16: bool  # blocks


DEVICES = {
    "H200": CudaLimits(90, 232_448, 60 << 20, True),
    "H100": CudaLimits(90, 232_448, 50 << 20, True),
    "A100": CudaLimits(80, 166_912, 40 << 20, False),
    "RTX 4090": CudaLimits(89, 101_376, 72 << 20, False),
    "RTX 3090": CudaLimits(86, 101_376, 6 << 20, False),
}


class CudaCascadePlan(NamedTuple):
    """Describes a cascade on a CUDA device."""

    path: str  # "tiny", "ring" or "huge"
    queries_per_sweep: int
    sweeps: int
    workspace_bytes: int
    select_threads: int  # of a block that selects for one query
    lists_in_shared: bool  # else the longest list is in device memory
    rule: str  # that chose the path

    def __str__(self) -> str:
        if self.path == "tiny":
            how = "one launch"
        else:
            how = f"{counted(self.sweeps, 'sweep')} of up to {counted(self.queries_per_sweep, 'query')}"
        lists = "shared" if self.lists_in_shared else "device"
        return (
            f"{self.path}: {how}, {_amount(self.workspace_bytes)} of workspace, lists in {lists} memory, "
            f"{self.select_threads} threads a query; why: {self.rule}"
        )


class CudaLossPlan(NamedTuple):
    """Describes a loss with its gradient on a CUDA device."""

    parts: int  # of the keys
    keys_per_part: int
    streamed_features: bool  # too many for a block to hold
    workspace_bytes: int
    products: str  # "wgmma" or "mma.sync", and why a device of 9.0 does not use wgmma

    def __str__(self) -> str:
        features = "; features stream through the blocks" if self.streamed_features else ""
        return (
            f"{counted(self.parts, 'part')} of up to {self.keys_per_part} keys, combined in order, "
            f"{_amount(self.workspace_bytes)} of workspace with the gradient{features}; products by {self.products}"
        )


class CpuCascadePlan(NamedTuple):
    """Describes a cascade on the CPU."""

    isa: str
    lanes: int  # float32 numbers in a vector
    threads: int
    queries_per_group: int  # share a visit of the keys
    groups: int
    parts: int  # of the keys; above 1, threads share a group
    passes: int  # over the keys, a sample of them first where there are several
    streamed_stages: int  # decided while the keys stream by
    int16_scores: bool  # by 16-bit products first; what they leave open is scored again exactly
    bias: str  # where key_bias is added; empty without one

    def __str__(self) -> str:
        if self.groups == 0:
            return "nothing to do"
        groups = f"{counted(self.groups, 'group')} of up to {counted(self.queries_per_group, 'query')}"
        if self.threads == 1:
            how = f"one thread, {groups}"
        elif self.parts == 1:
            how = f"{self.threads} threads over queries, {groups}"
        else:
            how = f"{self.threads} threads over panels of keys in {counted(self.parts, 'part')}, {groups}"
        stages = "all stages decided after one pass over the keys"
        if self.streamed_stages:
            stages = (
                f"{counted(self.streamed_stages, 'leading stage')} decided while the keys stream by, "
                f"{counted(self.passes, 'pass')}, the first over a sample"
            )
        if self.int16_scores:
            stages += "; 16-bit products first, and exactly what they leave open"
        if self.bias:
            stages += f"; key_bias is added {self.bias}"
        return f"{self.isa}, {self.lanes} numbers a vector; {how}; {stages}"


class CpuRerankPlan(NamedTuple):
    """Describes a cascade over candidates on the CPU."""

    isa: str
    threads: int

    def __str__(self) -> str:
        return f"{self.isa}; {counted(self.threads, 'thread')} over queries, candidates gathered in blocks"


class CpuLossPlan(NamedTuple):
    """Describes a loss on the CPU."""

    isa: str
    lanes: int
    threads: int
    queries_per_group: int
    groups: int
    parts: int  # of the keys, for any number of threads

    def __str__(self) -> str:
        if self.groups == 0:
            return "nothing to do"
        return (
            f"{self.isa}, {self.lanes} numbers a vector; {counted(self.threads, 'thread')} over "
            f"{counted(self.groups, 'group')} of up to {counted(self.queries_per_group, 'query')} x "
            f"{counted(self.parts, 'part')} of the keys, combined in order"
        )


Plan = CudaCascadePlan | CudaLossPlan | CpuCascadePlan | CpuRerankPlan | CpuLossPlan


def limits_named(device: str | Sequence[int]) -> CudaLimits:
    """Returns the limits of a device by its name, or by (capability, shared bytes, L2 bytes, clusters of 16).

    Raises:
        ValueError: a name that is not known, not four numbers, or a device too old for the kernels.
    """
    if isinstance(device, str):
        if device not in DEVICES:
            raise ValueError(
                f"device must be one of {', '.join(DEVICES)}, or (capability, shared bytes a block, L2 bytes, "
                f"clusters of 16 blocks), got {device!r}"
            )
        return DEVICES[device]
    if len(device) != 4 or not all(isinstance(value, int) and value >= 0 for value in device):
        raise ValueError(
            "device must be a name or four numbers: capability (90 for 9.0), shared bytes a block, L2 bytes, "
            f"clusters of 16 blocks (True or False), got {device!r}"
        )
    capability, shared, cache, clusters = device
    least = 10 * MIN_CAPABILITY[0] + MIN_CAPABILITY[1]
    if capability < least:
        raise ValueError(f"device: the CUDA kernels need capability {least} (8.0) or newer, got {capability}")
    return CudaLimits(capability, shared, cache, bool(clusters))


def limits_of(device: torch.device) -> CudaLimits:
    """Returns the limits of a CUDA device of this machine."""
    with on_current_stream(device):
        return CudaLimits(*core.cuda_limits())


def plan_on_cuda(call: CascadeCall | RerankCall | LossCall, limits: CudaLimits) -> Plan:
    """Returns how the CUDA kernels would run a call on a device with these limits.

    Raises:
        ValueError: a call beyond what they hold (stages, views, weightings, features).
    """
    if isinstance(call, LossCall):
        return CudaLossPlan(*core.plan_cuda_mil_nce(*_loss_sizes(call), limits, True))
    gathered = isinstance(call, RerankCall)
    has_bias = int(call.key_bias is not None)  # an address that is not read
    return CudaCascadePlan(*core.plan_cuda_cascade(*_cascade_sizes(call), has_bias, limits, gathered))


def plan_on_cpu(call: CascadeCall | RerankCall | LossCall) -> Plan:
    """Returns how the CPU kernels would run a call with torch's number of threads."""
    threads, isa = torch.get_num_threads(), core.cpu_isa()
    if isinstance(call, LossCall):
        lanes, *rest = core.plan_cpu_mil_nce(*_loss_sizes(call), threads)
        return CpuLossPlan(isa, lanes, threads, *rest)
    if isinstance(call, RerankCall):
        return CpuRerankPlan(isa, max(1, min(threads, call.queries[0].shape[0])))
    bias = call.key_bias
    if isinstance(bias, FakeTensor):
        bias = torch.zeros(bias.shape)  # any that is finite
    if bias is not None:
        bias = bias.contiguous()
    return CpuCascadePlan(isa, *core.plan_cpu_cascade(*_cascade_sizes(call), address(bias), threads))


def _loss_sizes(call: LossCall) -> tuple[int, tuple[int, int, int]]:
    return DTYPE_CODES[call.query.dtype], (call.query.shape[0], call.keys.shape[0], call.query.shape[1])


def _cascade_sizes(
    call: CascadeCall | RerankCall,
) -> tuple[list[tuple[int, int, int, int, int]], int, int, int, Sequence[float], Sequence[int]]:
    """Returns views, dtype, B, N (C of listed candidates), weights and counts, as the core takes them."""
    query = call.queries[0]
    entries = call.candidates.shape[1] if isinstance(call, RerankCall) else call.keys[0].shape[0]
    views = [
        (*_rows(q), *_rows(key), q.shape[1]) for q, key in zip(call.queries, call.keys)
    ]  # address, stride, address, stride, D
    return views, DTYPE_CODES[query.dtype], query.shape[0], entries, call.stage_weights, call.stage_keep


def _rows(t: Tensor) -> tuple[int, int]:
    """Returns address and stride of the rows that the kernels would read: of a copy where the inner stride is not 1."""
    if not has_unit_inner_stride(t):
        return 0, t.shape[1]
    # a fake tensor has no memory: taken as torch's allocator would place it
    return 0 if isinstance(t, FakeTensor) else t.data_ptr(), t.stride(0)


def counted(count: int, thing: str) -> str:
    """Returns a number with its noun."""
    plural = {"query": "queries", "pass": "passes"}.get(thing, thing + "s")
    return f"{count} {thing if count == 1 else plural}"


def _amount(count: int) -> str:
    return f"{count / 2**10:.0f} KB" if count < 2**20 else f"{count / 2**20:.1f} MB"
