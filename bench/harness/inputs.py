"""Makes tensors for a workload, the same for every peer and every run (fixed seed)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .workloads import Workload

CLASSES = 400  # of Kinetics-400


class Table(NamedTuple):
    """Queries and keys of every view, with ids where the workload has them."""

    workload: Workload
    queries: dict[str, Tensor]  # {view: [B, D]}
    keys: dict[str, Tensor]  # {view: [N, D]}
    query_ids: Tensor | None  # [B] int64
    key_ids: Tensor | None  # [N] int64


def _clustered(rows: Tensor, classes: Tensor) -> Tensor:
    """Returns noise [M, D] moved to its class's centre."""
    generator = torch.Generator().manual_seed(1)
    centres = torch.randn(CLASSES, rows.shape[1], generator=generator)
    return centres[classes] + 0.5 * rows


def source_ids(workload: Workload) -> tuple[Tensor, Tensor]:
    """Returns ids [B] and [N]: every entry is of its own source, and every query has one sibling in the queue."""
    return torch.arange(workload.num_queries) * 3 % workload.num_keys, torch.arange(workload.num_keys)


def make_table(workload: Workload, device: str, *, integers: bool = False) -> Table:
    """Returns unit vectors, or small integers whose inner products are exact, so that ties are real."""
    generator = torch.Generator().manual_seed(0)
    dtype = getattr(torch, workload.dtype)
    num_queries, num_keys = workload.num_queries, workload.num_keys
    age = torch.arange(num_keys) * CLASSES // num_keys  # oldest first: a queue in the order of time
    queries, keys = {}, {}
    for view in workload.view_names:
        shape = (num_queries + num_keys, workload.dim)
        if integers:
            rows = torch.randint(-2, 3, shape, generator=generator).to(torch.float32)
        else:
            rows = torch.randn(shape, generator=generator)
            if workload.features == "clustered":
                rows = _clustered(rows, torch.cat([torch.arange(num_queries) * 7 % CLASSES, age]))
            rows = normalize(rows, dim=1)
        queries[view] = rows[:num_queries].to(device, dtype, copy=True)
        keys[view] = rows[num_queries:].to(device, dtype, copy=True)
    query_ids, key_ids = (t.to(device) for t in source_ids(workload))
    if not workload.ids:
        return Table(workload, queries, keys, None, None)
    return Table(workload, queries, keys, query_ids, key_ids)


def some_rows(workload: Workload, most: int) -> Tensor:
    """Returns queries spread over the batch, as many as keep rows x N below `most` (at least one)."""
    count = max(1, min(workload.num_queries, most // workload.num_keys))
    return torch.linspace(0, workload.num_queries - 1, count).round().long().unique()
