"""The fast path of plain CPU tensors, which bypasses torch's dispatcher where that would only pass them on.

Between other work of torch, with cold caches, the dispatcher and the checks of `ops` take some 170 us of a cascade
call, the fast path 70 (`bench/cpu_notes.md`). Both give the same result; every other call runs `torch.ops.cpr`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.compiler import is_compiling

from .native import core

try:
    from torch._C import (
        _are_functorch_transforms_active,
        _is_torch_function_mode_enabled,
        _is_tracing,
        _len_torch_dispatch_stack,
    )
    from torch._C._autograd import _profiler_enabled
except ImportError:  # a torch that names them differently: always the op
    _CONNECTED = False
else:
    _CONNECTED = core.connect_torch(Tensor, torch.empty, torch.int64, torch.float32, torch.device("cpu"))


def dispatcher_is_idle() -> bool:
    """Returns True where nothing compiles, traces, transforms, records or overrides torch's calls on this thread."""
    return (
        not is_compiling()
        and _CONNECTED
        and not _len_torch_dispatch_stack()
        and not _is_tracing()
        and not _are_functorch_transforms_active()
        and forward_ad._current_level < 0
        and not _profiler_enabled()
        and not _is_torch_function_mode_enabled()
    )


def no_graph(*tensors: Tensor) -> bool:
    """Returns True where, besides, no graph is recorded of what is computed from the tensors."""
    recorded = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    return not recorded and dispatcher_is_idle()
