"""Maps a table of embeddings by an artifact of `cpr adapt`, for `cpr predict`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..deploy.adapter import Adapter
from ..files import replacing
from .mine.inputs import open_sides, plain_columns
from .mine.options import Mine
from .mine.planned import raw_rows


def adapted_table(artifact: Path, table: Path, out: Path | None) -> int:
    """Writes a table mapped by an artifact of `cpr adapt`, its other columns as they are; returns how many rows.

    Raises:
        ValueError: no --out or one that is no .npz, or a table without the artifact's views.
    """
    if out is None or out.suffix != ".npz":
        raise ValueError("--out: give FILE.npz; an adapter maps embeddings to embeddings")
    adapter = Adapter(artifact)
    files = Mine(input=table)
    entries, _ = open_sides(files)
    if lacking := [view for view in adapter.sizes if view not in entries.views]:
        raise ValueError(f"{table}: has no view {lacking[0]!r}; there is {', '.join(entries.views)}")
    found = adapter({view: raw_rows(entries.views[view].load(), files.scratch) for view in adapter.sizes})
    columns = {name: np.asarray(column.load()) for name, column in plain_columns(entries).items()}
    _save(out, {**columns, **{view: rows.numpy() for view, rows in found.items()}})
    return entries.rows


def _save(out: Path, arrays: Mapping[str, np.ndarray]) -> None:
    with replacing([out]) as [part], part.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
