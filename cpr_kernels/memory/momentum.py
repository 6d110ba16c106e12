"""Updates the momentum encoder."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def ema_update_(online: nn.Module, target: nn.Module, momentum: float) -> None:
    """Moves `target` toward `online`: ``target = momentum * target + (1 - momentum) * online``.

    Parameters are averaged in one fused pass (He et al. 2020, MoCo, eq. 2); buffers such as batch-norm
    statistics are not touched: as in MoCo, the target gathers its own by running in train mode. Keep
    it in float32: in bfloat16 a step of ``1 - momentum = 0.001`` is smaller than the rounding and gets lost.

    Args:
        online: the trained module, without a `DistributedDataParallel` or `torch.compile` wrapper.
        target: its momentum copy, of the same structure, dtypes and device; changed in place.
        momentum: weight of the old value, in [0, 1]; 1 leaves the target as it is, 0 copies.

    Raises:
        ValueError: momentum out of range, or parameters that differ in name, shape, dtype or device.
    """
    if not 0.0 <= momentum <= 1.0:
        raise ValueError(f"ema_update_: momentum must lie in [0, 1], got {momentum}")
    source = dict(online.named_parameters())
    goal = dict(target.named_parameters())
    if source.keys() != goal.keys():
        odd = sorted(source.keys() ^ goal.keys())
        wrapped = any(name.startswith(("module.", "_orig_mod.")) for name in odd)
        raise ValueError(
            f"ema_update_: online and target must have the same parameters; {odd[0]!r} is only in one"
            + ("; unwrap the other (.module, ._orig_mod)" if wrapped else "")
        )
    for name, parameter in source.items():
        mine, other = ((list(p.shape), p.dtype, p.device) for p in (parameter, goal[name]))
        for what, online_has, target_has in zip(("shape", "dtype", "device"), mine, other):
            if online_has != target_has:
                raise ValueError(
                    f"ema_update_: {name!r} has {what} {online_has} online but {target_has} in target"
                )
    if goal:
        torch._foreach_lerp_(list(goal.values()), [source[name] for name in goal], 1.0 - momentum)
