"""Makes queues of any length from real feature tables: the videos themselves, then copies of them with noise."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from .. import CHECKOUT

FEATURES = CHECKOUT.parent / "shared" / "data" / "features"
NOISE = 0.5  # length of the noise added to a copy, a unit vector
BLOCK = 1 << 16  # rows made at a time
HALF_FROM = 5_000_000  # entries from which a queue is stored in float16
QUERIES = 64


class Base(NamedTuple):
    """A table of videos, centred and normalised."""

    name: str
    views: dict[str, Tensor]  # {view: [n, D]}
    ids: Tensor  # [n] source of each video
    labels: Tensor  # [n]
    about: str


class Bank(NamedTuple):
    """Queries and a queue."""

    queries: dict[str, Tensor]  # {view: [B, D]}
    keys: dict[str, Tensor]  # {view: [N, D]}
    query_ids: Tensor
    key_ids: Tensor
    query_labels: Tensor
    key_labels: Tensor


class Rows(NamedTuple):
    """Some entries of a queue."""

    views: dict[str, Tensor]  # {view: [n, D]}
    ids: Tensor
    labels: Tensor


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


def drawn() -> Base:
    """Returns a stand-in where the real tables are not: 60 classes in two views of 64 numbers."""
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
    """Returns the real tables at hand, or a drawn one where there is none."""
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
    return [base for base in found if base is not None] or [drawn()]


class Replicas:
    """A queue of `size` entries: every video of a table once, then copies with noise, normalised again.

    Any part of it can be made alone, in any process, and is always the same. The queries are videos of the table,
    spread evenly. A copy keeps its video's source id and label; videos of the queries' own sources are not copied, so
    that a query has as many siblings as in the table.
    """

    def __init__(self, base: Base, size: int) -> None:
        self.base, self.size = base, size
        self.dtype = torch.float16 if size >= HALF_FROM else torch.float32
        self.query_rows = torch.arange(QUERIES) * len(base.ids) // QUERIES
        self._copied = (~torch.isin(base.ids, base.ids[self.query_rows])).nonzero()[:, 0]

    @property
    def numbers(self) -> int:
        """Returns the numbers of an entry, all views together."""
        return sum(rows.shape[1] for rows in self.base.views.values())

    def queries(self) -> Rows:
        """Returns the rows that are mined for."""
        views = {view: rows[self.query_rows].to(self.dtype) for view, rows in self.base.views.items()}
        return Rows(views, self.base.ids[self.query_rows], self.base.labels[self.query_rows])

    def rows(self, first: int, last: int) -> Rows:
        """Returns entries `first` to `last`, without making the others, but for up to a block on either side."""
        count = len(self.base.ids)
        entry = torch.arange(first, last)
        of = torch.where(entry < count, entry, self._copied[(entry - count).clamp(min=0) % len(self._copied)])
        views = {view: self._view(view, of, first, last) for view in self.base.views}
        return Rows(views, self.base.ids[of], self.base.labels[of])

    def _view(self, view: str, of: Tensor, first: int, last: int) -> Tensor:
        table = self.base.views[view]
        count, dim = table.shape
        made = torch.empty(last - first, dim, dtype=self.dtype)
        for begin in range(first // BLOCK * BLOCK, last, BLOCK):
            low, high = max(begin, first), min(begin + BLOCK, last)
            g = torch.Generator().manual_seed(sum(map(ord, view)) * 1_000_003 + begin // BLOCK)
            noise = torch.randn(BLOCK, dim, generator=g)[low - begin : high - begin].mul_(NOISE / dim**0.5)
            noise[: max(count - low, 0)] = 0
            noise += table[of[low - first : high - first]]
            made[low - first : high - first] = normalize(noise, dim=1)
        return made

    def bank(self) -> Bank:
        """Returns the whole queue, with the queries: at its peak the queue and a block."""
        size, labels = self.size, torch.empty(self.size, dtype=torch.int64)
        keys = {
            view: torch.empty(size, rows.shape[1], dtype=self.dtype) for view, rows in self.base.views.items()
        }
        ids = torch.empty_like(labels)
        for first in range(0, size, BLOCK):
            part = slice(first, min(first + BLOCK, size))
            rows = self.rows(part.start, part.stop)
            for view, made in rows.views.items():
                keys[view][part] = made
            ids[part], labels[part] = rows.ids, rows.labels
        queries = self.queries()
        return Bank(queries.views, keys, queries.ids, ids, queries.labels, labels)
