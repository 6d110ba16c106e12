"""Writes a FAISS index over a queue to a folder, and reads it back."""

from __future__ import annotations

import json
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...files import replacing
from .settings import RebuildPolicy, SearchSettings, UpdateStats
from .store import import_faiss

FORMAT = 1
ENTRIES = (
    "views", "dims", "size", "factory", "policy", "settings", "held", "longest", "has_ids", "moved",
)  # fmt: skip
NAMES = ("index.faiss", "entries.npz", "about.json")


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
    """Writes `saved` to `folder`: index.faiss, entries.npz and about.json, replaced whole."""
    faiss = import_faiss()
    about = {
        "format": FORMAT, "views": saved.views, "dims": saved.dims, "size": saved.size, "factory": saved.factory,
        "policy": asdict(saved.policy), "settings": asdict(saved.settings), "held": int(saved.vectors.ntotal),
        "longest": saved.longest, "has_ids": saved.has_ids, "moved": asdict(saved.stats),
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    with replacing([folder / name for name in NAMES]) as parts:
        faiss.write_index(saved.vectors, str(parts[0]))
        with parts[1].open("wb") as file:
            np.savez(file, ids=saved.ids, odd=saved.non_finite, slot_of=saved.entry_of_label)
        parts[2].write_text(json.dumps(about))


def read(folder: Path, mmap: bool) -> SavedIndex:
    """Reads what `write` wrote; with `mmap` the vectors stay on disk.

    Raises:
        ValueError: a folder that holds no such index, or files that do not belong together.
    """
    missing = [name for name in NAMES if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"FaissIndex.load: {folder} lacks {', '.join(missing)}; a bare FAISS file knows no ids of the queue's "
            "entries: give the folder that FaissIndex.save wrote, or adopt the index with FaissIndex.from_faiss"
        )
    about = _read_about(folder)
    vectors = _read_vectors(folder, mmap)
    if vectors.ntotal != about["held"]:
        raise ValueError(
            f"FaissIndex.load: {folder / 'index.faiss'} holds {vectors.ntotal} vectors, but about.json counts "
            f"{about['held']}: the files do not belong together; save the index again"
        )
    ids, non_finite, entry_of_label = _read_entries(folder)
    if ids.shape != (about["size"],):
        raise ValueError(
            f"FaissIndex.load: {folder / 'entries.npz'} holds ids of shape {list(ids.shape)}, but about.json counts "
            f"{about['size']} entries: the files do not belong together; save the index again"
        )
    return SavedIndex(
        tuple(about["views"]), tuple(about["dims"]), about["size"], about["factory"],
        RebuildPolicy(**about["policy"]), SearchSettings(**about["settings"]), UpdateStats(**about["moved"]),
        vectors, entry_of_label, ids, about["has_ids"], non_finite, about["longest"],
    )  # fmt: skip


def _read_about(folder: Path) -> dict[str, Any]:
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
    return dict(about)


def _read_vectors(folder: Path, mmap: bool) -> Any:
    faiss = import_faiss()
    flags = faiss.IO_FLAG_MMAP_IFC | faiss.IO_FLAG_READ_ONLY if mmap else 0
    try:
        return faiss.read_index(str(folder / "index.faiss"), flags)
    except RuntimeError as error:
        raise ValueError(f"FaissIndex.load: {folder / 'index.faiss'} is not a whole FAISS index") from error


def _read_entries(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    try:
        with np.load(folder / "entries.npz") as entries:
            return entries["ids"], entries["odd"], entries["slot_of"]
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"FaissIndex.load: {folder / 'entries.npz'} is damaged ({error}); save the index again"
        ) from error
