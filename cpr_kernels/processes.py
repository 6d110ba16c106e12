"""Starts helper processes from one that has imported torch already.

Importing torch takes seconds of a core. On Linux a server imports it once and forks a process whenever one is wanted;
it has no threads of torch's, whose fork could hang. Elsewhere every process starts anew and imports what it needs.
"""

from __future__ import annotations

import multiprocessing
import sys
from multiprocessing.context import BaseContext

_IMPORTED: list[str] = []  # by the server, when it starts


def start_method() -> str:
    """Returns the start method of `multiprocessing` that helper processes take."""
    return "forkserver" if sys.platform == "linux" else "spawn"


def process_context(*modules: str) -> BaseContext:
    """Returns the `multiprocessing` context of helper processes that use `modules`.

    A server that runs already has imported what was named until it started; others are imported where they are used.
    """
    context = multiprocessing.get_context(start_method())
    _IMPORTED.extend(module for module in modules if module not in _IMPORTED)
    context.set_forkserver_preload(_IMPORTED)
    return context
