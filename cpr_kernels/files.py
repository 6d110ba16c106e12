"""Files are replaced whole: a reader, or a kill at any moment, sees the old one or the new one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """Temporary paths beside `paths` to write to; on success they replace `paths`, else they vanish.

    Example:
        >>> with replacing([Path("a.npy")]) as [part]:
        ...     part.write_bytes(body)
    """
    parts = [path.with_name(f".{path.name}.{os.getpid()}.part") for path in paths]
    try:
        yield parts
        for part in parts:
            _sync(part)
        for part, path in zip(parts, paths):
            part.replace(path)
        for folder in {path.parent for path in paths}:
            _sync(folder)
    finally:
        for part in parts:
            part.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
