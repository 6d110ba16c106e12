"""Source ids: from names, for rows that have none, and what a memory refuses."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor

OWN_SOURCE = 2**62  # ids from here on are of rows that came without one; names have lower ones


def source_ids(names: Iterable[str], device: torch.device | str | None = None) -> Tensor:
    """Returns an id for each name: the same one for the same name, on every rank and in every run.

    The first 62 bits of the name's BLAKE2b hash: of a million names, two share an id with a probability of 1e-7.

    Args:
        names: B names of source videos, such as paths.
        device: where the ids are put.

    Returns:
        [B] int64, >= 0.

    Raises:
        ValueError: a name that is not a string, or one string instead of several.

    Example:
        >>> queue.enqueue(features, source_ids(["v_Archery_g01", "v_Archery_g02"]))
    """
    if isinstance(names, str):
        raise ValueError(f"source_ids: names must be several strings, got one: {names!r}; use [{names!r}]")
    ids = []
    for i, name in enumerate(names):
        if not isinstance(name, str):
            raise ValueError(f"source_ids: names[{i}] must be a string, got {type(name).__name__}")
        digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        ids.append(int.from_bytes(digest, "big") >> 2)
    return torch.tensor(ids, dtype=torch.int64, device=device)


def with_own_sources(ids: Tensor, places: Tensor) -> Tensor:
    """The ids [B]; where one is negative, one that only this place (a slot, a row) of the memory has."""
    return torch.where(ids < 0, OWN_SOURCE + places, ids)


def check_filled(op: str, ids: Tensor) -> None:
    """Raises where an id is negative, which would mark an empty slot; on a CUDA device without waiting for it.

    Raises:
        ValueError: naming the first negative id; compiled code and CUDA devices raise torch's own error.
    """
    if ids.device.type == "cuda" or torch.compiler.is_compiling():
        torch._assert_async((ids >= 0).all(), f"{op}: ids must be >= 0; a negative id marks an empty slot")
    elif ids.device.type == "cpu" and bool((ids < 0).any()):
        place = int((ids < 0).nonzero()[0])
        raise ValueError(
            f"{op}: ids[{place}] is {int(ids[place])}; ids must be >= 0, since a negative id marks an empty slot. "
            "Leave ids out where each row is its own source"
        )
