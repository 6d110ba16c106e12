"""Opens a file or a folder of arrays, and names what it holds."""

from __future__ import annotations

from pathlib import Path

from .column import Column, reading
from .folders import folder
from .formats import open_file
from .pooling import Pool, is_one_a_video, names_of, pooled, stacked


def open_columns(path: Path, name: str | None = None, pool: Pool = "mean") -> dict[str, Column]:
    """Returns the arrays of a file, or of a folder of one file a video, by name.

    An array without a name of its own, such as that of a `.npy`, is called `name` (default: the file's stem). Floats
    [N, T, D] become [N, D] by `pool`, and so do files and folders that hold one array [T, D] a video: those have the
    column `video` of the arrays' names, and `label` where they are in folders. See docs/tables.md.

    Raises:
        ValueError: no such file, an ending that is not read, or a file that is not what its ending says.
        ImportError: a format whose package is missing.
    """
    own = name or path.stem
    if path.is_dir():
        columns = folder(path, own, pool)
    else:
        columns = _of_file(path, own, pool)
    return {column.name: pooled(column, pool) for column in columns}


def _of_file(path: Path, name: str, pool: Pool) -> list[Column]:
    columns = open_file(path, name)
    if not is_one_a_video(columns):
        return columns
    with reading(path):
        view = stacked(name, str(path), {column.name: column for column in columns}, pool)
    return [view, *names_of([column.name for column in columns], str(path))]
