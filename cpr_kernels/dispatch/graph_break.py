"""What torch.compile must not look into."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")


def runs_eagerly(function: Callable[P, T]) -> Callable[P, T]:
    """Compiled code calls `function` as it is, with a break of the graph, and compiles nothing that it calls: it hands
    addresses to the core or to FAISS, or talks to other processes. Under `fullgraph=True` that is torch's error.

    `torch.compiler.disable` alone would import the compiler with the package.
    """

    @functools.wraps(function)
    def eager(*args: P.args, **kwargs: P.kwargs) -> T:
        if torch.compiler.is_compiling():
            return torch.compiler.disable(function)(*args, **kwargs)
        return function(*args, **kwargs)

    return eager
