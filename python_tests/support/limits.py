"""Runs a part of a test with less than a machine has: file size, memory, open files."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def limited(what: int, most: int) -> Iterator[None]:
    """Lowers this process's soft limit, as in `limited(resource.RLIMIT_FSIZE, 4096)`: what a full disk is like."""
    soft, hard = resource.getrlimit(what)
    resource.setrlimit(what, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(what, (soft, hard))


def address_space() -> int:
    """Returns the bytes of memory that this process has mapped."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
