"""Turns an index's proposals into the cascade's result: drops what is not eligible, widens, finishes exactly."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ...dispatch.calls import CascadeCall
from .plan import why_not_schedule
from .settings import SearchReport, SearchSettings
from .store import VectorStore

EXACT_FROM = 0.25  # a search for more than this share of the index costs more than the exact cascade
ADDED_ERROR = 2.0**-22  # of a sum with the bias, in float32, relative
SCORE_ERROR = 2.0**-17  # of |query| |key|: two ways of summing 128 products in float32 differ by less


def eligible(call: CascadeCall, slots: Tensor, of_query: Tensor) -> Tensor:
    """Returns True [n, C] where the entry proposed may be selected by its query."""
    good = slots >= 0
    at = slots.clamp(min=0)
    if call.key_ids is not None:
        source = call.key_ids[at]
        good &= source >= 0
        if call.query_ids is not None:
            good &= source != call.query_ids[of_query, None]
    if call.exclude is not None:
        good &= ~call.exclude[of_query[:, None], at]
    if call.key_bias is not None:
        good &= ~call.key_bias[at].isnan()
    return good


def _filled(good: np.ndarray, keep: int) -> np.ndarray:
    """Returns True [n] where a query has `keep` eligible entries among `good` [n, C]."""
    return np.asarray(good.sum(axis=1) >= keep)


def _clear_margin(good: np.ndarray, scores: np.ndarray, keep: int, error: np.ndarray) -> np.ndarray:
    """Returns True [n] where no entry that was not fetched can reach the keep-th eligible one's score.

    `good` and `scores` are [n, C], best first; `error` [n] bounds the difference of two ways of summing.
    """
    before = (good.cumsum(axis=1) < keep).sum(axis=1)  # entries fetched before the keep-th eligible one
    at = np.minimum(before, good.shape[1] - 1)
    gap = np.take_along_axis(scores, at[:, None], axis=1)[:, 0] - scores[:, -1]
    return np.asarray(gap > error)


class _Bias:
    """What a bias changes where stage 1 is the last: an entry of a low score may still be among the best."""

    def __init__(self, key_bias: Tensor) -> None:
        self.of_entry = key_bias.numpy()
        self.greatest = np.nanmax(self.of_entry, initial=-np.inf)

    def decides(
        self, entries: np.ndarray, good: np.ndarray, scores: np.ndarray, keep: int, error: np.ndarray
    ) -> np.ndarray:
        """Returns True [n] where no entry that was not fetched can be among the `keep` best; as `_clear_margin`."""
        if entries.shape[1] < keep:
            return np.zeros(len(entries), bool)
        with np.errstate(invalid="ignore"):  # inf - inf decides nothing
            biased = scores + self.of_entry[entries.clip(min=0)]
            biased[~good | np.isnan(biased)] = -np.inf
            last = np.partition(biased, -keep, axis=1)[:, -keep]
            possible = scores[:, -1] + self.greatest
            return np.asarray(last - possible > error + ADDED_ERROR * (np.abs(last) + np.abs(possible)))


def fetch_count(store: VectorStore, settings: SearchSettings, keep: int) -> int:
    """Returns how many neighbours a first search fetches for a stage 1 that keeps `keep`."""
    overfetch = settings.overfetch or (2.0 if store.coded else 1.0)
    return min(int(keep * overfetch) + settings.spare, store.max_k)


def propose(
    store: VectorStore, settings: SearchSettings, call: CascadeCall, vectors: np.ndarray, longest: float
) -> tuple[list[Tensor], Tensor, SearchReport]:
    """Searches the index for stage 1's candidates of each query.

    Returns [B, C] parts in order of search, each -1 for queries that another part answers; the queries that the
    index could not fill; and the report.
    """
    keep, queries = call.stage_keep[0], len(vectors)
    norms = np.linalg.norm(vectors, axis=1)
    pending = np.flatnonzero(np.isfinite(norms))
    unfilled = [np.flatnonzero(~np.isfinite(norms))]  # no inner product ranks these queries' entries
    fetch, widening, rounds, widened = fetch_count(store, settings, keep), 1, 0, 0
    most = min(max(EXACT_FROM * store.held, 2 * fetch), store.max_k)
    parts, visited = list[Tensor](), store.effort_for(fetch, settings.effort)
    bias = _Bias(call.key_bias) if call.key_bias is not None and len(call.stage_keep) == 1 else None
    while len(pending) and store.held:
        if fetch > most:
            unfilled.append(pending)
            break
        slots, scores, whole = store.search(vectors[pending], fetch, widening, settings.effort)
        rounds += 1
        of_query, entries = torch.from_numpy(pending), torch.from_numpy(slots)
        good = eligible(call, entries, of_query)
        done = np.full(len(pending), True) if whole else _filled(good.numpy(), keep)
        error = SCORE_ERROR * norms[pending] * longest
        if bias is not None and not whole:
            done &= bias.decides(slots, good.numpy(), scores, keep, error)
        elif store.exact and not whole:
            done &= _clear_margin(good.numpy(), scores, keep, error)
        answered = torch.from_numpy(done)
        part = torch.full((queries, entries.shape[1]), -1, dtype=torch.int64)
        part[of_query[answered]] = entries.masked_fill(~good, -1)[answered]
        parts.append(part)
        pending = pending[~done]
        widened += len(pending)
        fetch, widening = 2 * fetch, 2 * widening
    exactly = torch.from_numpy(np.concatenate(unfilled))
    return parts, exactly, SearchReport(queries, rounds, widened, len(exactly), visited)


@torch.no_grad()
def search_cascade(
    store: VectorStore,
    settings: SearchSettings,
    call: CascadeCall,
    vectors: Tensor,
    *,
    non_finite: np.ndarray,
    longest: float,
) -> tuple[Tensor, Tensor, SearchReport]:
    """Runs a checked call of the cascade with stage 1's survivors proposed by an index.

    Args:
        store: the index.
        settings: how hard a search tries.
        call: the call; all its stages are computed exactly over what is proposed.
        vectors: [B, D] the queries as the index's vectors, weighted as stage 1 weighs the views.
        non_finite: entries that the index cannot hold; candidates of every query.
        longest: the largest norm of the index's vectors.

    Returns:
        ``indices [B, k]``, ``scores [B, k]`` and the report.

    Raises:
        ValueError: a stage 1 that keeps so large a share of the queue that an index cannot help.
    """
    reason = why_not_schedule(call.stage_keep[0], call.keys[0].shape[0], store.max_k)
    if reason:
        raise ValueError(f"backend='faiss' cannot run this call: {reason}")
    on_host = call._replace(
        key_ids=None if call.key_ids is None else call.key_ids.cpu(),
        query_ids=None if call.query_ids is None else call.query_ids.cpu(),
        exclude=None if call.exclude is None else call.exclude.cpu(),
        key_bias=None if call.key_bias is None else call.key_bias.detach().cpu(),
    )
    searched = vectors.detach().float().cpu().numpy()
    parts, exactly, report = propose(store, settings, on_host, searched, longest)
    device = call.keys[0].device
    always = torch.from_numpy(non_finite).expand(len(vectors), -1)
    candidates = torch.cat([*parts, always], dim=1).to(device)
    indices, scores = torch.ops.cpr.cascade_rerank(call.queries, call.keys, candidates, *call[2:])
    if len(exactly):
        at = exactly.to(device)
        rest = call._replace(
            queries=[query[at] for query in call.queries],
            query_ids=None if call.query_ids is None else call.query_ids[at],
            exclude=None if call.exclude is None else call.exclude[at],
        )
        indices[at], scores[at] = torch.ops.cpr.cascade_topk(*rest)
    return indices, scores, report
