"""A FAISS index over a queue, to and from a folder; and one that FAISS made itself, adopted."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ...files import replacing
from .checks import view_names
from .search import SearchReport
from .store import VectorStore, import_faiss

if TYPE_CHECKING:
    from .index import FaissIndex

FORMAT = 1
ENTRIES = (
    "views", "dims", "size", "factory", "policy", "settings", "held", "longest", "has_ids", "moved",
)  # fmt: skip
NAMES = ("index.faiss", "entries.npz", "about.json")


def save(index: FaissIndex, folder: Path) -> None:
    """Write `index` to `folder`."""
    faiss = import_faiss()
    about = {
        "format": FORMAT, "views": index.views, "dims": index.dims, "size": index.size, "factory": index.factory,
        "policy": asdict(index.policy), "settings": asdict(index.settings), "held": index.store.held,
        "longest": index.longest, "has_ids": index.has_ids, "moved": asdict(index.moved),
    }  # fmt: skip
    plain = faiss.index_gpu_to_cpu(index.store.index) if index.store.gpu else index.store.index
    folder.mkdir(parents=True, exist_ok=True)
    with replacing([folder / name for name in NAMES]) as parts:
        faiss.write_index(plain, str(parts[0]))
        with parts[1].open("wb") as file:
            np.savez(file, ids=index.ids, odd=index.odd, slot_of=index.store.slot_of)
        parts[2].write_text(json.dumps(about))


def load(kind: type[FaissIndex], folder: Path, mmap: bool) -> FaissIndex:
    """The index that `save` wrote; see `FaissIndex.load`."""
    from .index import Moved, RebuildPolicy, SearchSettings

    faiss = import_faiss()
    missing = [name for name in NAMES if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"FaissIndex.load: {folder} lacks {', '.join(missing)}; a bare FAISS file knows no ids of the queue's "
            "entries: give the folder that FaissIndex.save wrote, or adopt the index with FaissIndex.from_faiss"
        )
    try:
        about = json.loads((folder / "about.json").read_text())
    except ValueError as error:
        raise ValueError(f"FaissIndex.load: {folder / 'about.json'} is not JSON ({error})") from error
    found = about.get("format") if isinstance(about, dict) else None
    if found != FORMAT:
        raise ValueError(f"FaissIndex.load: {folder} has format {found}, expected {FORMAT}")
    if lacking := [name for name in ENTRIES if name not in about]:
        raise ValueError(
            f"FaissIndex.load: {folder / 'about.json'} lacks {', '.join(lacking)}; save the index again"
        )
    flags = faiss.IO_FLAG_MMAP_IFC | faiss.IO_FLAG_READ_ONLY if mmap else 0
    try:
        read = faiss.read_index(str(folder / "index.faiss"), flags)
    except RuntimeError as error:
        raise ValueError(f"FaissIndex.load: {folder / 'index.faiss'} is not a whole FAISS index") from error
    if read.ntotal != about["held"]:
        raise ValueError(
            f"FaissIndex.load: {folder / 'index.faiss'} holds {read.ntotal} vectors, but about.json counts "
            f"{about['held']}: the files do not belong together; save the index again"
        )
    made = _blank(kind, tuple(about["views"]), tuple(about["dims"]), about["size"], about["factory"])
    made.has_ids = about["has_ids"]
    made.policy, made.settings = RebuildPolicy(**about["policy"]), SearchSettings(**about["settings"])
    made.read_only, made.longest, made.moved = mmap, about["longest"], Moved(**about["moved"])
    made.store = VectorStore.around(read, made.factory, sum(made.dims), made.size)
    try:
        with np.load(folder / "entries.npz") as entries:
            made.ids, made.odd, slot_of = (entries[name] for name in ("ids", "odd", "slot_of"))
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"FaissIndex.load: {folder / 'entries.npz'} is damaged ({error}); save the index again"
        ) from error
    if not made.store.by_slot:
        made.store.place_labels(slot_of)
    elif len(slot_of):  # it was on a GPU, where labels are numbers in order
        made.store.by_slot, made.read_only = False, True
        made.store.place_labels(slot_of)
    return made


def adopt(
    kind: type[FaissIndex], index: Any, keys: Mapping[str, Tensor], views: str | Sequence[str]
) -> FaissIndex:
    """An index that FAISS made, read-only; see `FaissIndex.from_faiss`."""
    faiss, views = import_faiss(), view_names(keys, views)
    if not isinstance(index, faiss.Index):
        raise ValueError(
            f"FaissIndex.from_faiss: expected an index made by FAISS, got {type(index).__name__}; a file is read with "
            "faiss.read_index"
        )
    dims, size = tuple(int(keys[view].shape[1]) for view in views), int(keys[views[0]].shape[0])
    index = faiss.downcast_index(index)
    mapped = isinstance(index, (faiss.IndexIDMap, faiss.IndexIDMap2))
    inner = faiss.downcast_index(index.index) if mapped else index
    made = _blank(kind, views, dims, size, type(inner).__name__)
    made.store = VectorStore.around(inner, "", sum(dims), size)
    if mapped:
        entries = faiss.vector_to_array(index.id_map)
    elif made.store.by_slot:
        lists = ((inner.invlists.get_ids(i), inner.invlists.list_size(i)) for i in range(inner.nlist))
        found = [np.array(faiss.rev_swig_ptr(ids, count)) for ids, count in lists if count]
        entries = np.concatenate(found) if found else np.zeros(0, np.int64)
    else:
        entries = np.arange(inner.ntotal)
        if inner.ntotal != size:
            raise ValueError(
                f"FaissIndex.from_faiss: the index holds {inner.ntotal} vectors without ids, and keys {size} entries; "
                "wrap it in IndexIDMap2 with the entries' places as ids, or build it with FaissIndex"
            )
    if len(entries) and not 0 <= entries.min() <= entries.max() < size:
        raise ValueError(f"FaissIndex.from_faiss: ids must be places of entries in [0, {size}), got others")
    if len(np.unique(entries)) != len(entries):
        raise ValueError("FaissIndex.from_faiss: an id is there twice; every entry has one vector")
    if mapped or not made.store.by_slot:
        made.store.by_slot = False
        made.store.place_labels(entries.astype(np.int64))
    made.store._owner = index
    squared = sum(keys[view].float().square().sum(dim=1).nan_to_num(posinf=0.0) for view in views)
    made.longest = float(Tensor(squared).max().sqrt()) if size else 0.0
    return made


def _blank(
    kind: type[FaissIndex], views: tuple[str, ...], dims: tuple[int, ...], size: int, factory: str
) -> FaissIndex:
    """A read-only index without vectors."""
    from .index import Moved, RebuildPolicy, SearchSettings

    made = kind.__new__(kind)
    made.views, made.dims, made.size, made.factory, made.device = views, dims, size, factory, "cpu"
    made.policy, made.settings, made.moved = RebuildPolicy(), SearchSettings(), Moved()
    made.read_only, made.has_ids, made.report, made.longest = True, False, SearchReport(), 0.0
    made.ids, made.odd = np.zeros(size, np.int64), np.zeros(0, np.int64)
    return made
