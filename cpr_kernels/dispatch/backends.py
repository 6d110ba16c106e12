"""Chooses the backend that runs a call, and says why the others cannot: one predicate serves both."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch


class Choice(NamedTuple):
    """Is one row of :func:`explain`: a backend, and the reason it cannot run the call (None: it can)."""

    backend: str
    reason: str | None


def choose(table: Sequence[Any], call: Any, name: str = "auto") -> Any:
    """Returns the backend that runs `call`: the first that can, or the one named.

    Raises:
        ValueError: a name that is not in the table, or a named backend that cannot run this call.
    """
    if name == "auto":
        for backend in table:
            if backend.why_not(call) is None:
                return backend
        why = "; ".join(f"{name}: {reason}" for name, reason in reasons(table, call))
        raise ValueError(f"no backend can run this call: {why}")
    for backend in table:
        if name == backend.NAME:
            reason = backend.why_not(call)
            if reason is not None:
                raise ValueError(f"backend={name!r} cannot run this call: {reason}")
            return backend
    known = ", ".join(repr(backend.NAME) for backend in table)
    raise ValueError(f"backend must be 'auto' or one of {known}, got {name!r}")


def in_profiles(op: str, backend: Any) -> AbstractContextManager[Any]:
    """Returns a range that torch.profiler shows as ``cpr::OP (BACKEND)``; nothing where no profiler runs."""
    if not torch.autograd.profiler._is_profiler_enabled:
        return nullcontext()
    return torch.autograd.profiler.record_function(f"cpr::{op} ({backend.NAME})")


def reasons(table: Sequence[Any], call: Any) -> list[Choice]:
    """Returns every backend in order of preference, each with the reason it cannot run `call`, or None."""
    return [Choice(backend.NAME, backend.why_not(call)) for backend in table]


def as_text(op: str, choices: Sequence[Choice]) -> str:
    """Returns the table of reasons, one line per backend; the one that `auto` takes is marked."""
    width = max(len(choice.backend) for choice in choices)
    taken = next((choice.backend for choice in choices if choice.reason is None), None)
    lines = [op]
    for name, reason in choices:
        mark = "->" if name == taken else "  "
        lines.append(f" {mark} {name:<{width}}  {reason or 'can run'}")
    return "\n".join(lines)
