"""Writes a FAISS index over a queue to a folder, and reads it back."""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from msgspec import Meta

from ...files import replacing
from ...reading.arrays import read_npz
from ...reading.records import as_record, read_json
from ...reading.seals import UNSEALED, check_seal, file_hash, sealed
from .settings import RebuildPolicy, SearchSettings, UpdateStats
from .store import import_faiss

FORMAT = 1
NAMES = VECTORS, ARRAYS, ABOUT = ("index.faiss", "entries.npz", "about.json")
MOST = sys.float_info.max
Count = Annotated[int, Meta(ge=0, lt=2**62)]


@dataclass(frozen=True)
class About:
    """Holds the fields of about.json; `files` are the hashes of the other two, empty in older folders."""

    views: Annotated[list[str], Meta(min_length=1)]
    dims: list[Annotated[int, Meta(ge=1, le=1 << 20)]]
    size: Count
    factory: str
    policy: RebuildPolicy
    settings: SearchSettings
    held: Count
    longest: Annotated[float, Meta(ge=0)]
    has_ids: bool
    moved: UpdateStats
    files: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SavedIndex:
    """Holds what a :class:`FaissIndex` is made of, as it is on disk."""

    views: tuple[str, ...]
    dims: tuple[int, ...]
    size: int  # N
    factory: str
    policy: RebuildPolicy
    settings: SearchSettings
    stats: UpdateStats
    vectors: Any  # a FAISS index on the CPU
    entry_of_label: np.ndarray  # int64, of each vector, -1: of no entry; empty where labels are entries (IVF)
    ids: np.ndarray  # [N] int64
    has_ids: bool
    non_finite: np.ndarray  # int64, entries that the index cannot hold
    longest: float  # the largest norm of a vector


def write(saved: SavedIndex, folder: Path) -> None:
    """Writes `saved` to `folder`: index.faiss, entries.npz and about.json with the hashes of both, replaced whole."""
    faiss = import_faiss()
    moved = {name: _finite(value) for name, value in asdict(saved.stats).items()}
    about = {
        "format": FORMAT, "views": saved.views, "dims": saved.dims, "size": saved.size, "factory": saved.factory,
        "policy": asdict(saved.policy), "settings": asdict(saved.settings), "held": int(saved.vectors.ntotal),
        "longest": _finite(saved.longest), "has_ids": saved.has_ids, "moved": moved,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    with replacing([folder / name for name in NAMES]) as parts:
        faiss.write_index(saved.vectors, str(parts[0]))
        with parts[1].open("wb") as file:
            np.savez(file, ids=saved.ids, odd=saved.non_finite, slot_of=saved.entry_of_label)
        about["files"] = {VECTORS: file_hash(parts[0]), ARRAYS: file_hash(parts[1])}
        parts[2].write_text(json.dumps(sealed(about)))


def _finite(value: float) -> float:
    """Returns a number as JSON can hold it; features near the end of float32 give infinite lengths and misfits."""
    return min(value, MOST) if value == value else MOST


def read(folder: Path, mmap: bool) -> SavedIndex:
    """Reads what `write` wrote; with `mmap` the vectors stay on disk, and their hash is not checked.

    Raises:
        ValueError: a folder that holds no such index, or files that are damaged or do not belong together.
    """
    missing = [name for name in NAMES if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"FaissIndex.load: {folder} lacks {', '.join(missing)}; a bare FAISS file knows no ids of the queue's "
            "entries: give the folder that FaissIndex.save wrote, or adopt the index with FaissIndex.from_faiss"
        )
    about = _read_about(folder)
    for name, wanted in about.files.items():
        if name in NAMES and not (mmap and name == VECTORS) and file_hash(folder / name) != wanted:
            raise ValueError(
                f"FaissIndex.load: {folder / name} is not the file that about.json names (another SHA-256): it is "
                "damaged, or the files do not belong together; save the index again"
            )
    vectors = _read_vectors(folder, mmap)
    if vectors.ntotal != about.held:
        raise ValueError(
            f"FaissIndex.load: {folder / VECTORS} holds {vectors.ntotal} vectors, but about.json counts "
            f"{about.held}: the files do not belong together; save the index again"
        )
    ids, non_finite, entry_of_label = _read_entries(folder, about)
    return SavedIndex(
        tuple(about.views), tuple(about.dims), about.size, about.factory, about.policy, about.settings, about.moved,
        vectors, entry_of_label, ids, about.has_ids, non_finite, about.longest,
    )  # fmt: skip


def _read_about(folder: Path) -> About:
    path = folder / ABOUT
    try:
        body = read_json(path.read_bytes())
        found = body.get("format") if isinstance(body, dict) else None
        if found != FORMAT:
            raise ValueError(f"it has format {found}, expected {FORMAT}")
        if not check_seal(body):
            warnings.warn(f"FaissIndex.load: {path} {UNSEALED}; save the index again", stacklevel=4)
        about = as_record(body, About)
        if len(about.dims) != len(about.views) or len(set(about.views)) < len(about.views):
            raise ValueError(f"it names views {about.views} of {about.dims} numbers")
    except (ValueError, OSError) as error:
        raise ValueError(f"FaissIndex.load: {path} is damaged: {error}; save the index again") from None
    return about


def _read_vectors(folder: Path, mmap: bool) -> Any:
    faiss = import_faiss()
    flags = faiss.IO_FLAG_MMAP_IFC | faiss.IO_FLAG_READ_ONLY if mmap else 0
    try:
        return faiss.read_index(str(folder / VECTORS), flags)
    except (RuntimeError, MemoryError) as error:
        raise ValueError(f"FaissIndex.load: {folder / VECTORS} is not a whole FAISS index") from error


def _read_entries(folder: Path, about: About) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    path = folder / ARRAYS
    try:
        arrays = read_npz(path, {"ids": ("i", 1), "odd": ("i", 1), "slot_of": ("i", 1)})
        ids, non_finite, entry_of_label = (
            arrays[name].astype(np.int64) for name in ("ids", "odd", "slot_of")
        )
        if ids.shape != (about.size,):
            raise ValueError(
                f"it holds ids of shape {list(ids.shape)}, but about.json counts {about.size} entries: the files do "
                "not belong together"
            )
        _refuse_outside("odd", non_finite, 0, about.size)
        _refuse_outside("slot_of", entry_of_label, -1, about.size)
        if len(entry_of_label) not in (0, about.held):
            raise ValueError(f"it places {len(entry_of_label)} vectors, but about.json counts {about.held}")
        owned = entry_of_label[entry_of_label >= 0]
        if len(np.unique(owned)) < len(owned):
            raise ValueError("an entry of it has two vectors")
    except (ValueError, OSError) as error:
        raise ValueError(f"FaissIndex.load: {path} is damaged: {error}; save the index again") from None
    return ids, non_finite, entry_of_label


def _refuse_outside(name: str, entries: np.ndarray, least: int, size: int) -> None:
    if len(entries) and not least <= entries.min() <= entries.max() < size:
        raise ValueError(f"{name!r} names entries outside [0, {size})")
