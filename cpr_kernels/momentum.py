"""The momentum encoder's update."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def ema_update_(online: nn.Module, target: nn.Module, momentum: float) -> None:
    """Move `target` toward `online`: ``target = momentum * target + (1 - momentum) * online``.

    Parameters are averaged in one fused pass; buffers (batch-norm statistics) stay the target's own, as in MoCo
    (He et al. 2020, eq. 2). Both modules must have the same structure.

    Args:
        online: the trained module.
        target: its momentum copy; changed in place.
        momentum: weight of the old value, in [0, 1]; 1 leaves the target as it is, 0 copies.

    Raises:
        ValueError: momentum out of range, or modules whose parameters differ in name or shape.
    """
    if not 0.0 <= momentum <= 1.0:
        raise ValueError(f"ema_update_: momentum must lie in [0, 1], got {momentum}")
    source = dict(online.named_parameters())
    goal = dict(target.named_parameters())
    if source.keys() != goal.keys():
        odd = sorted(source.keys() ^ goal.keys())[0]
        raise ValueError(f"ema_update_: online and target must have the same parameters; {odd!r} is only in one")
    for name, parameter in source.items():
        if parameter.shape != goal[name].shape:
            raise ValueError(
                f"ema_update_: {name!r} has shape {list(parameter.shape)} online but {list(goal[name].shape)} in target"
            )
    if goal:
        torch._foreach_lerp_(list(goal.values()), [source[name] for name in goal], 1.0 - momentum)
