"""Lists what stopped or killed jobs left in folders, and removes it: `cpr doctor FOLDER --fix`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ..deploy import clip_index
from ..files import is_free, leftovers
from ..progress import result


class LooseEnd(NamedTuple):
    """A file or folder that nothing needs, and why it is there."""

    path: Path
    reason: str


def report_loose_ends(folders: Sequence[Path], fix: bool) -> int:
    """Prints the loose ends below the folders, removes them with `fix`; returns 1 where some are left, else 0.

    Raises:
        ValueError: a folder that does not exist.
    """
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"doctor: {folder} is not a folder")
    found = {end.path: end for folder in folders for end in loose_ends(folder)}
    lines, total = [], 0
    for path, reason in found.values():
        total += (size := _size(path))
        lines.append(f"{path}  {size:,} bytes  {reason}{': removed' if fix else ''}")
        if fix and path.is_dir():
            shutil.rmtree(path)
        elif fix:
            path.unlink(missing_ok=True)
    summary = f"{len(found)} loose ends, {total:,} bytes{': removed' if fix else '; --fix removes them'}"
    ends = [{"path": str(path), "reason": reason} for path, reason in found.values()]
    result({"loose_ends": ends, "removed": fix}, "\n".join([*lines, summary] if found else ["no loose ends"]))
    return 1 if found and not fix else 0


def loose_ends(folder: Path) -> Iterator[LooseEnd]:
    """Yields what is left below a folder by jobs that have ended; what a living process works on is passed over."""
    for name, folders, _ in os.walk(folder):
        at = Path(name)
        yield from (LooseEnd(path, "a file that was never finished") for path in leftovers(at))
        if clip_index.is_index(at) and is_free(at / clip_index.LOCK):
            for path in clip_index.loose_ends(at):
                if path not in leftovers(at):
                    yield LooseEnd(path, "of an index that was replaced")
        for part in [one for one in folders if one.startswith(".") and one.endswith(".part")]:
            folders.remove(part)
            if is_free(at / part / ".lock"):
                yield LooseEnd(at / part, "a copy of a data set that was never finished")


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
