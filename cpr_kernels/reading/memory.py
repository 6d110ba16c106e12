"""Refuses what a header says to be larger than this machine can hold."""

from __future__ import annotations

import os


def memory() -> int:
    """Returns the bytes of memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def refuse_larger_than_memory(what: str, size: int) -> None:
    """Raises `ValueError` where `size` bytes are more than the memory of this machine."""
    if size > memory():
        raise ValueError(f"{what} would take {size:,} bytes, and this machine has {memory():,}")
