"""Starts helper processes from one that has imported torch already.

Importing torch takes seconds of a core. On Linux a server imports it once and forks a process whenever one is wanted;
it has no threads of torch's, whose fork could hang. Elsewhere every process starts anew and imports what it needs.
"""

from __future__ import annotations

import multiprocessing
import sys
from multiprocessing.context import ForkServerContext, SpawnContext

_IMPORTED: list[str] = []  # by the server, when it starts


def start_method() -> str:
    """Returns the start method of `multiprocessing` that helper processes take."""
    return "forkserver" if sys.platform == "linux" else "spawn"


def process_context(*modules: str) -> ForkServerContext | SpawnContext:
    """Returns the `multiprocessing` context of helper processes that use `modules`.

    A server that runs already has imported what was named until it started; others are imported where they are used.
    """
    if start_method() == "spawn":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    _IMPORTED.extend(module for module in modules if module not in _IMPORTED)
    context.set_forkserver_preload(_IMPORTED)
    return context


def imports_main() -> bool:
    """Returns True where this helper process still imports the program's main module, whose work is not its own."""
    return bool(getattr(multiprocessing.current_process(), "_inheriting", False))
