"""Drives one FAISS index and knows which queue entry each vector is; FAISS is imported when a store is made."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

IN_BLOCKS = 65_536  # rows converted and added at a time
TRAIN_ROWS_A_CELL = 64  # for k-means; FAISS itself asks for 39 and never uses more than 256
GPU_MAX_K = 2048  # GPU_MAX_SELECTION_K of FAISS, the most neighbours that a search returns
DEFAULT_EF = 64  # HNSW: candidates kept while searching, at least


def import_faiss() -> Any:
    """Returns the faiss module; torch is imported first, so that its OpenMP runtime serves both.

    Raises:
        ImportError: naming the extra.
    """
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            "FAISS is not installed; pip install 'cpr_kernels[faiss]' (CPU) or 'cpr_kernels[faiss-gpu]'"
        ) from error
    return faiss


def why_no_gpu() -> str | None:
    """Returns None where FAISS can put an index on a GPU, else the sentence that says why not."""
    faiss = import_faiss()
    if not hasattr(faiss, "StandardGpuResources"):
        return "the installed FAISS is a CPU build; pip install 'cpr_kernels[faiss-gpu]' instead of [faiss]"
    if faiss.get_num_gpus() == 0:
        return "FAISS finds no GPU on this machine"
    return None


@contextmanager
def torch_threads(faiss: Any) -> Iterator[None]:
    """Runs FAISS on as many threads as torch and restores the number that it was set to."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(torch.get_num_threads())
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _one_line(error: BaseException) -> str:
    """Returns what FAISS's error says, without its place in the source."""
    return re.sub(r"^Error in .*?\.(cpp|h):\d+: (Error: )?", "", str(error).replace("\n", " ")).strip()


def kind_of(faiss: Any, index: Any) -> str:
    """Returns "flat", "ivf" or "hnsw"; "" for a kind that this library does not drive."""
    plain = faiss.downcast_index(index)
    if isinstance(plain, faiss.IndexHNSW):
        return "hnsw"
    if isinstance(plain, faiss.IndexIVF):
        return "ivf"
    return "flat" if isinstance(plain, faiss.IndexFlat) else ""


def _unknown_kind(factory: str, index: Any) -> str:
    return (
        f"FaissIndex: factory={factory!r} makes a {type(index).__name__}; "
        "use Flat, IVF<cells>,Flat, IVF<cells>,PQ<bytes> or HNSW<links>"
    )


def _ids_of_lists(faiss: Any, index: Any) -> np.ndarray:
    """Returns the ids that an IVF index holds, list after list."""
    lists = ((index.invlists.get_ids(i), index.invlists.list_size(i)) for i in range(index.nlist))
    found = [np.array(faiss.rev_swig_ptr(ids, count)) for ids, count in lists if count]
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def padded_dim(dim: int, factory: str) -> int:
    """Rounds `dim` up to a multiple of PQ's parts: zeros change no inner product."""
    parts = re.search(r"PQ(\d+)", factory)
    unit = int(parts[1]) if parts and int(parts[1]) > 0 else 1
    return -(-dim // unit) * unit


class VectorStore:
    """Adds, drops and searches vectors of queue entries in a FAISS index by inner product; answers are entries.

    Entries leave in the way the index allows: IVF removes them, Flat overwrites them, HNSW and GPU indexes keep
    the vector as one of no entry (`dead`) until a rebuild.

    Args:
        factory: "Flat", "IVF<cells>,Flat", "IVF<cells>,PQ<bytes>" or "HNSW<links>".
        dim: of the vectors.
        size: N, entries of the queue.
        gpu: put it on the first GPU.

    Raises:
        ImportError: FAISS is missing.
        ValueError: a factory string that FAISS or this library does not know, or a GPU that is not there.
    """

    def __init__(self, factory: str, dim: int, size: int, gpu: bool = False) -> None:
        faiss = import_faiss()
        if gpu and (reason := why_no_gpu()):
            raise ValueError(f"FaissIndex: device='cuda' cannot be used: {reason}")
        if not isinstance(factory, str):
            raise ValueError(f"FaissIndex: factory must be text as FAISS writes it, got {factory!r}")
        try:
            index = faiss.index_factory(padded_dim(dim, factory), factory, faiss.METRIC_INNER_PRODUCT)
        except RuntimeError as error:
            raise ValueError(f"FaissIndex: factory={factory!r}: {_one_line(error)}") from error
        self._drive(index, factory, size)
        listed = (faiss.IndexIVFFlat, faiss.IndexIVFPQ, faiss.IndexIVFScalarQuantizer)
        if self.kind == "ivf" and not isinstance(self.index, listed):
            raise ValueError(_unknown_kind(factory, self.index))
        self.gpu = gpu
        self.by_slot = self.kind == "ivf" and not gpu
        if self.by_slot:
            self.index.set_direct_map_type(faiss.DirectMap.Hashtable)
        if gpu:
            self._to_gpu()

    @classmethod
    def around(
        cls, index: Any, factory: str, dim: int, size: int, entry_of_label: np.ndarray | None = None
    ) -> VectorStore:
        """Drives a FAISS index that exists already; an IVF index without `entry_of_label` has entries as labels.

        Raises:
            ValueError: an index of another kind, dimension or metric.
        """
        made = cls.__new__(cls)
        made._drive(index, factory, size)
        if index.metric_type != made.faiss.METRIC_INNER_PRODUCT:
            raise ValueError(
                "FaissIndex: the index is not by inner product; build it with METRIC_INNER_PRODUCT"
            )
        if index.d != padded_dim(dim, factory):
            raise ValueError(
                f"FaissIndex: the index holds vectors of {index.d} numbers, but its views have {dim} together"
            )
        labelled = entry_of_label is not None and len(entry_of_label) > 0
        made.gpu, made.by_slot = False, made.kind == "ivf" and not labelled
        if entry_of_label is not None and labelled:
            if len(entry_of_label) != index.ntotal or entry_of_label.max() >= size:
                raise ValueError("FaissIndex: its labels are not those of the vectors")
            made.place_labels(entry_of_label)
        return made

    def check_labels(self, size: int) -> None:
        """Raises `ValueError` where a vector of an IVF index, whose labels are entries, names none of the queue's."""
        labels = _ids_of_lists(self.faiss, self.index) if self.by_slot else np.zeros(0, np.int64)
        outside = len(labels) > 0 and not 0 <= labels.min() <= labels.max() < size
        if outside or len(np.unique(labels)) < len(labels):
            raise ValueError(
                "FaissIndex: a vector of it is of no entry, or an entry has two; save the index again"
            )

    @classmethod
    def adopt(cls, index: Any, dim: int, size: int) -> VectorStore:
        """Drives an index that was made with FAISS itself, whose ids are the entries' places in [0, size).

        Raises:
            ValueError: no FAISS index, one that does not fit, or ids that are not the entries.
        """
        faiss = import_faiss()
        if not isinstance(index, faiss.Index):
            raise ValueError(
                f"FaissIndex.from_faiss: expected an index made by FAISS, got {type(index).__name__}; a file is read "
                "with faiss.read_index"
            )
        index = faiss.downcast_index(index)
        mapped = isinstance(index, (faiss.IndexIDMap, faiss.IndexIDMap2))
        inner = faiss.downcast_index(index.index) if mapped else index
        made = cls.around(inner, "", dim, size)
        made._owner = index
        if mapped:
            entries = faiss.vector_to_array(index.id_map)
        else:
            entries = _ids_of_lists(faiss, inner) if made.by_slot else np.arange(inner.ntotal)
            if not made.by_slot and inner.ntotal != size:
                raise ValueError(
                    f"FaissIndex.from_faiss: the index holds {inner.ntotal} vectors without ids, and keys {size} "
                    "entries; wrap it in IndexIDMap2 with the entries' places as ids, or build it with FaissIndex"
                )
        if len(entries) and not 0 <= entries.min() <= entries.max() < size:
            raise ValueError(
                f"FaissIndex.from_faiss: ids must be places of entries in [0, {size}), got others"
            )
        if len(np.unique(entries)) != len(entries):
            raise ValueError("FaissIndex.from_faiss: an id is there twice; every entry has one vector")
        if mapped or not made.by_slot:
            made.by_slot = False
            made.place_labels(entries.astype(np.int64))
        return made

    def _drive(self, index: Any, factory: str, size: int) -> None:
        self.faiss, self.factory = import_faiss(), factory
        self.index = self.faiss.downcast_index(index)
        self._owner = index  # its Python object frees the C++ one
        self.dim = int(index.d)
        self.kind = kind_of(self.faiss, self.index)
        if not self.kind:
            raise ValueError(_unknown_kind(factory, self.index))
        self.cells = self.index.nlist if self.kind == "ivf" else 1
        self.exact = self.kind == "flat"
        self.coded = self.kind == "ivf" and not isinstance(self.index, self.faiss.IndexIVFFlat)
        self.label_of = np.full(size, -1, np.int64)  # [N] of each entry, -1: not in the index
        self.place_labels(np.zeros(0, np.int64))

    def place_labels(self, entry_of_label: np.ndarray) -> None:
        """Sets the entry of each label, -1 for none. Not used where labels are entries."""
        self.entry_of_label = entry_of_label
        self.free = np.flatnonzero(entry_of_label < 0)
        self.label_of.fill(-1)
        owned = np.flatnonzero(entry_of_label >= 0)
        self.label_of[entry_of_label[owned]] = owned

    def _to_gpu(self) -> None:
        if self.kind == "hnsw":
            raise ValueError("FaissIndex: FAISS has no HNSW for GPUs; use Flat or IVF there")
        self.resources = self.faiss.StandardGpuResources()
        self.index = self.faiss.index_cpu_to_gpu(self.resources, 0, self.index)

    def on_cpu(self) -> Any:
        """Returns the FAISS index, a copy of it where it is on a GPU."""
        return self.faiss.index_gpu_to_cpu(self.index) if self.gpu else self.index

    @property
    def replaceable(self) -> bool:
        """Returns True where entries can leave and enter; not so in IVF lists whose labels are not entries."""
        return self.kind != "ivf" or self.by_slot or self.gpu

    @property
    def held(self) -> int:
        """Counts the vectors in the index, dead ones included."""
        return int(self.index.ntotal)

    @property
    def dead(self) -> int:
        """Counts the vectors of replaced entries."""
        return 0 if self.by_slot else len(self.free)

    @property
    def max_k(self) -> int:
        """Returns the most neighbours that one search can return."""
        return GPU_MAX_K if self.gpu else 2**31 - 1

    def padded(self, rows: np.ndarray) -> np.ndarray:
        """Returns rows [n, dim] of the index from rows of the views' size, zeros appended."""
        if rows.shape[1] == self.dim:
            return np.ascontiguousarray(rows, dtype=np.float32)
        wide = np.zeros((rows.shape[0], self.dim), np.float32)
        wide[:, : rows.shape[1]] = rows
        return wide

    def train(self, rows: np.ndarray) -> None:
        """Learns cells and codes from rows [n, dim]; Flat and HNSW learn nothing.

        Raises:
            ValueError: fewer rows than cells or codes.
        """
        if self.index.is_trained:
            return
        if rows.shape[0] < max(self.cells, 256 if self.coded else 1):
            raise ValueError(
                f"FaissIndex: factory={self.factory!r} learns from at least "
                f"{max(self.cells, 256 if self.coded else 1)} entries, and the queue holds {rows.shape[0]}; "
                "build it later, or with fewer cells"
            )
        self._set_training()
        with torch_threads(self.faiss):
            self.index.train(self.padded(rows))

    def _set_training(self) -> None:
        """Silences advice on stderr about the number of rows, which `train` checks, and skips polysemous training.

        That orders the codes for Hamming filters, which nothing here uses, and takes most of the training.
        """
        if self.kind == "ivf":
            self.index.cp.min_points_per_centroid = 1
        if hasattr(self.index, "pq"):
            self.index.pq.cp.min_points_per_centroid = 1
            self.index.do_polysemous_training = False

    def reserve(self, count: int) -> None:
        """Allocates the memory of `count` vectors at once.

        Growing by doubling, a flat store would hold twice its size for a moment. The lists of IVF are small, and a
        GPU allocates for itself.
        """
        if self.gpu or self.kind == "ivf":
            return
        flat = self.faiss.downcast_index(self.index.storage) if self.kind == "hnsw" else self.index
        if not flat.ntotal and hasattr(flat, "codes"):
            flat.codes.resize(count * flat.code_size)
            flat.codes.resize(0)

    def add(self, rows: np.ndarray, slots: np.ndarray) -> None:
        """Adds vectors [n, dim] of entries `slots` [n], none of which is in the index."""
        rows = self.padded(rows)
        with torch_threads(self.faiss):
            if self.by_slot:
                self.index.add_with_ids(rows, slots)
                return
            reused = min(len(self.free), len(slots)) if self.exact and not self.gpu else 0
            labels = np.concatenate([self.free[:reused], self.held + np.arange(len(slots) - reused)])
            if reused:
                held = self.faiss.rev_swig_ptr(self.index.get_xb(), self.held * self.dim)
                held.reshape(self.held, self.dim)[labels[:reused]] = rows[:reused]
            if reused < len(slots):
                self.index.add(rows[reused:])
        self.free = self.free[reused:]
        if grown := self.held - len(self.entry_of_label):
            self.entry_of_label = np.concatenate([self.entry_of_label, np.full(grown, -1, np.int64)])
        self.entry_of_label[labels], self.label_of[slots] = slots, labels

    def drop(self, slots: np.ndarray) -> None:
        """Removes entries; those that are not in the index are skipped."""
        if self.by_slot:
            self.index.remove_ids(self.faiss.IDSelectorArray(np.ascontiguousarray(slots)))
            return
        labels = self.label_of[slots]
        labels = labels[labels >= 0]
        self.entry_of_label[labels], self.label_of[slots] = -1, -1
        self.free = np.concatenate([self.free, labels])

    @property
    def max_effort(self) -> int:
        """Returns the effort beyond which a search tries no harder: all cells (IVF) or all vectors (HNSW)."""
        return max(self.held, 1) if self.kind == "hnsw" else self.cells

    def effort_for(self, fetch: int, effort: int | None = None) -> int:
        """Returns how many cells (IVF) or candidates (HNSW) a first search visits; 1 for Flat.

        That is `effort`; without one, cells enough to hold eight times what is fetched, or 64 candidates. A walk of
        HNSW holds as many candidates as it fetches at least.
        """
        if self.kind == "hnsw":
            return min(max(effort or DEFAULT_EF, fetch), self.max_effort)
        enough = max(-(-8 * fetch * self.cells // max(self.held, 1)), self.cells // 32, 1)
        return min(effort or enough, self.max_effort)

    def search(
        self, vectors: np.ndarray, fetch: int, widening: int = 1, effort: int | None = None
    ) -> tuple[np.ndarray, np.ndarray, bool]:
        """Returns the `fetch` best entries of each vector [B, dim].

        That is slots [B, fetch] (-1: none, or a vector of no entry), their scores, and whether every vector of the
        index was compared. The search visits `widening` times what `effort_for` says.
        """
        fetch = max(1, min(fetch, max(self.held, 1), self.max_k))
        visited = min(self.effort_for(fetch, effort) * widening, self.max_effort)
        options: dict[str, Any] = {}
        whole = fetch >= self.held and self.kind != "hnsw"  # a walk may miss some
        if self.kind == "ivf":
            options["params"] = self.faiss.SearchParametersIVF(nprobe=visited)
            whole = whole and visited >= self.cells
        elif self.kind == "hnsw":
            options["params"] = self.faiss.SearchParametersHNSW(efSearch=visited)
        with torch_threads(self.faiss):
            scores, labels = self.index.search(self.padded(vectors), fetch, **options)
        if not self.by_slot and len(self.entry_of_label):
            labels = np.where(labels >= 0, self.entry_of_label[labels], -1)
        return labels, scores, whole

    def misfit(self, rows: np.ndarray) -> float:
        """Returns the mean squared distance of rows [n, dim] to their cells' centres; 0 where there are no cells."""
        if self.kind != "ivf" or not len(rows):
            return 0.0
        rows = self.padded(rows)
        with torch_threads(self.faiss):
            _, cells = self.index.quantizer.search(rows, 1)
            centres = self.index.quantizer.reconstruct_batch(cells[:, 0])
        return float(((rows - centres) ** 2).sum(axis=1).mean())
