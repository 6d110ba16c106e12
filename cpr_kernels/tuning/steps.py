"""The steps of a tuned miner: the joint score, expansion by neighbours, and the hub term."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ..dispatch.fast_path import dispatcher_is_idle, no_graph
from ..dispatch.native import core
from ..mining import Schedule, Stage, cascade_topk

HUB_WEIGHT = 0.5  # of the hub term, as in CSLS (Conneau et al. 2018, section 2.3): half for either side
HUB_SHARE = 20  # the hub term looks at no more than a 20th of the keys


class Expansion(NamedTuple):
    """Says how many neighbours a row takes up, each weighted by its score to a power (Radenovic et al. 2018, 3.4)."""

    neighbors: int
    power: float


class Neighbors(NamedTuple):
    """Holds the most similar keys of each row, best first."""

    indices: Tensor  # [B, k] int64, padded with -1
    scores: Tensor  # [B, k] float32, padded with -inf


def joint_schedule(views: tuple[str, ...], keep: int) -> Schedule:
    """Returns one stage that scores by the mean of all views' inner products."""
    return Schedule([Stage(dict.fromkeys(views, 1.0 / len(views)), keep)])


def joint_neighbors(
    queries: Mapping[str, Tensor],
    keys: Mapping[str, Tensor],
    keep: int,
    query_ids: Tensor | None,
    key_ids: Tensor | None,
) -> Neighbors:
    """Returns the `keep` keys of the highest joint score, one `cascade_topk` of one stage."""
    return Neighbors(
        *cascade_topk(queries, keys, joint_schedule(tuple(keys), keep), query_ids=query_ids, key_ids=key_ids)
    )


def expanded(
    rows: Mapping[str, Tensor], keys: Mapping[str, Tensor], near: Neighbors, expansion: Expansion
) -> dict[str, Tensor]:
    """Returns each row plus its neighbours' weighted sum, the concatenated views brought to length sqrt(V).

    ``rows[v][i] + sum(max(score, 0) ** power * keys[v][j])`` over the first neighbours j of i.
    """
    indices, scores = near.indices[:, : expansion.neighbors], near.scores[:, : expansion.neighbors]
    weights = scores.clamp(min=0) ** expansion.power
    if expansion.power == 0:  # else padding, whose score is -inf, weighs 0
        weights = weights.masked_fill(indices < 0, 0.0)
    if no_graph(*rows.values(), *keys.values(), weights):
        made = core.expand_rows_of_tensors(
            list(rows.values()), [keys[name] for name in rows], indices, weights, torch.get_num_threads()
        )
        if made is not None:
            return dict(zip(rows, made))
    places, weights = indices.clamp(min=0).flatten(), weights.flatten()
    starts = torch.arange(0, len(places), indices.shape[1], device=places.device)
    sums = [  # as functional.embedding_bag calls it, which checks and flattens anew for each view
        torch.embedding_bag(keys[name], places, starts, False, 0, False, weights)[0].add_(row)
        for name, row in rows.items()
    ]
    whole = torch.cat(sums, dim=1)
    length = torch.linalg.vector_norm(whole, dim=1, keepdim=True)
    whole = whole * (len(sums) ** 0.5 / length.clamp(min=1e-12))
    return dict(zip(rows, whole.split([part.shape[1] for part in sums], dim=1)))


def hub_terms(scores: Tensor, count: int) -> Tensor:
    """Returns the mean of each row's `count` highest scores [B, 1]; padding (-inf) is left out, 0 without any."""
    if dispatcher_is_idle() and (terms := core.hub_terms_of_tensors(scores, count)) is not None:
        return terms
    best = scores[:, :count]
    known = (best > -torch.inf).sum(dim=1, keepdim=True)
    return best.nan_to_num(neginf=0.0).sum(dim=1, keepdim=True) / known.clamp_(min=1)


def hub_count(keep: int, num_keys: int, topk: int) -> int:
    """Returns how many neighbours the hub term looks at among `num_keys` keys."""
    return max(topk, min(keep, num_keys // HUB_SHARE))


def less_hubs(near: Neighbors, terms: Tensor, topk: int) -> Neighbors:
    """Returns the `topk` neighbours of the highest ``score - terms[j] / 2``, by (score descending, index ascending)."""
    if dispatcher_is_idle() and (found := core.less_hubs_of_tensors(*near, terms, topk)):
        return Neighbors(*found)
    by_index, order = near.indices.sort(dim=1)
    scores = near.scores.gather(1, order) - HUB_WEIGHT * terms[by_index.clamp(min=0)]
    best, places = scores.sort(dim=1, descending=True, stable=True)
    return Neighbors(by_index.gather(1, places)[:, :topk], best[:, :topk])
