"""The native backend of `cpr::mil_nce`: C++ on CPU tensors, CUDA on CUDA tensors."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..dispatch.calls import LossCall, Sweep
from ..dispatch.native import DTYPE_CODES, address, core, on_current_stream, why_not_cuda

NAME = "native"
BEST = 5  # as in csrc/mil_nce.h


def why_not(call: LossCall) -> str | None:
    """The native core serves CPU tensors, and CUDA tensors where its CUDA part was built, up to float32."""
    device = call.query.device
    if call.sharded:
        return call.sharded
    if device.type not in ("cpu", "cuda"):
        return f"there are no native kernels for {device.type} tensors"
    return why_unsupported(call, device.type) or (why_not_cuda(device) if device.type == "cuda" else None)


def why_unsupported(call: LossCall, device_type: str) -> str | None:
    """None where the native kernels can run the call on a device of that type, else the sentence."""
    if call.sharded:
        return call.sharded
    if call.negatives is not None and device_type != "cpu":
        return "the CUDA kernels sweep all keys, and negatives list some for each query"
    if call.query.dtype not in DTYPE_CODES:
        return f"the native kernels compute in float32, and {call.query.dtype} asks for more"
    return None


Addresses = tuple[int, ...]


class _Arguments:
    """A call as the core takes it; keeps every tensor alive for as long as it lives."""

    def __init__(self, call: LossCall) -> None:
        self.call = call.with_contiguous_rows()

    def packed(
        self,
    ) -> tuple[Addresses, int, tuple[int, int, int, int, int], Addresses, float, Addresses, int]:
        """Positional arguments shared by the core's functions, typed one by one in `core.pyi`."""
        call = self.call
        drawn = -1 if call.negatives is None else call.negatives.shape[1]
        return (
            tuple(x for t in (call.query, call.positive, call.keys) for x in (t.data_ptr(), t.stride(0))),
            DTYPE_CODES[call.query.dtype],
            (call.query.shape[0], call.keys.shape[0], call.query.shape[1], call.positives.shape[1], drawn),
            (call.positives.data_ptr(), address(call.negatives)),
            call.temperature,
            tuple(address(t) for t in (call.query_ids, call.key_ids, call.use_own)),
            call.siblings,
        )


def sweep(call: LossCall, want_gradient: bool, want_stats: bool = False) -> Sweep:
    """The loss and what its gradients need, in one pass over the keys; see `reference.sweep`."""
    device = call.query.device
    if device.type == "cuda":
        with on_current_stream(device) as stream:
            return sweep_on_stream(call, want_gradient, core, stream, want_stats)
    out, places = _outputs(call, want_gradient, want_stats)
    arguments = _Arguments(call)
    core.mil_nce_sweep(*arguments.packed(), torch.get_num_threads(), places)
    return out


class Share(NamedTuple):
    """What these keys add to each query's sums, the own pair aside; for keys that are a share of a queue."""

    sums: (
        Tensor  # [B, 4] highest score, sum of exp((score - highest) / T), and both of the positives; 0: none
    )
    attended: (
        Tensor  # [B, 2, D] keys weighted by those exponentials, positives by theirs; D = 0 without gradient
    )
    ranks: Tensor  # [B, 2] int32: scores above the own pair's, and bit i: the i-th best is a positive
    best: Tensor  # [B, 5] highest scores, -inf where there are none


def share(call: LossCall, want_gradient: bool, own: Tensor | None = None) -> Share:
    """What a share of a queue leaves for its queries; `own` [B] float32, their own pairs' scores: ranks too."""
    rows, dim = call.query.shape
    ranked = 0 if own is None else rows
    out = Share(
        torch.empty(rows, 4, dtype=torch.float32),
        torch.empty(rows, 2, dim if want_gradient else 0, dtype=torch.float32),
        torch.empty(ranked, 2, dtype=torch.int32),
        torch.empty(ranked, BEST, dtype=torch.float32),
    )
    arguments = _Arguments(call)
    attended = out.attended.data_ptr() if want_gradient else 0
    ranks = (0, 0, 0) if own is None else (own.data_ptr(), out.ranks.data_ptr(), out.best.data_ptr())
    core.mil_nce_share(*arguments.packed(), torch.get_num_threads(), (out.sums.data_ptr(), attended, *ranks))
    return out


def keys_gradient(call: LossCall, grad_loss: Tensor, lse_all: Tensor, lse_positive: Tensor) -> Tensor:
    """d (grad_loss . loss) / d keys: [N, D] in the keys' dtype; see `reference.keys_gradient`."""
    device = call.query.device
    if device.type == "cuda":
        with on_current_stream(device) as stream:
            return keys_gradient_on_stream(call, (grad_loss, lse_all, lse_positive), core, stream)
    grad_keys = torch.empty(call.keys.shape, dtype=torch.float32)
    arguments = _Arguments(call)
    given = [t.float().contiguous() for t in (grad_loss, lse_all, lse_positive)]
    places = (*(t.data_ptr() for t in given), grad_keys.data_ptr())
    core.mil_nce_keys_gradient(*arguments.packed(), torch.get_num_threads(), *places)
    return grad_keys.to(call.keys.dtype)


def _outputs(call: LossCall, want_gradient: bool, want_stats: bool) -> tuple[Sweep, tuple[int, ...]]:
    """Empty tensors for a sweep to fill, and their addresses."""
    rows, dim = call.query.shape
    device = call.query.device
    loss, lse_all, lse_positive, own_weight = (
        torch.empty(rows, dtype=torch.float32, device=device) for _ in range(4)
    )
    grad_query = torch.empty(rows if want_gradient else 0, dim, dtype=torch.float32, device=device)
    stats = torch.empty(rows if want_stats else 0, 3, dtype=torch.int64, device=device)
    out = Sweep(loss, lse_all, lse_positive, own_weight, grad_query, stats)
    places = (*(t.data_ptr() for t in out[:4]), grad_query.data_ptr() if want_gradient else 0)
    return out, (*places, stats.data_ptr() if want_stats else 0)


def sweep_on_stream(
    call: LossCall, want_gradient: bool, core: Any, stream: int, want_stats: bool = False
) -> Sweep:
    """Queue the CUDA sweep of `core` on a stream of the current device; the workspace is torch's memory."""
    out, places = _outputs(call, want_gradient, want_stats)
    arguments = _Arguments(call)
    size = core.cuda_mil_nce_workspace(*arguments.packed(), True, want_gradient, want_stats)
    workspace = torch.empty(size, dtype=torch.uint8, device=call.query.device)
    core.cuda_mil_nce_sweep(*arguments.packed(), places, workspace.data_ptr(), size, stream)
    return out


def keys_gradient_on_stream(
    call: LossCall, given: tuple[Tensor, Tensor, Tensor], core: Any, stream: int
) -> Tensor:
    """Queue the CUDA gradient of the keys; `given` is grad_loss, lse_all, lse_positive, each [B]."""
    grad_keys = torch.empty(call.keys.shape, dtype=torch.float32, device=call.keys.device)
    arguments = _Arguments(call)
    packed = [t.float().contiguous() for t in given]
    places = (*(t.data_ptr() for t in packed), grad_keys.data_ptr())
    size = core.cuda_mil_nce_workspace(*arguments.packed(), False, True, False)
    workspace = torch.empty(size, dtype=torch.uint8, device=call.query.device)
    core.cuda_mil_nce_keys_gradient(*arguments.packed(), places, workspace.data_ptr(), size, stream)
    return grad_keys.to(call.keys.dtype)
