"""Writes the mined table: `.npz`, `.npy`, `.safetensors`; one line a mined entry as `.csv` or `.parquet`."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ...files import replacing

WRITES = (".npz", ".npy", ".csv", ".parquet", ".safetensors")


class Result(NamedTuple):
    """What is written: the mined table, and what is known of its rows."""

    indices: np.ndarray  # [B, k] int64, -1 is padding
    scores: np.ndarray  # [B, k] float32, -inf is padding
    schedule: str
    query_ids: np.ndarray | None = None  # [B] as given
    key_ids: np.ndarray | None = None  # [N]
    query_labels: np.ndarray | None = None  # [B] as given
    key_labels: np.ndarray | None = None  # [N]


def output_paths(path: Path, force: bool) -> list[Path]:
    """The files that `--out path` makes: one, or for `.npy` a pair.

    Raises:
        ValueError: an unknown suffix, a missing folder, or a file that is there already without `force`.
    """
    if path.suffix not in WRITES:
        raise ValueError(f"--out: cannot write {path.name!r}; end it in {', '.join(WRITES)}")
    if not path.parent.is_dir():
        raise ValueError(f"--out: the folder {path.parent} does not exist; make it first")
    paths = [path]
    if path.suffix == ".npy":
        paths = [path.with_suffix(".indices.npy"), path.with_suffix(".scores.npy")]
    there = [str(p) for p in paths if p.exists()]
    if there and not force:
        raise ValueError(f"--out: {', '.join(there)} is there already; add --force to replace it")
    return paths


def write_result(paths: list[Path], result: Result) -> None:
    """Writes `result` to the files of :func:`output_paths`, whole or not at all."""
    suffix = paths[0].suffix
    with replacing(paths) as parts:
        if suffix == ".npy":
            for part, array in zip(parts, (result.indices, result.scores)):
                with part.open("wb") as file:
                    np.save(file, array)
        elif suffix == ".npz":
            with parts[0].open("wb") as file:
                np.savez(file, **_named(result), schedule=np.array(result.schedule))
        elif suffix == ".csv":
            _write_csv(parts[0], result)
        else:
            _write_safetensors(parts[0], result)


def _named(result: Result) -> dict[str, Any]:
    fields = result._asdict()
    del fields["schedule"]
    return {name: array for name, array in fields.items() if array is not None}


def _write_safetensors(path: Path, result: Result) -> None:
    try:
        from safetensors.torch import save_file
    except ImportError as error:
        raise ImportError(
            "--out: writing .safetensors needs that package: pip install safetensors"
        ) from error
    numbers = {n: torch.from_numpy(a.copy()) for n, a in _named(result).items() if a.dtype.kind in "fiu"}
    save_file(numbers, path, metadata={"schedule": result.schedule})


def _write_csv(path: Path, result: Result) -> None:
    """One line a mined entry; padding is left out."""
    extra = [
        (name, of_query, of_key)
        for name, of_query, of_key in (
            ("id", result.query_ids, result.key_ids),
            ("label", result.query_labels, result.key_labels),
        )
        if of_query is not None and of_key is not None
    ]
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        out = csv.writer(file)
        names = [column for name, _, _ in extra for column in (f"query_{name}", name)]
        out.writerow(["query", "rank", "index", "score", *names])
        for query, (entries, scores) in enumerate(zip(result.indices.tolist(), result.scores.tolist())):
            for rank, (entry, score) in enumerate(zip(entries, scores), start=1):
                if entry >= 0:
                    known = [x for _, of_query, of_key in extra for x in (of_query[query], of_key[entry])]
                    out.writerow([query, rank, entry, f"{score:.9g}", *known])
