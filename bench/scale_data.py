"""Queues of any length from real feature tables: the videos themselves, then copies of them with noise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from . import CHECKOUT

FEATURES = CHECKOUT.parent / "shared" / "data" / "features"
NOISE = 0.5  # length of the noise added to a copy, a unit vector
BLOCK = 1 << 18  # rows made at a time
HALF_FROM = 5_000_000  # entries from which a queue is stored in float16


class Base(NamedTuple):
    """A table of videos, centred and normalised."""

    name: str
    views: dict[str, Tensor]  # {view: [n, D]}
    ids: Tensor  # [n] source of each video
    labels: Tensor  # [n]
    about: str


class Bank(NamedTuple):
    """Queries and a queue."""

    name: str
    queries: dict[str, Tensor]  # {view: [B, D]}
    keys: dict[str, Tensor]  # {view: [N, D]}
    query_ids: Tensor
    key_ids: Tensor
    query_labels: Tensor
    key_labels: Tensor


def _load(name: str, file: str, views: dict[str, str], about: str) -> Base | None:
    path = FEATURES / file
    if not path.is_file():
        return None
    with np.load(path) as table:
        rows = {view: torch.from_numpy(table[column]).float() for view, column in views.items()}
        labels = torch.from_numpy(table["label"].astype(np.int64))
        ids = torch.arange(len(labels))
        if "group" in table.files:  # clips of one source video
            ids = labels * 1000 + torch.from_numpy(table["group"].astype(np.int64))
    centred = {view: normalize(table - table.mean(dim=0), dim=1) for view, table in rows.items()}
    return Base(name, centred, ids, labels, about)


def _drawn() -> Base:
    """A stand-in where the real tables are not: 60 classes in two views of 64 numbers."""
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(3000) % 60
    views = {
        view: normalize(
            torch.randn(60, 64, generator=g)[labels] + 0.9 * torch.randn(3000, 64, generator=g), dim=1
        )
        for view in ("flow", "rgb")
    }
    return Base("drawn", views, torch.arange(3000), labels, "drawn: 60 Gaussian classes (no real table here)")


def bases() -> list[Base]:
    """The real tables at hand, or a drawn one where there is none."""
    found = [
        _load(
            "UCF101, 2 views", "ucf101_test_twostream.npz", {"flow": "flow", "rgb": "rgb"},
            "class scores (RGB, flow; 101 numbers each) of 3,783 UCF101 test videos",
        ),
        _load(
            "CCV, 3 views", "ccv_20cls_3views_20d.npz", {"flow": "view1", "rgb": "view2", "audio": "view3"},
            "three views of 20 numbers of 6,773 CCV videos (here called flow, rgb and audio)",
        ),
    ]  # fmt: skip
    return [base for base in found if base is not None] or [_drawn()]


def make_bank(base: Base, size: int, num_queries: int = 64) -> Bank:
    """A queue of `size` entries: every video once, then copies with noise, normalised again; the queries are videos
    of the table, spread evenly. A copy keeps its video's source id and label; videos of the queries' own sources
    are not copied, so that a query has as many siblings as in the table.
    """
    count = len(base.ids)
    asked = torch.arange(num_queries) * count // num_queries
    dtype = torch.float16 if size >= HALF_FROM else torch.float32
    copied = (~torch.isin(base.ids, base.ids[asked])).nonzero()[:, 0]
    of = torch.cat([torch.arange(count), copied[torch.arange(max(size - count, 0)) % len(copied)]])[:size]
    keys = {}
    for view, rows in base.views.items():
        g = torch.Generator().manual_seed(sum(map(ord, view)))
        keys[view] = torch.empty(size, rows.shape[1], dtype=dtype)
        for first in range(0, size, BLOCK):
            at = of[first : first + BLOCK]
            noise = torch.randn(len(at), rows.shape[1], generator=g).mul_(NOISE / rows.shape[1] ** 0.5)
            noise[: max(count - first, 0)] = 0
            keys[view][first : first + BLOCK] = normalize(noise.add_(rows[at]), dim=1).to(dtype)
    queries = {view: rows[asked].to(dtype) for view, rows in base.views.items()}
    return Bank(base.name, queries, keys, base.ids[asked], base.ids[of], base.labels[asked], base.labels[of])


def sizes_that_fit(sizes: Sequence[int], base: Base, available: int) -> tuple[list[int], list[str]]:
    """Queue lengths whose bank and indexes fit the memory at hand, and a sentence for each of the others."""
    fit, refused = [], []
    numbers = sum(rows.shape[1] for rows in base.views.values())
    for size in sizes:
        needed = size * numbers * (2 if size >= HALF_FROM else 4) + size * (4 * max(numbers // 2, 1) + 64)
        if needed < 0.7 * available:
            fit.append(size)
        else:
            refused.append(
                f"N={size:,} needs about {needed / 1e9:.0f} GB, and {available / 1e9:.0f} GB are free"
            )
    return fit, refused


def available_bytes() -> int:
    """Memory that a new process may take."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
