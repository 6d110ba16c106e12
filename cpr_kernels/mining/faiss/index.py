"""An index over a queue that outgrows an exact sweep: stage 1 by FAISS, the later stages exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from ...dispatch.checks import check_cascade
from ...dispatch.graph_break import graph_break
from ..schedule import Schedule
from .checks import check_queue, check_tables, checked_ids, checked_slots, view_names
from .search import SearchReport, run_on_index
from .store import IN_BLOCKS, TRAIN_ROWS_A_CELL, VectorStore

MAX_ODD = 4096  # entries with an infinite or NaN feature that are carried along


class Queue(Protocol):
    """What :meth:`FaissIndex.sync` reads of a :class:`~cpr_kernels.MultiViewQueue`."""

    ids: Tensor
    pointer: Tensor

    @property
    def views(self) -> dict[str, Tensor]:
        """``{view: [N, D]}``."""
        ...


@dataclass(frozen=True)
class RebuildPolicy:
    """When :meth:`FaissIndex.update` builds the index anew. Any bound that is reached suffices; None never is.

    Args:
        every: updates since the last build.
        drift: how much worse the entries added since fit the cells learnt at the build (mean squared distance to
            the centre, relative growth). Only IVF learns cells.
        dead: share of the index's vectors that belong to replaced entries. Only HNSW and GPU indexes keep those.
    """

    every: int | None = None
    drift: float | None = 0.25
    dead: float | None = 0.5

    def __post_init__(self) -> None:
        if self.every is not None and self.every < 1:
            raise ValueError(f"RebuildPolicy: every must be >= 1 or None, got {self.every}")
        for name, bound in (("drift", self.drift), ("dead", self.dead)):
            if bound is not None and not bound > 0:
                raise ValueError(f"RebuildPolicy: {name} must be above 0 or None, got {bound}")

    def due(self, staleness: Staleness) -> bool:
        """Is a rebuild due?"""
        return (
            (self.every is not None and staleness.updates >= self.every)
            or (self.drift is not None and staleness.drift >= self.drift)
            or (self.dead is not None and staleness.dead >= self.dead)
        )


@dataclass
class Moved:
    """What an index remembers of its past."""

    updates: int = 0
    added: int = 0
    fit: float = 0.0  # misfit of what was learnt from
    misfit: float = 0.0  # mean misfit of what was added since
    rebuilds: int = -1
    pointer: int = -1  # the queue's, at the last sync


class Staleness(NamedTuple):
    """How far an index has moved from what was built."""

    updates: int  # since the build
    added: float  # entries added since, in units of the queue's size
    drift: float  # see RebuildPolicy
    dead: float  # see RebuildPolicy
    rebuilds: int  # over the index's life


@dataclass(frozen=True)
class SearchSettings:
    """How hard a first search tries; a query that it does not fill is searched again, wider.

    Args:
        effort: cells visited (IVF) or candidates held while walking (HNSW); None: chosen by what is fetched.
        overfetch: how many times stage 1's count is fetched and then ranked exactly; None: 1, and 2 for PQ codes.
        spare: entries fetched beyond that; as many as one source has in the queue save the second search.
    """

    effort: int | None = None
    overfetch: float | None = None
    spare: int = 16

    def __post_init__(self) -> None:
        if self.effort is not None and (self.effort < 1 or self.effort != int(self.effort)):
            raise ValueError(f"SearchSettings: effort must be a whole number >= 1 or None, got {self.effort}")
        if self.overfetch is not None and not 1 <= self.overfetch < 1e6:
            raise ValueError(f"SearchSettings: overfetch must be >= 1 or None, got {self.overfetch}")
        if self.spare < 1:
            raise ValueError(f"SearchSettings: spare must be >= 1, got {self.spare}")


class FaissIndex:
    """A FAISS index over a queue: proposes stage 1's survivors, and `cascade_rerank` finishes exactly.

    `cascade_topk(..., backend=index)` and :meth:`cascade_topk` give the cascade's result where the index proposes
    what the exact stage 1 keeps: always with "Flat", mostly with the others (:func:`faiss_recall` says how
    mostly). Every other promise holds with every index: entries of the query's own id, empty slots and excluded
    entries never come back; a query that its first search does not fill is searched again, wider, and in the end
    exactly, so that it gets as many positives as the exact cascade gives it; ties go to the lower index; scores
    are the exact ones of the features given with the call.

    Args:
        keys: ``{view: [N, D_v]}``, the queue; CPU tensors, memory-mapped ones too (read in blocks).
        views: the view, or the views, that stage 1 may judge by; several make one joint index, which serves any
            weights of them.
        factory: "Flat", "IVF<cells>,Flat", "IVF<cells>,PQ<bytes>" or "HNSW<links>", as FAISS writes it.
        key_ids: [N] int64 source of each entry; a negative id is an empty slot and does not enter the index.
        policy: when an update rebuilds; see :class:`RebuildPolicy`.
        settings: how hard a search tries; see :class:`SearchSettings`.
        device: "cpu", or "cuda" for an index on the first GPU (at most 2,048 neighbours a search there).

    Attributes:
        report: of the last call: queries, searches, how many queries were searched wider, how many exactly.

    Raises:
        ImportError: FAISS is missing; the message names the extra.
        ValueError: an unknown view or factory, no GPU, too few entries to learn from, or features that are
            infinite or NaN in more than 4,096 entries.

    Example:
        >>> index = FaissIndex(queue.views, "flow", "IVF1024,Flat", key_ids=queue.ids)
        >>> cascade_topk(queries, queue.views, schedule, key_ids=queue.ids, backend=index)
        >>> queue.enqueue(features, ids); index.sync(queue)
    """

    def __init__(
        self,
        keys: Mapping[str, Tensor],
        views: str | Sequence[str],
        factory: str = "Flat",
        *,
        key_ids: Tensor | None = None,
        policy: RebuildPolicy | None = None,
        settings: SearchSettings | None = None,
        device: str = "cpu",
    ) -> None:
        self.views = view_names(keys, views)
        if device not in ("cpu", "cuda"):
            raise ValueError(f"FaissIndex: device must be 'cpu' or 'cuda', got {device!r}")
        self.factory, self.device = factory, device
        self.policy, self.settings = policy or RebuildPolicy(), settings or SearchSettings()
        self.dims = tuple(int(keys[view].shape[1]) for view in self.views)
        self.size = int(keys[self.views[0]].shape[0])
        self.read_only = False
        self.report = SearchReport()
        self.moved = Moved()
        self.rebuild(keys, key_ids)

    def __len__(self) -> int:
        """Entries that a search can return."""
        return self.store.held - self.store.dead

    def __repr__(self) -> str:
        views = "+".join(f"{view}[{dim}]" for view, dim in zip(self.views, self.dims))
        return f"FaissIndex({views}, {self.factory!r}, {len(self)} of {self.size} entries)"

    def rows(self, keys: Mapping[str, Tensor], slots: np.ndarray) -> np.ndarray:
        """The index's vectors [n, D] float32 of entries: their views side by side."""
        at = torch.from_numpy(slots)
        parts = [keys[view].detach()[at.to(keys[view].device)].float().cpu() for view in self.views]
        return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)).numpy()

    def rebuild(self, keys: Mapping[str, Tensor], key_ids: Tensor | None = None) -> None:
        """Learn and fill the index anew from the whole queue."""
        self._refuse_read_only("rebuild")
        self._check_keys(keys)
        self.store = VectorStore(self.factory, sum(self.dims), self.size, self.device == "cuda")
        self.has_ids = key_ids is not None
        self.ids = np.zeros(self.size, np.int64) if key_ids is None else checked_ids(key_ids, self.size)
        self.odd = np.zeros(0, np.int64)  # entries with a NaN or infinite feature: candidates of every query
        self.longest = 0.0
        filled, fit = np.flatnonzero(self.ids >= 0), 0.0
        if len(filled):
            wanted = min(len(filled), TRAIN_ROWS_A_CELL * max(self.store.cells, 256))
            spread = filled[np.arange(wanted) * len(filled) // wanted]
            sample = self.rows(keys, spread)
            sample = sample[np.isfinite(sample).all(axis=1)]
            self.store.train(sample)
            fit = self.store.misfit(sample)
            self.store.reserve(len(filled))
            for first in range(0, len(filled), IN_BLOCKS):
                self._add(keys, filled[first : first + IN_BLOCKS])
        self.moved = Moved(0, 0, fit, fit, self.moved.rebuilds + 1, self.moved.pointer)

    def _add(self, keys: Mapping[str, Tensor], slots: np.ndarray) -> np.ndarray:
        """Put filled entries in; returns their vectors, without those that only ranking by hand can judge."""
        rows = self.rows(keys, slots)
        sound = np.isfinite(rows).all(axis=1)
        at = torch.from_numpy(slots)
        for view, table in keys.items():
            if view not in self.views:
                sound &= table[at.to(table.device)].isfinite().all(dim=1).cpu().numpy()
        self.odd = np.concatenate([self.odd, slots[~sound]])
        if len(self.odd) > MAX_ODD:
            raise ValueError(
                f"FaissIndex: more than {MAX_ODD} entries of keys have a NaN or infinite feature; mend the features"
            )
        if not sound.all():
            rows, slots = rows[sound], slots[sound]
        if len(rows):
            self.store.add(rows, slots)
            self.longest = max(self.longest, float(np.einsum("ij,ij->i", rows, rows).max()) ** 0.5)
        return rows

    @graph_break
    def update(self, keys: Mapping[str, Tensor], slots: Tensor, key_ids: Tensor | None = None) -> Staleness:
        """Entries `slots` [n] of the queue were replaced: the old ones leave the index, the new ones enter.

        Rebuilds where the policy says so. Returns the staleness after it.
        """
        self._refuse_read_only("update")
        self._check_keys(keys)
        replaced = checked_slots(slots, self.size)
        if key_ids is not None:
            self.ids = checked_ids(key_ids, self.size)
        elif self.has_ids:
            raise ValueError("FaissIndex: update needs key_ids, for the index was built with them")
        self.store.drop(replaced)
        self.odd = self.odd[~np.isin(self.odd, replaced)]
        filled = replaced[self.ids[replaced] >= 0]
        if not self.store.index.is_trained:  # built over an empty queue
            self.rebuild(keys, key_ids)
            return self.staleness
        rows = self._add(keys, filled) if len(filled) else np.zeros((0, sum(self.dims)), np.float32)
        self.moved.updates += 1
        if len(rows):
            self.moved.added += len(rows)
            share = len(rows) / self.moved.added
            self.moved.misfit += share * (self.store.misfit(rows) - self.moved.misfit)
        if self.policy.due(self.staleness):
            self.rebuild(keys, key_ids)
        return self.staleness

    @graph_break
    def sync(self, queue: Queue) -> Staleness:
        """Bring the index up to a queue after its `enqueue`: what lies between the pointer's last place and this
        one was replaced, and so was whatever carries another id. Call it once after building, to note the pointer,
        and then before N more entries are written.
        """
        check_queue(queue, self.size)
        pointer, ids = int(queue.pointer), checked_ids(queue.ids, self.size)
        changed = ids != self.ids
        if self.moved.pointer >= 0:
            steps = (pointer - self.moved.pointer) % self.size
            changed[(self.moved.pointer + np.arange(steps)) % self.size] = True
        self.moved.pointer = pointer
        return self.update(queue.views, torch.from_numpy(np.flatnonzero(changed)), queue.ids)

    @property
    def staleness(self) -> Staleness:
        """How far the index has moved since it was built."""
        moved = self.moved
        drift = max(moved.misfit / moved.fit - 1, 0.0) if moved.fit > 0 else 0.0
        dead = self.store.dead / max(self.store.held, 1)
        return Staleness(moved.updates, moved.added / max(self.size, 1), drift, dead, moved.rebuilds)

    @graph_break
    def cascade_topk(
        self,
        queries: Mapping[str, Tensor],
        keys: Mapping[str, Tensor],
        schedule: Schedule,
        **masks: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """The cascade with this index as stage 1; arguments and results as :func:`cpr_kernels.cascade_topk`.

        Raises:
            ValueError: keys of another shape than the index's, no key_ids where the index was built with empty slots,
                a stage 1 that judges by a view that the index does not hold, or one that keeps so large a share of
                the queue that an index cannot help.
        """
        from .. import as_call

        schedule = Schedule(schedule)
        self._check_keys(keys)
        outside = [view for view in schedule[0].weights if view not in self.views]
        if outside:
            raise ValueError(
                f"FaissIndex: stage 1 ({schedule[0]}) judges by view {outside[0]!r}, but the index holds "
                f"{', '.join(self.views)}; index that view, jointly with others where stage 1 mixes views"
            )
        call = as_call(queries, keys, schedule, **masks)
        check_cascade(call)
        if call.key_ids is None and self.has_ids and self.ids.min(initial=0) < 0:
            raise ValueError(
                "FaissIndex: the index was built with key_ids of which some are negative (empty slots), and the call "
                "has none, so that those slots would be mined; give key_ids"
            )
        weights = [schedule[0].weights.get(view, 0.0) for view in self.views]
        sides = [queries[view].float() * weight for view, weight in zip(self.views, weights)]
        return run_on_index(self, call, torch.cat(sides, dim=1))

    def _check_keys(self, keys: Mapping[str, Tensor]) -> None:
        check_tables(keys, self.views, self.size, self.dims)

    def _refuse_read_only(self, what: str) -> None:
        if self.read_only:
            raise ValueError(
                f"FaissIndex: {what} needs an index of its own, and this one is read-only "
                "(memory-mapped, or adopted from FAISS); load it with mmap=False, or build one"
            )

    def save(self, folder: str | Path) -> None:
        """Write the index to `folder`: index.faiss, entries.npz and about.json, replaced whole."""
        from .files import save

        save(self, Path(folder))

    @classmethod
    def load(cls, folder: str | Path, *, mmap: bool = False) -> FaissIndex:
        """Read an index that :meth:`save` wrote.

        Args:
            folder: where it was saved.
            mmap: leave the vectors on disk and read what a search touches: for banks larger than memory, together
                with memory-mapped keys. Such an index is read-only.

        Raises:
            ValueError: a folder that holds no such index, or files that do not belong together.
        """
        from .files import load

        return load(cls, Path(folder), mmap)

    @classmethod
    def from_faiss(cls, index: Any, keys: Mapping[str, Tensor], views: str | Sequence[str]) -> FaissIndex:
        """Adopt an index that was made with FAISS itself, read-only: its ids must be the entries' places in `keys`.

        Raises:
            ValueError: another dimension or metric than needed, or ids that are not the entries.
        """
        from .files import adopt

        return adopt(cls, index, keys, views)
