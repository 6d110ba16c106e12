"""Restates the published algorithm (Wu et al. 2022), or imports it from the user's own checkout.

The restatement does the work that the published function does, as read there: the bank is copied, features
(not scores) are gathered for both views, rows are picked one query at a time, every stage appends a column to
the trail of picks, and the first gather is repeated at the end although nothing reads it.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..harness.inputs import Table
from ..harness.peer import PUBLISHED, RESTATED, Call, Peer, Settings, first_reason, gigabytes, siblings
from ..harness.workloads import Workload

MOST_BYTES = 1.2e9  # of gathered features; above it a call takes many seconds and several times the memory


def why_not(workload: Workload) -> str | None:
    """Returns why it cannot run: it takes two views, an odd number of stages from 3, and features that fit in
    memory.
    """
    gathered = 2.0 * workload.num_queries * int(workload.num_keys * workload.ratio) * workload.dim * 4
    return first_reason(
        None if workload.views == 2 else f"takes two views, not {workload.views}",
        None if workload.stages >= 3 and workload.stages % 2 else "needs an odd number of stages >= 3",
        None if gathered <= MOST_BYTES else f"would gather {gigabytes(gathered)} of features at stage 1",
    )


def _gather_for_all(bank: Tensor, picks: Tensor) -> Tensor:
    """Returns rows of bank [N, D] for every query's picks [B, M]: [B, M, D]."""
    return bank.index_select(0, picks.reshape(-1)).view(*picks.shape, bank.shape[1])


def _gather_row_by_row(tables: Tensor, picks: Tensor) -> Tensor:
    """Returns tables [B, M, ...] at picks [B, m], one query after the other: [B, m, ...]."""
    return torch.stack([table.index_select(0, pick) for table, pick in zip(tables, picks)])


def _with_rank(trail: Tensor) -> Tensor:
    """Returns the trail [B, m, c] with one more column: the place of each pick in this stage's ranking."""
    place = torch.arange(trail.shape[1], device=trail.device).expand(trail.shape[:2])
    return torch.cat([trail, place[..., None]], dim=2)


def restated(anchors: list[Tensor], banks: list[Tensor], mask: Tensor, keep: list[int]) -> Tensor:
    """Returns positives [B, k] of the cascade main, aux, main, ..., main.

    Args:
        anchors: main and aux queries, [B, D] each.
        banks: main and aux queues, [D, N] each, in the published memory layout.
        mask: [B, N] bool; True is not selected at stage 1.
        keep: entries each stage keeps.
    """
    rows = [bank.T for bank in banks]  # [N, D] each
    scores = torch.einsum("bd,nd->bn", anchors[0], rows[0].clone())
    scores[mask] = -torch.inf
    first = scores.topk(keep[0], dim=1).indices
    features = [_gather_for_all(bank, first) for bank in rows]  # 2 x [B, M, D]
    trail = _with_rank(_gather_for_all(torch.arange(rows[0].shape[0], device=mask.device)[:, None], first))
    for stage, count in enumerate(keep[1:], start=1):
        last = stage == len(keep) - 1
        view = 0 if last else stage % 2
        judged = torch.bmm(features[view], anchors[view][:, :, None])  # [B, M, 1]
        picks = judged.topk(count, dim=1).indices[..., 0]
        if not last:
            features = [_gather_row_by_row(feature, picks) for feature in features]
        trail = _with_rank(_gather_row_by_row(trail, picks))
    _gather_for_all(rows[0], first)  # the published function does this too
    return trail[..., 0]


def _arguments(table: Table) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Returns anchors, banks in the published layout [D, N], and the mask [B, N]."""
    queries, keys = list(table.queries.values()), list(table.keys.values())
    if table.query_ids is None or table.key_ids is None:
        mask = torch.zeros(len(queries[0]), len(keys[0]), dtype=torch.bool, device=keys[0].device)
    else:
        mask = siblings(table.query_ids, table.key_ids)
    return queries, [bank.T.contiguous() for bank in keys], mask


def _prepare_restated(table: Table) -> Call:
    anchors, banks, mask = _arguments(table)
    keep = [stage.keep for stage in table.workload.schedule]
    return lambda: (restated(anchors, banks, mask, keep), None)


def load(folder: str) -> Callable[..., Any]:
    """Returns `cascade_knn` of ``folder/model/pretrain.py``.

    Raises:
        ValueError: the folder has no such file, or the file no such function.
    """
    path = Path(folder).expanduser().resolve() / "model" / "pretrain.py"
    if not path.is_file():
        raise ValueError(
            f"--published {folder}: expected a checkout of the published code, with model/pretrain.py"
        )
    spec = importlib.util.spec_from_file_location("published_pretrain", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    kept = sys.path[:]
    sys.path.insert(0, str(path.parents[1]))  # its imports begin at the checkout
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        raise ValueError(f"--published {folder}: model/pretrain.py cannot be imported: {error}") from error
    finally:
        sys.path[:] = kept
    if not hasattr(module, "cascade_knn"):
        raise ValueError(f"--published {folder}: model/pretrain.py has no cascade_knn")
    return module.cascade_knn


def peer(settings: Settings) -> Peer:
    """Returns the published code where a checkout is given, else the restatement."""
    if not settings.published:
        return Peer(RESTATED, _prepare_restated, why_not, graphable=False)
    cascade_knn = load(settings.published)

    def prepare(table: Table) -> Call:
        anchors, banks, mask = _arguments(table)
        record = torch.arange(mask.shape[1], device=mask.device)[:, None]
        shape = table.workload
        return lambda: (
            cascade_knn(*anchors, *banks, record, mask, shape.topk, shape.ratio, shape.stages)[0],
            None,
        )

    return Peer(PUBLISHED, prepare, why_not, graphable=False)
