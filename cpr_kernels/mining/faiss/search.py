"""From an index's proposals to the cascade's result: who may be proposed, when to search again, how to finish."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...dispatch.calls import CascadeCall
from .plan import why_not_schedule

if TYPE_CHECKING:
    from ..schedule import Schedule
    from .index import FaissIndex

EXACT_FROM = 0.25  # a search for more than this share of the index costs more than the exact cascade
SCORE_ERROR = 2.0**-17  # of |query| |key|: two ways of summing 128 products in float32 differ by less


class SearchReport(NamedTuple):
    """How the last call went."""

    queries: int = 0
    searches: int = 0  # rounds
    widened: int = 0  # queries that were searched again, wider
    exact: int = 0  # queries that the index could not fill and the exact cascade answered


def eligible(call: CascadeCall, slots: Tensor, of_query: Tensor) -> Tensor:
    """True [n, C] where the entry proposed may be selected by its query."""
    good = slots >= 0
    at = slots.clamp(min=0)
    if call.key_ids is not None:
        source = call.key_ids[at]
        good &= source >= 0
        if call.query_ids is not None:
            good &= source != call.query_ids[of_query, None]
    if call.exclude is not None:
        good &= ~call.exclude[of_query[:, None], at]
    return good


def _filled(
    index: FaissIndex, good: np.ndarray, scores: np.ndarray, norms: np.ndarray, keep: int
) -> np.ndarray:
    """[n] True where a query has `keep` eligible entries; of an exact index, with nothing better or equal unseen."""
    found = good.cumsum(axis=1)
    enough = found[:, -1] >= keep
    if index.store.exact:
        at = np.minimum((found < keep).sum(axis=1), good.shape[1] - 1)  # where the keep-th eligible lies
        gap = np.take_along_axis(scores, at[:, None], axis=1)[:, 0] - scores[:, -1]
        enough &= gap > SCORE_ERROR * norms * index.longest
    return enough


def propose(
    index: FaissIndex, call: CascadeCall, vectors: np.ndarray
) -> tuple[list[Tensor], Tensor, SearchReport]:
    """Candidates of stage 1 by the index: [B, C] parts in order of search, each -1 for queries settled elsewhere;
    the queries that it could not fill; and how it went.
    """
    store, keep = index.store, call.stage_keep[0]
    queries = len(vectors)
    norms = np.linalg.norm(vectors, axis=1)
    pending = np.flatnonzero(np.isfinite(norms))
    beyond = [np.flatnonzero(~np.isfinite(norms))]  # scores that are not numbers: exactly
    overfetch = index.settings.overfetch or (2.0 if store.coded else 1.0)
    fetch, effort, rounds, widened = min(int(keep * overfetch) + index.settings.spare, store.max_k), 1, 0, 0
    most = min(max(EXACT_FROM * store.held, 2 * fetch), store.max_k)
    parts: list[Tensor] = []
    while len(pending) and store.held:
        if fetch > most:
            beyond.append(pending)
            break
        slots, scores, whole = store.search(vectors[pending], fetch, effort, index.settings.effort)
        rounds += 1
        of_query = torch.from_numpy(pending)
        entries = torch.from_numpy(slots)
        good = eligible(call, entries, of_query)
        done = (
            np.full(len(pending), True)
            if whole
            else _filled(index, good.numpy(), scores, norms[pending], keep)
        )
        settled = torch.from_numpy(done)
        part = torch.full((queries, entries.shape[1]), -1, dtype=torch.int64)
        part[of_query[settled]] = entries.masked_fill(~good, -1)[settled]
        parts.append(part)
        pending = pending[~done]
        widened += len(pending)
        fetch, effort = 2 * fetch, 2 * effort
    exactly = torch.from_numpy(np.concatenate(beyond))
    return parts, exactly, SearchReport(queries, rounds, widened, len(exactly))


@torch.no_grad()
def run_on_index(index: FaissIndex, call: CascadeCall, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """The cascade of a checked call, stage 1's survivors proposed by `index` for queries' `vectors` [B, D]."""
    reason = why_not_schedule(call.stage_keep[0], call.keys[0].shape[0], index.store.max_k)
    if reason:
        raise ValueError(f"backend='faiss' cannot run this call: {reason}")
    on_host = call._replace(
        key_ids=None if call.key_ids is None else call.key_ids.cpu(),
        query_ids=None if call.query_ids is None else call.query_ids.cpu(),
        exclude=None if call.exclude is None else call.exclude.cpu(),
    )
    parts, exactly, index.report = propose(index, on_host, vectors.detach().float().cpu().numpy())
    device = call.keys[0].device
    odd = torch.from_numpy(index.odd).expand(len(vectors), -1)
    candidates = torch.cat([*parts, odd], dim=1).to(device)
    indices, scores = torch.ops.cpr.cascade_rerank(call.queries, call.keys, candidates, *call[2:])
    if len(exactly):
        at = exactly.to(device)
        rest = call._replace(
            queries=[query[at] for query in call.queries],
            query_ids=None if call.query_ids is None else call.query_ids[at],
            exclude=None if call.exclude is None else call.exclude[at],
        )
        indices[at], scores[at] = torch.ops.cpr.cascade_topk(*rest)
    return indices, scores


class FaissRecall(NamedTuple):
    """How much of the exact cascade an index finds."""

    first_stage: float  # of the entries that the exact stage 1 keeps, the share that the index leaves in
    topk: float  # of the exact cascade's final entries, the share that comes out
    same_queries: float  # queries whose final entries are all the same
    report: SearchReport


def faiss_recall(
    index: FaissIndex,
    queries: Mapping[str, Tensor],
    keys: Mapping[str, Tensor],
    schedule: Schedule,
    **masks: Tensor | None,
) -> FaissRecall:
    """Measure an index against the exact cascade on queries of your own (a few dozen suffice); an empty slot of
    the exact result (-1) counts as found where the index leaves it empty too.

    Args:
        index: a :class:`FaissIndex`.
        queries: as :func:`cpr_kernels.cascade_topk`, like `keys`, `schedule` and `masks`.
    """
    from .. import as_call
    from ..schedule import Schedule

    schedule = Schedule(schedule)
    index._check_keys(keys)

    def found(stages: Schedule) -> Tensor:
        exact, _ = torch.ops.cpr.cascade_topk(*as_call(queries, keys, stages, **masks))
        return overlap(exact, index.cascade_topk(queries, keys, stages, **masks)[0])

    first, last = found(Schedule(schedule[:1])), found(schedule)
    return FaissRecall(
        float(first.mean()), float(last.mean()), float((last == 1).float().mean()), index.report
    )


def overlap(exact: Tensor, found: Tensor) -> Tensor:
    """Share [B] of each query's entries in `exact` [B, k] that are in `found` [B, m], -1 being none; 1 where `exact`
    has none.
    """
    hits = [
        torch.isin(e[e >= 0], f[f >= 0]).sum() / max(int((e >= 0).sum()), 1) for e, f in zip(exact, found)
    ]
    none = (exact < 0).all(dim=1)
    return torch.stack(hits).masked_fill(none, 1.0) if hits else torch.ones(1)
