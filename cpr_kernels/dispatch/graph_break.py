"""Keeps `torch.compile` from tracing functions that it cannot compile."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")


def graph_break(function: Callable[P, T]) -> Callable[P, T]:
    """Runs `function` eagerly inside compiled code: the graph breaks there, and nothing it calls is compiled.

    For functions that pass addresses to the core or to FAISS, or exchange messages with other processes. Under
    `fullgraph=True` torch raises its error.

    The decorator `torch.compiler.disable` would import the compiler with the package.
    """

    @functools.wraps(function)
    def eager(*args: P.args, **kwargs: P.kwargs) -> T:
        if torch.compiler.is_compiling():
            return torch.compiler.disable(function)(*args, **kwargs)
        return function(*args, **kwargs)

    return eager
