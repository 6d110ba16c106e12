"""Reads the members of a zip file, names and sizes checked before any of them is read."""

from __future__ import annotations

import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from .memory import refuse_larger_than_memory

MOST_MEMBERS = 100_000
LONGEST_NAME = 1024
DIRECT, PACKED = (zipfile.ZIP_STORED,), (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
BROKEN = (
    zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError, KeyError, ValueError, OverflowError,
    zlib.error,
)  # fmt: skip


@contextmanager
def opened(file: IO[bytes], *, packed: bool = False) -> Iterator[zipfile.ZipFile]:
    """Opens a zip file whose members have plain names, each once, and sizes that the file can hold.

    Refused are absolute names, `..`, backslashes, folders, links, encrypted members, two members of one name or place,
    and, unless `packed`, compression: what is stored as it is cannot grow when it is read. With `packed` the members
    together must fit into the memory of this machine.

    Raises:
        ValueError: no zip file, or one of these, with the name of the member; also where reading inside fails.
    """
    try:
        size = file.seek(0, 2)
        with zipfile.ZipFile(file) as archive:
            _check(archive.infolist(), size, PACKED if packed else DIRECT)
            yield archive
    except BROKEN as error:
        if type(error) is ValueError:
            raise
        raise ValueError(f"no whole zip file ({type(error).__name__}: {error})") from None


def read_members(file: IO[bytes]) -> dict[str, bytes]:
    """Returns {name: body} of a zip file without compression.

    Raises:
        ValueError: see `opened`.
    """
    with opened(file) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def _check(members: list[zipfile.ZipInfo], size: int, methods: tuple[int, ...]) -> None:
    if len(members) > MOST_MEMBERS:
        raise ValueError(f"it holds {len(members):,} members, more than {MOST_MEMBERS:,}")
    names: set[str] = set()
    for info in members:
        if reason := _why_not(info, methods, size):
            raise ValueError(f"member {info.orig_filename[:80]!r} {reason}")
        if info.filename in names:
            raise ValueError(f"member {info.filename!r} is there twice")
        names.add(info.filename)
    if sum(info.compress_size for info in members) > size:
        raise ValueError("its members together are larger than the file; some share their bytes")
    refuse_larger_than_memory("its members", sum(info.file_size for info in members))


def _why_not(info: zipfile.ZipInfo, methods: tuple[int, ...], size: int) -> str | None:
    """Returns why a member is not read, from its entry in the directory."""
    name = info.orig_filename
    if (
        not name
        or len(name) > LONGEST_NAME
        or name != info.filename
        or "\\" in name
        or not name.isprintable()
    ):
        return "has an unusable name"
    if name.startswith("/") or name[1:2] == ":" or any(part in ("", ".", "..") for part in name.split("/")):
        return "leads out of the file: its name is absolute, a folder's, or has dots for a part"
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
        return "is no regular file (a link, a folder or a device)"
    if info.flag_bits & 0x1:
        return "is encrypted"
    if info.compress_type not in methods:
        return (
            "is compressed" if info.compress_type == zipfile.ZIP_DEFLATED else "is stored in an unknown way"
        )
    if info.compress_type == zipfile.ZIP_STORED and info.file_size != info.compress_size:
        return f"has two sizes, {info.file_size:,} and {info.compress_size:,} bytes"
    if info.header_offset < 0 or info.header_offset + info.compress_size > size:
        return "is not inside the file"
    return None
