"""Sorts candidate lists for devices: ascending, so that among equal scores the lower entry comes earlier."""

from __future__ import annotations

import torch
from torch import Tensor


def sorted_unique(candidates: Tensor, num_keys: int) -> Tensor:
    """Returns distinct entries [B, C] ascending, -1 for padding, repeats and indices of N or more."""
    listed = candidates.masked_fill(candidates >= num_keys, -1).sort(dim=1).values
    repeat = listed[:, 1:] == listed[:, :-1]
    listed[:, 1:].masked_fill_(repeat, -1)
    return listed.clamp_(min=-1)


def gather_entries(listed: Tensor, positions: Tensor) -> Tensor:
    """Returns the entries [B, k] at positions [B, k] of the lists [B, C]; -1 stays -1."""
    if listed.shape[1] == 0:
        return positions
    return torch.where(positions >= 0, listed.gather(1, positions.clamp(min=0)), -1)


def bias_of_listed(key_bias: Tensor, listed: Tensor) -> Tensor:
    """Returns the bias of listed entries [B, C], of padding any; rows begin at multiples of four numbers."""
    at = torch.nn.functional.pad(listed.clamp(min=0), (0, -listed.shape[1] % 4))
    return key_bias[at] if len(key_bias) else key_bias.new_zeros(at.shape)
