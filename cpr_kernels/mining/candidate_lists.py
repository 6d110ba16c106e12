"""Candidate lists for devices: in ascending order, so that among equal scores the lower entry comes earlier."""

from __future__ import annotations

import torch
from torch import Tensor


def in_order(candidates: Tensor, num_keys: int) -> Tensor:
    """[B, C] distinct entries ascending, -1 between them for padding, repeats and what lies beyond the queue."""
    listed = candidates.masked_fill(candidates >= num_keys, -1).sort(dim=1).values
    repeat = listed[:, 1:] == listed[:, :-1]
    listed[:, 1:].masked_fill_(repeat, -1)
    return listed.clamp_(min=-1)


def entries_at(listed: Tensor, positions: Tensor) -> Tensor:
    """The entries [B, k] at positions [B, k] of the lists; -1 stays."""
    if listed.shape[1] == 0:
        return positions
    return torch.where(positions >= 0, listed.gather(1, positions.clamp(min=0)), -1)
