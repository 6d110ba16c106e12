"""Small tables of views for tuning, and its formulas written with loops over rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def clusters(
    rows: int = 160,
    classes: int = 8,
    dim: int = 12,
    views: int = 2,
    noise: float = 0.6,
    nuisance: float = 0.0,
):
    """Returns `views {name: [N, D]}` of noisy class codes, and `labels [N]`; `nuisance` spreads each view's first axis."""
    g = torch.Generator().manual_seed(7)
    labels = torch.randint(classes, (rows,), generator=g)
    made = {}
    for v in range(views):
        codes = torch.randn(classes, dim, generator=g)
        table = codes[labels] + noise * torch.randn(rows, dim, generator=g)
        table[:, :2] += nuisance * torch.randn(rows, 2, generator=g)
        made[f"v{v}"] = table
    return made, labels


def save_clusters(path: Path, sources: str, clips: int) -> None:
    """Writes 120 rows of `clusters` as .npz, their label, and as the column `sources` a number for every `clips` rows."""
    views, labels = clusters(rows=120)
    arrays = {name: table.numpy() for name, table in views.items()}
    np.savez(path, **arrays, label=labels.numpy(), **{sources: np.arange(120) // clips})


def unit(row: Tensor) -> Tensor:
    return row / row.norm() if row.norm() > 0 else row


def whitened_by_loops(table: Tensor, power: float) -> Tensor:
    """The definition: rows to the axes of `C = mean of u u^T`, each scaled by variance ** (-power / 2)."""
    rows = table.double()
    mean = sum(rows) / len(rows)
    units = [unit(row - mean) for row in rows]
    second = sum(torch.outer(u, u) for u in units) / len(units)
    variances, axes = torch.linalg.eigh(second)
    ridge = 0.1 * variances.mean() if power == 1 else 0.0
    out = []
    for u in units:
        z = torch.zeros_like(u)
        for r in range(len(variances)):
            if variances[r] > 1e-10 * variances[-1]:
                z += axes[:, r] * (axes[:, r] @ u) * (variances[r] + ridge) ** (-power / 2)
        out.append(unit(z))
    return torch.stack(out)


def joint_scores(rows: dict[str, Tensor], keys: dict[str, Tensor]) -> Tensor:
    """The mean of the views' inner products, [B, N] float64."""
    return sum(rows[v].double() @ keys[v].double().T for v in rows) / len(rows)


def allowed(query_ids: Tensor, key_ids: Tensor) -> Tensor:
    return (key_ids >= 0)[None, :] & (query_ids[:, None] != key_ids[None, :])


def ranked(scores: Tensor, may: Tensor) -> list[list[int]]:
    """Entries of each row by (score descending, index ascending), without those that may not."""
    return [
        sorted((j for j, ok in enumerate(oks) if ok), key=lambda j: (-row[j], j))
        for row, oks in zip(scores.tolist(), may.tolist())
    ]


def expanded_by_loops(
    rows: dict[str, Tensor], keys: dict[str, Tensor], may: Tensor, neighbors: int, power: float
) -> dict[str, Tensor]:
    scores = joint_scores(rows, keys)
    lists = ranked(scores, may)
    out = {v: torch.zeros_like(rows[v], dtype=torch.float64) for v in rows}
    weights = scores.clamp(min=0).pow(power).tolist()
    for i in range(len(scores)):
        total = {v: rows[v][i].double().clone() for v in rows}
        for j in lists[i][:neighbors]:
            for v in rows:
                total[v] += weights[i][j] * keys[v][j].double()
        length = torch.cat(list(total.values())).norm()
        for v in rows:
            out[v][i] = total[v] / length * len(rows) ** 0.5
    return out


def plan_by_loops(
    white: dict[str, Tensor], ids: Tensor, expand, hub: int | None, topk: int
) -> list[list[int]]:
    """Mines every row among the others by the formulas of a plan: lists of `topk` entries."""
    may = allowed(ids, ids)
    rows = white if expand is None else expanded_by_loops(white, white, may, *expand)
    scores = joint_scores(rows, rows)
    lists = ranked(scores, may)
    if hub is None:
        return [some[:topk] for some in lists]
    count = max(topk, min(hub, len(ids) // 20))
    scores = scores.tolist()
    terms = [sum(scores[j][n] for n in lists[j][:count]) / count for j in range(len(ids))]
    wide = [some[: max(hub, topk)] for some in lists]
    return [
        sorted(some, key=lambda j: (-(scores[i][j] - terms[j] / 2), j))[:topk] for i, some in enumerate(wide)
    ]
