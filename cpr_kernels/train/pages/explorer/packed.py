"""Packs embeddings as small integers for a page, and unpacks them as the page does."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

ROWS = 10_000
A_ROW = 520  # bytes of integers of each row in a page of ROWS rows or more; of fewer, they share as much as ROWS have
PRECISE = 20_000  # rows; of more, a page holds integers of 8 bits


def packed(rows: Tensor, bits: int = 16) -> dict[str, Any]:
    """Returns embeddings [N, D] as integers: {size, bits, rows, columns, data, missing}.

    A number is ``data[i, d] * rows[i] * columns[d]``, with scales in float32. Rows with a NaN are `missing`, and zeros.
    """
    values = rows.detach().cpu().float()
    missing = values.isnan().any(dim=1)
    values = values.masked_fill(missing[:, None], 0.0)
    columns = values.abs().amax(dim=0).clamp(min=1e-30)
    relative = values / columns
    most = 2 ** (bits - 1) - 1
    scales = relative.abs().amax(dim=1).clamp(min=1e-30) / most
    integers = (relative / scales[:, None]).round().numpy().astype("<i2" if bits == 16 else "i1")
    return {
        "size": rows.shape[1],
        "bits": bits,
        "rows": _text(scales.numpy().astype("<f4")),
        "columns": _text(columns.numpy().astype("<f4")),
        "data": _text(integers),
        "missing": missing.nonzero()[:, 0].tolist(),
    }


def unpacked(view: Mapping[str, Any]) -> Tensor:
    """Returns the embeddings [N, D] of a packed view, float64; NaN where a row is missing."""
    kinds = {"rows": "<f4", "columns": "<f4", "data": "<i2" if view["bits"] == 16 else "i1"}
    parts = {name: np.frombuffer(base64.b64decode(view[name]), kind) for name, kind in kinds.items()}
    rows, columns, integers = (torch.from_numpy(part.astype(np.float64)) for part in parts.values())
    values = integers.view(-1, view["size"]) * rows[:, None] * columns
    values[view["missing"]] = torch.nan
    return values


def fitting(views: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], int]:
    """Returns views that fit into a page, and the bits of their integers: 16, or 8 where that is too much.

    Where even that is too much, each view is turned to its leading axes, the same share of numbers of each: inner
    products are then those of the part that these axes hold.
    """
    count = len(next(iter(views.values())))
    sizes = {name: rows.shape[1] for name, rows in views.items()}
    allowed = share(A_ROW, count)
    total = sum(sizes.values())
    if 2 * total <= allowed and count <= PRECISE:
        return dict(views), 16
    if total <= allowed:
        return dict(views), 8
    wanted = {name: max(8, size * allowed // total) for name, size in sizes.items()}
    return {name: leading(rows, wanted[name]) for name, rows in views.items()}, 8


def share(a_row: int, count: int) -> int:
    """Returns how many bytes each of `count` rows may take: `a_row` from ROWS rows on, more of fewer rows."""
    return a_row * max(ROWS, count) // max(1, count)


def leading(rows: Tensor, count: int) -> Tensor:
    """Returns rows [N, D] along the `count` axes that hold most of their second moment, [N, count]; NaN rows stay."""
    if count >= rows.shape[1]:
        return rows
    sound = rows[~rows.isnan().any(dim=1)]
    second = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)
    for block in sound.split(4096):
        second += block.double().T @ block.double()
    _, axes = torch.linalg.eigh(second)
    return rows @ axes[:, -count:].flip(1).to(rows.dtype)


def _text(values: Any) -> str:
    return base64.b64encode(values.tobytes()).decode()
