"""Computes what IIC adds to contrastive learning: intra-negatives, and NCE over negatives drawn from the bank."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

IntraNegative = Literal["repeat", "shuffle"]
SEGMENTS = 4  # of which shuffling exchanges two


def intra_negatives(clips: Tensor, kind: IntraNegative, generator: torch.Generator) -> Tensor:
    """Returns the clips [B, C, T, H, W] with their motion broken, drawn from `generator` (on the CPU).

    repeat: one frame of the clip, T times. shuffle: two of four segments change places. Source: Tao et al. 2020, "Self-
    supervised video representation learning using inter-intra contrastive framework", section 3.3.
    """
    batch, frames = clips.shape[0], clips.shape[2]
    if kind == "repeat":
        order = torch.randint(frames, (batch, 1), generator=generator).expand(batch, frames)
    else:
        order = torch.stack([_exchanged(frames, generator) for _ in range(batch)])
    index = order.to(clips.device)[:, None, :, None, None].expand_as(clips)
    return clips.gather(2, index)


def _exchanged(frames: int, generator: torch.Generator) -> Tensor:
    """Returns frame numbers with two segments exchanged, [frames]."""
    if frames < SEGMENTS:
        raise ValueError(f"shuffle: needs at least {SEGMENTS} frames, got {frames}")
    parts = list(torch.tensor_split(torch.arange(frames), SEGMENTS))
    first, second = torch.randperm(SEGMENTS, generator=generator)[:2].tolist()
    parts[first], parts[second] = parts[second], parts[first]
    return torch.cat(parts)


def drawn_nce(
    query: Tensor,
    positive: Tensor,
    keys: Tensor,
    drawn: Tensor,
    temperature: float,
    *,
    mined: Tensor | None = None,
    broken: tuple[Tensor, Tensor] | None = None,
    left_out: Tensor | None = None,
) -> Tensor:
    """Returns MIL-NCE over negatives drawn from a bank: ``logsumexp(all) - logsumexp(positives)``, [B].

    A row of the bank counts as often as it was drawn. Mined rows are positives, once each, drawn or not. With
    nothing mined it is IIC's NCE; with every row drawn once it is :func:`cpr_kernels.mil_nce`.

    Args:
        query: [B, D], the only argument with gradients.
        positive: [B, D], the own positive of each query.
        keys: [M, D], the bank of the other view.
        drawn: [B, K] int64 rows, the own one never among them (`MemoryBank.draw`).
        temperature: divisor of the logits, > 0.
        mined: [B, P] int64 rows, -1 is padding.
        broken: intra-negatives: the queries' own [B, D], and their bank [M, D], of which the drawn rows count too.
        left_out: [B, M] bool, rows that are in neither sum: never written, or siblings.
    """
    counts = torch.zeros(len(query), len(keys), device=query.device, dtype=query.dtype)
    counts.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=query.dtype))
    right = torch.zeros_like(counts, dtype=torch.bool)
    if mined is not None and mined.shape[1]:
        # one column more takes the padding
        padded = torch.zeros(len(query), len(keys) + 1, dtype=torch.bool, device=query.device)
        right = padded.scatter_(1, torch.where(mined >= 0, mined, len(keys)), True)[:, :-1]
    if left_out is not None:
        counts, right = counts.masked_fill(left_out, 0), right & ~left_out
    logits = query @ keys.to(query.dtype).T / temperature
    own = (query * positive).sum(dim=1, keepdim=True) / temperature
    whole = [own, logits + torch.where(right, 1, counts).log()]
    if broken is not None:
        whole.append((query * broken[0]).sum(dim=1, keepdim=True) / temperature)
        whole.append(query @ broken[1].to(query.dtype).T / temperature + counts.log())
    positives = torch.cat((own, logits.masked_fill(~right, -torch.inf)), dim=1)
    return torch.cat(whole, dim=1).logsumexp(dim=1) - positives.logsumexp(dim=1)
