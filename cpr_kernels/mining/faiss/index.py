"""Keeps an index over a queue that outgrows an exact sweep: stage 1 by FAISS, the later stages exactly."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ...dispatch.calls import CascadeCall
from ...dispatch.checks import check_cascade
from ...dispatch.graph_break import graph_break
from ..arguments import as_call
from ..schedule import Schedule, Stage
from . import files
from .checks import check_queue, check_tables, checked_ids, checked_slots, view_names
from .effort import SAMPLE, MeasuredSearch, choose_effort, overlap, warn_of_low_recall
from .files import SavedIndex
from .search import search_cascade
from .settings import RebuildPolicy, SearchReport, SearchSettings, Staleness, UpdateStats
from .store import IN_BLOCKS, TRAIN_ROWS_A_CELL, VectorStore

MAX_NON_FINITE = 4096  # entries with an infinite or NaN feature, which every query then ranks exactly


class Queue(Protocol):
    """Declares what :meth:`FaissIndex.sync` reads of a :class:`~cpr_kernels.MultiViewQueue`."""

    ids: Tensor
    pointer: Tensor

    @property
    def views(self) -> dict[str, Tensor]:
        """Returns ``{view: [N, D]}``."""
        ...


class FaissIndex:
    """Proposes stage 1's survivors from a FAISS index over a queue; `cascade_rerank` finishes exactly.

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
        report: of the last call: queries, searches, how many queries were searched wider, how many exactly; the
            effort, and the recall that was measured.

    Warns:
        UserWarning: once per build and schedule, where the recall measured on 128 of the index's own entries is below
            `settings.recall`, or below 0.9 at the default effort. Not measured are "Flat", which is exact, an effort
            of your own, and an index that `load(mmap=True)` left on disk, unless `settings.recall` is given: the
            measurement reads the whole queue.

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
        self.read_only, self.on_disk = False, False
        self.report = SearchReport()
        self.stats = UpdateStats()
        self._measured: dict[tuple[Schedule, SearchSettings], MeasuredSearch] = {}
        self.rebuild(keys, key_ids)

    def _restore(self, saved: SavedIndex, store: VectorStore, read_only: bool, on_disk: bool = False) -> None:
        """Sets every attribute from what was saved, in place of `__init__`, which builds an index."""
        self.views, self.dims, self.size, self.factory = saved.views, saved.dims, saved.size, saved.factory
        self.policy, self.settings, self.stats = saved.policy, saved.settings, saved.stats
        self.ids, self.has_ids = saved.ids, saved.has_ids
        self.non_finite, self.longest = saved.non_finite, saved.longest
        self.device, self.store, self.report = "cpu", store, SearchReport()
        self._measured = {}
        self.read_only, self.on_disk = read_only or not store.replaceable, on_disk

    def __len__(self) -> int:
        """Counts the entries that a search can return."""
        return self.store.held - self.store.dead

    def __repr__(self) -> str:
        views = "+".join(f"{view}[{dim}]" for view, dim in zip(self.views, self.dims))
        return f"FaissIndex({views}, {self.factory!r}, {len(self)} of {self.size} entries)"

    def rows(self, keys: Mapping[str, Tensor], slots: np.ndarray) -> np.ndarray:
        """Returns the index's vectors [n, D] float32 of entries: their views concatenated."""
        at = torch.from_numpy(slots)
        parts = [keys[view].detach()[at.to(keys[view].device)].float().cpu() for view in self.views]
        return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)).numpy()

    def rebuild(self, keys: Mapping[str, Tensor], key_ids: Tensor | None = None) -> None:
        """Trains and fills the index anew from the whole queue."""
        self._refuse_read_only("rebuild")
        self._check_keys(keys)
        self.store = VectorStore(self.factory, sum(self.dims), self.size, self.device == "cuda")
        self.has_ids = key_ids is not None
        self.ids = np.zeros(self.size, np.int64) if key_ids is None else checked_ids(key_ids, self.size)
        self.non_finite = np.zeros(
            0, np.int64
        )  # entries with a NaN or infinite feature: candidates of every query
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
        self.stats = UpdateStats(0, 0, fit, fit, self.stats.rebuilds + 1, self.stats.pointer)
        self._measured.clear()

    def _add(self, keys: Mapping[str, Tensor], slots: np.ndarray) -> np.ndarray:
        """Adds filled entries; returns the vectors [m, D] of those whose features are all finite."""
        rows = self.rows(keys, slots)
        sound = np.isfinite(rows).all(axis=1)
        at = torch.from_numpy(slots)
        for view, table in keys.items():
            if view not in self.views:
                sound &= table[at.to(table.device)].isfinite().all(dim=1).cpu().numpy()
        self.non_finite = np.concatenate([self.non_finite, slots[~sound]])
        if len(self.non_finite) > MAX_NON_FINITE:
            raise ValueError(
                f"FaissIndex: more than {MAX_NON_FINITE} entries of keys have a NaN or infinite feature; "
                "mend the features"
            )
        if not sound.all():
            rows, slots = rows[sound], slots[sound]
        if len(rows):
            self.store.add(rows, slots)
            self.longest = max(self.longest, float(np.einsum("ij,ij->i", rows, rows).max()) ** 0.5)
        return rows

    @graph_break
    def update(self, keys: Mapping[str, Tensor], slots: Tensor, key_ids: Tensor | None = None) -> Staleness:
        """Replaces entries `slots` [n] of the queue: the old ones leave the index, the new ones enter.

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
        self.non_finite = self.non_finite[~np.isin(self.non_finite, replaced)]
        filled = replaced[self.ids[replaced] >= 0]
        if not self.store.index.is_trained:  # built over an empty queue
            self.rebuild(keys, key_ids)
            return self.staleness
        rows = self._add(keys, filled) if len(filled) else np.zeros((0, sum(self.dims)), np.float32)
        stats = self.stats
        stats.updates += 1
        if len(rows):
            stats.added += len(rows)
            share = len(rows) / stats.added
            stats.misfit += share * (self.store.misfit(rows) - stats.misfit)
        if self.policy.due(self.staleness):
            self.rebuild(keys, key_ids)
        return self.staleness

    @graph_break
    def sync(self, queue: Queue) -> Staleness:
        """Updates the index to a queue after its `enqueue`.

        Replaced are the entries between the pointer's last place and this one, and those that carry another id. Call
        it once after building, to note the pointer, and then before N more entries are written.
        """
        check_queue(queue, self.size)
        pointer, ids = int(queue.pointer), checked_ids(queue.ids, self.size)
        changed = ids != self.ids
        before = self.stats.pointer
        if before >= 0:
            steps = (pointer - before) % self.size
            changed[(before + np.arange(steps)) % self.size] = True
        self.stats.pointer = pointer
        return self.update(queue.views, torch.from_numpy(np.flatnonzero(changed)), queue.ids)

    @property
    def staleness(self) -> Staleness:
        """Says how far the index has moved since it was built."""
        stats = self.stats
        drift = max(stats.misfit / stats.fit - 1, 0.0) if stats.fit > 0 else 0.0
        dead = self.store.dead / max(self.store.held, 1)
        return Staleness(stats.updates, stats.added / max(self.size, 1), drift, dead, stats.rebuilds)

    @graph_break
    def cascade_topk(
        self,
        queries: Mapping[str, Tensor],
        keys: Mapping[str, Tensor],
        schedule: Schedule,
        settings: SearchSettings | None = None,
        **masks: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Runs the cascade with this index as stage 1; arguments and results as :func:`cpr_kernels.cascade_topk`.

        `settings` serve this call in place of the index's own, unmeasured. A `key_bias` is added exactly to the scores
        of what the index proposes. Where stage 1 is the only one, more are fetched until the greatest bias could
        not raise one of the others into the result, or the query is computed exactly: a flat index stays exact.

        Raises:
            ValueError: keys of another shape than the index's, no key_ids where the index was built with empty slots,
                a stage 1 that judges by a view that the index does not hold, or one that keeps so large a share of
                the queue that an index cannot help.
        """
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
        chosen, recall = (settings, None) if settings else self.settings_for(schedule, keys)
        mined = self.search(call, self._vectors(queries, schedule[0]), chosen)
        self.report = self.report._replace(recall=recall)
        return mined

    def search(
        self, call: CascadeCall, vectors: Tensor, settings: SearchSettings | None = None
    ) -> tuple[Tensor, Tensor]:
        """Runs a checked call, stage 1 by this index for `vectors` [B, D], the queries as the index's vectors."""
        indices, scores, self.report = search_cascade(
            self.store, settings or self.settings, call, vectors,
            non_finite=self.non_finite, longest=self.longest,
        )  # fmt: skip
        return indices, scores

    def _vectors(self, queries: Mapping[str, Tensor], stage: Stage) -> Tensor:
        """Returns queries [B, D] float32 as the index's vectors, each view times its weight in the stage."""
        return torch.cat([queries[view].float() * stage.weights.get(view, 0.0) for view in self.views], dim=1)

    def settings_for(
        self, schedule: Schedule, keys: Mapping[str, Tensor]
    ) -> tuple[SearchSettings, float | None]:
        """Returns the settings of a search under a schedule, and their recall; None where that is not measured.

        Measures at the first call after a build for each schedule: entries spread over the queue are the queries.
        """
        settings = self.settings
        left_on_disk = self.on_disk and settings.recall is None
        if self.store.exact or settings.effort is not None or left_on_disk or not len(self):
            return settings, None
        if (schedule, settings) not in self._measured:
            found = choose_effort(self.store, settings, schedule[0].keep, self._recall_of(schedule, keys))
            warn_of_low_recall(self.store, schedule, settings.recall, found.recall)
            self._measured[schedule, settings] = found
        return self._measured[schedule, settings]

    def _recall_of(self, schedule: Schedule, keys: Mapping[str, Tensor]) -> Callable[[SearchSettings], float]:
        """Returns the function that measures settings against the exact cascade, with entries as queries."""
        held = np.setdiff1d(np.flatnonzero(self.ids >= 0), self.non_finite)
        count = min(SAMPLE, len(held))
        at = torch.from_numpy(held[np.arange(count) * len(held) // count])
        tables = {view: keys[view].detach() for view in (*self.views, *schedule.views)}
        queries = {view: table[at.to(table.device)] for view, table in tables.items()}
        device = tables[self.views[0]].device
        ids = torch.from_numpy(self.ids) if self.has_ids else torch.arange(self.size)
        call = as_call(queries, tables, schedule, ids[at].to(device), ids.to(device))
        exact, _ = torch.ops.cpr.cascade_topk(*call)
        vectors = self._vectors(queries, schedule[0])

        def recall(settings: SearchSettings) -> float:
            return float(overlap(exact, self.search(call, vectors, settings)[0]).mean())

        return recall

    def _check_keys(self, keys: Mapping[str, Tensor]) -> None:
        check_tables(keys, self.views, self.size, self.dims)

    def _refuse_read_only(self, what: str) -> None:
        if self.read_only:
            raise ValueError(
                f"FaissIndex: {what} needs an index of its own, and this one is read-only "
                "(memory-mapped, or adopted from FAISS); load it with mmap=False, or build one"
            )

    def save(self, folder: str | Path) -> None:
        """Writes the index to `folder`: index.faiss, entries.npz and about.json, replaced whole."""
        saved = SavedIndex(
            self.views, self.dims, self.size, self.factory, self.policy, self.settings, self.stats,
            self.store.on_cpu(), self.store.entry_of_label, self.ids, self.has_ids, self.non_finite, self.longest,
        )  # fmt: skip
        files.write(saved, Path(folder))

    @classmethod
    def load(cls, folder: str | Path, *, mmap: bool = False) -> FaissIndex:
        """Reads an index that :meth:`save` wrote.

        Args:
            folder: where it was saved.
            mmap: leave the vectors on disk and read what a search touches: for banks larger than memory, together
                with memory-mapped keys. Such an index is read-only.

        Raises:
            ValueError: a folder that holds no such index, or files that do not belong together.
        """
        saved = files.read(Path(folder), mmap)
        store = VectorStore.around(
            saved.vectors, saved.factory, sum(saved.dims), saved.size, saved.entry_of_label
        )
        if not mmap:
            store.check_labels(saved.size)
        made = cls.__new__(cls)
        made._restore(saved, store, read_only=mmap, on_disk=mmap)
        return made

    @classmethod
    def from_faiss(cls, index: Any, keys: Mapping[str, Tensor], views: str | Sequence[str]) -> FaissIndex:
        """Adopts an index that was made with FAISS itself, read-only: its ids must be the entries' places in `keys`.

        Raises:
            ValueError: another dimension or metric than needed, or ids that are not the entries.
        """
        names = view_names(keys, views)
        dims, size = tuple(int(keys[view].shape[1]) for view in names), int(keys[names[0]].shape[0])
        store = VectorStore.adopt(index, sum(dims), size)
        squared = sum(keys[view].float().square().sum(dim=1).nan_to_num(posinf=0.0) for view in names)
        longest = float(Tensor(squared).max().sqrt()) if size else 0.0
        none = np.zeros(0, np.int64)
        saved = SavedIndex(
            names, dims, size, type(store.index).__name__, RebuildPolicy(), SearchSettings(), UpdateStats(),
            store.index, store.entry_of_label, np.zeros(size, np.int64), False, none, longest,
        )  # fmt: skip
        made = cls.__new__(cls)
        made._restore(saved, store, read_only=True)
        return made
