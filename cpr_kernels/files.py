"""Files are replaced whole: a reader, or a kill at any moment, sees the old one or the new one."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

PART = re.compile(r"\.(?P<name>.+)\.\d+\.part")
PROBE = bytes(1 << 20)  # more than a disk has left on which a write failed


@contextmanager
def replacing(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """Gives temporary paths beside `paths` to write to; on success they replace `paths`, else they vanish.

    What killed writers of the same paths left behind is removed. A writer must keep a temporary file that is there
    (open it, truncate it): its lock shows that the writer lives.

    Example:
        >>> with replacing([Path("a.npy")]) as [part]:
        ...     part.write_bytes(body)

    Raises:
        OSError: a path cannot be written; it names path and cause, whatever the library that wrote has raised.
    """
    parts = [path.with_name(f".{path.name}.{os.getpid()}.part") for path in paths]
    with ExitStack() as locks:
        try:
            for part, path in zip(parts, paths):
                for left in leftovers(path.parent, path.name):
                    left.unlink(missing_ok=True)
                locks.enter_context(_locked(part))
            yield parts
            for part in parts:
                _sync(part)
            for part, path in zip(parts, paths):
                part.replace(path)
            for folder in {path.parent for path in paths}:
                _sync(folder)
        except Exception as error:
            cause = _cause(error, dict(zip(parts, paths)))
            if cause is None:
                raise
            raise cause from error
        finally:
            for part in parts:
                with suppress(OSError):
                    part.unlink(missing_ok=True)


def refuse_existing(paths: Iterable[Path | None], force: bool, option: str = "--out") -> None:
    """Raises ValueError where files to write are there already, unless they may be replaced; None is no file."""
    there = [] if force else [str(path) for path in paths if path and path.exists()]
    if there:
        raise ValueError(f"{option}: {', '.join(there)} is there already; add --force to replace it")


def leftovers(folder: Path, name: str | None = None) -> list[Path]:
    """Returns the temporary files of `replacing` in a folder whose writers have died; of one path, or of all."""
    found = ((path, PART.fullmatch(path.name)) for path in folder.glob(".*.part"))
    return sorted(path for path, part in found if part and name in (None, part["name"]) and is_free(path))


def is_free(path: Path) -> bool:
    """Whether a file can be locked, so that no living process holds it; False where that cannot be known."""
    try:
        with path.open("r+b") as file:
            _lock(file)
    except OSError:
        return False
    return True


def relocated(path: str | Path, recorded: str | None, folder: Path) -> Path:
    """Returns the place of a file that another one in `folder` names by `path`, also where both were moved or copied.

    recorded: the absolute path of `folder` when that was written; None where it was not noted. In another folder the
    file is looked for at the same place seen from there, and where nothing is, it is where it was.
    """
    home = folder.resolve()
    if recorded is None or str(home) == recorded:
        return Path(path)
    moved = Path(os.path.normpath(home / os.path.relpath(path, recorded)))
    return moved if moved.exists() else Path(path)


@contextmanager
def _locked(part: Path) -> Iterator[None]:
    with part.open("wb") as file:
        with suppress(OSError):  # a file system without locks: nothing is removed there either
            _lock(file)
        yield


def _lock(file: IO[bytes]) -> None:
    import fcntl

    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _cause(error: Exception, path_of: Mapping[Path, Path]) -> OSError | None:
    """Returns why a part could not be written, None where the error is of another kind.

    Libraries hide a full disk in errors of their own: writing a little more shows it.
    """
    if isinstance(error, OSError) and error.errno:
        if error.filename is None:
            return _named(error, ", ".join(map(str, path_of.values())))
        path = path_of.get(Path(error.filename))
        return None if path is None else _named(error, str(path))
    for part, path in path_of.items():
        try:
            with part.open("ab", buffering=0) as file:
                written = file.write(PROBE)
                if written < len(PROBE):  # cut short: the next write has the reason
                    file.write(PROBE)
        except OSError as found:
            return _named(found, str(path))
    return None


def _named(error: OSError, path: str) -> OSError:
    return OSError(error.errno, error.strerror, path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
