"""Leave-one-view-out agreement: pairs mined without a view, judged by the neighbours in that view."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..mining import cascade_topk, coclr_schedule

WITNESS_SHARE = 50  # a view vouches for a 50th of the rows
WITNESS_LEAST = 10
COPIES = 0.9  # views that share so much of their rows' neighbours are copies
BLOCK = 1 << 24  # comparisons at a time


class Votes(NamedTuple):
    """Holds what the pairs mined by each query receive from the views left out."""

    agreed: Tensor  # [U, Q, N] float32, pairs that are mutual neighbours in view u, whitened by power q
    pairs: Tensor  # [U, N] float32, pairs of which both rows hold view u

    def agreement(self, weights: Tensor | None = None) -> Tensor:
        """Returns the agreement [R]: the highest, over the powers, of the mean over the views of ``agreed / pairs``.

        Args:
            weights: [N, R] how often each query counts, for R resamples; None counts each once, and R is 1.
        """
        if weights is None:
            weights = self.pairs.new_ones(self.pairs.shape[1], 1)
        pairs = (self.pairs @ weights)[:, None]  # [U, 1, R]
        share = (self.agreed @ weights) / pairs.clamp(min=1e-12)  # [U, Q, R]
        return (share.sum(dim=0) / (pairs > 0).sum(dim=0).clamp(min=1)).amax(dim=0)

    def influence(self) -> Tensor:
        """Returns how far each query moves :meth:`agreement`, [N]: its derivative by the query's weight.

        The root of the sum of its squares is the agreement's standard error (the infinitesimal jackknife, Efron 1982,
        section 6.3), which resamples of the queries would estimate with noise.
        """
        _, moved = self.by_view(self.best_power())
        return moved.sum(dim=0) / (self.pairs.sum(dim=1) > 0).sum().clamp(min=1)

    def best_power(self) -> int:
        """Returns which of the Q powers makes the agreement highest."""
        share = self.agreed.sum(dim=2) / self.pairs.sum(dim=1)[:, None].clamp(min=1e-12)  # [U, Q]
        return int(share.sum(dim=0).argmax())

    def by_view(self, power: int) -> tuple[Tensor, Tensor]:
        """Returns each view's share of agreed pairs [U] at one of the powers, and its derivative by query [U, N]."""
        pairs = self.pairs.sum(dim=1)[:, None].clamp(min=1e-12)  # [U, 1]
        share = self.agreed[:, power].sum(dim=1, keepdim=True) / pairs
        return share[:, 0], (self.agreed[:, power] - share * self.pairs) / pairs


def joined(of_views: Sequence[Votes]) -> Votes:
    """Returns the votes of several views, each as :func:`votes_of` returns them."""
    return Votes(*(torch.stack(part) for part in zip(*of_views)))


def witness_size(rows: int) -> int:
    """Returns how many neighbours of a row a view vouches for; of a few rows no more than a quarter."""
    return max(1, min(max(WITNESS_LEAST, rows // WITNESS_SHARE), rows // 4))


def view_neighbors(rows: Tensor, ids: Tensor, held: Tensor) -> Tensor:
    """Returns the nearest rows of each row in one view, [N, K] int64 padded with -1.

    Args:
        rows: [N, R] unit rows.
        ids: [N] source ids; a row never vouches for one of its source.
        held: [N] bool, the rows that hold the view; others take no part.
    """
    key_ids = torch.where(held, ids, -1)
    schedule = coclr_schedule("view", witness_size(len(rows)))
    near, _ = cascade_topk({"view": rows}, {"view": rows}, schedule, query_ids=ids, key_ids=key_ids)
    return near


def is_listed(entries: Tensor, lists: Tensor) -> Tensor:
    """Returns True [N, k] where an entry of [N, k] is in its row's list of [N, K]; padding (-1) is False."""
    step = max(1, BLOCK // max(1, entries.shape[1] * lists.shape[1]))
    parts = [
        (some[:, None, :] == block[:, :, None]).any(dim=2)
        for block, some in zip(entries.split(step), lists.split(step))
    ]
    return torch.cat(parts) & (entries >= 0)


def is_mutual(mined: Tensor, near: Tensor) -> Tensor:
    """Returns True [N, k] where a mined row j is among the neighbours [N, K] of its query i, and i among those of j."""
    queries = torch.arange(len(mined), device=mined.device)[:, None].expand_as(mined)
    back = is_listed(queries.reshape(-1, 1), near[mined.clamp(min=0).reshape(-1)])
    return is_listed(mined, near) & back.view_as(mined)


def votes_of(mined: Tensor, near: Sequence[Tensor], held: Tensor) -> Votes:
    """Returns one view's votes on the rows [N, k] mined by each query, without the dimension U.

    Args:
        mined: entries, -1 is padding.
        near: the view's neighbours [N, K] at each of Q powers of whitening.
        held: [N] bool, the rows that hold the view.
    """
    counted = (mined >= 0) & held[mined.clamp(min=0)] & held[:, None]
    agreed = torch.stack([(is_mutual(mined, lists) & counted).sum(dim=1) for lists in near])
    return Votes(agreed.float(), counted.sum(dim=1).float())


def copies(near: Mapping[str, Tensor]) -> list[tuple[str, ...]]:
    """Returns the views grouped so that copies, which share their rows' neighbours, are together."""
    groups: list[tuple[str, ...]] = []
    for view, lists in near.items():
        for i, group in enumerate(groups):
            other = near[group[0]]
            shared = float(is_listed(lists, other).sum()) / max(1, int((lists >= 0).sum()))
            if shared >= COPIES:
                groups[i] = (*group, view)
                break
        else:
            groups.append((view,))
    return groups


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Returns Spearman's rank correlation; equal numbers share the mean of their ranks, NaN where it has no value."""
    if len(first) < 2:
        return math.nan
    ranks = []
    for numbers in (first, second):
        x = torch.tensor(numbers, dtype=torch.float64)
        ranks.append((x[:, None] > x).double().sum(1) + 0.5 * (x[:, None] == x).double().sum(1))
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])
