"""Checks what a FaissIndex is given: tables, ids, slots, a queue."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...dispatch.sharded_keys import ShardedKeys
from ...dispatch.tensor_checks import STORED_DTYPES


def view_names(keys: Mapping[str, Tensor], views: str | Sequence[str]) -> tuple[str, ...]:
    """Returns the names of the views to index, which `keys` hold as tensors [N, D] of one N.

    Raises:
        ValueError: naming what was expected and what came.
    """
    if not isinstance(keys, Mapping):
        raise ValueError(f"FaissIndex: keys must be {{view: tensor [N, D]}}, got {type(keys).__name__}")
    names = (views,) if isinstance(views, str) else tuple(views)
    unknown = [view for view in names if view not in keys]
    if not names or unknown:
        raise ValueError(f"FaissIndex: views must name some of {sorted(keys)}, got {list(names)}")
    for view, table in keys.items():
        _check_table(view, table)
        if table.shape[0] != keys[names[0]].shape[0]:
            raise ValueError(
                f"FaissIndex: keys[{view!r}] holds {table.shape[0]} entries, but keys[{names[0]!r}] holds "
                f"{keys[names[0]].shape[0]}; every view has a row for each entry"
            )
    return names


def _check_table(view: str, table: Any) -> None:
    if isinstance(table, ShardedKeys):
        raise ValueError(
            f"FaissIndex: keys[{view!r}] is rank {table.shard.rank}'s share of a queue; an index covers a whole queue "
            "in one process: give tensors"
        )
    if not isinstance(table, Tensor) or table.dim() != 2 or table.dtype not in STORED_DTYPES:
        got = f"{table.dtype} {list(table.shape)}" if isinstance(table, Tensor) else type(table).__name__
        raise ValueError(
            f"FaissIndex: keys[{view!r}] must be a float32, bfloat16 or float16 tensor [N, D], got {got}"
        )


def check_tables(keys: Mapping[str, Tensor], views: Iterable[str], size: int, dims: Iterable[int]) -> None:
    """Checks that `keys` hold the index's views in its shape.

    Raises:
        ValueError: naming what was expected and what came.
    """
    if not isinstance(keys, Mapping):
        raise ValueError(f"FaissIndex: keys must be {{view: tensor [N, D]}}, got {type(keys).__name__}")
    for view, dim in zip(views, dims):
        if view not in keys or tuple(keys[view].shape) != (size, dim):
            got = f"shape {list(keys[view].shape)}" if view in keys else f"only {sorted(keys)}"
            raise ValueError(f"FaissIndex: keys[{view!r}] must have shape [{size}, {dim}], got {got}")
        _check_table(view, keys[view])


def _int64(name: str, numbers: Any, shape: str, advice: str = "") -> Tensor:
    """Returns `numbers` if they are an int64 tensor [n]."""
    if not isinstance(numbers, Tensor) or numbers.dim() != 1 or numbers.dtype != torch.int64:
        of_tensor = isinstance(numbers, Tensor)
        got = f"{numbers.dtype} {list(numbers.shape)}" if of_tensor else type(numbers).__name__
        raise ValueError(f"FaissIndex: {name} must be int64 of shape {shape}, got {got}{advice}")
    return numbers


def checked_ids(key_ids: Any, size: int) -> np.ndarray:
    """Returns a copy of the ids.

    Raises:
        ValueError: another shape or dtype than int64 [size].
    """
    ids = _int64("key_ids", key_ids, f"[{size}]")
    if ids.shape[0] != size:
        raise ValueError(
            f"FaissIndex: key_ids must be int64 of shape [{size}], got torch.int64 {list(ids.shape)}"
        )
    return np.array(ids.detach().cpu().numpy(), copy=True)


def checked_slots(slots: Any, size: int) -> np.ndarray:
    """Returns the slots, ascending, each once.

    Raises:
        ValueError: not int64 [n], or out of range.
    """
    is_mask = isinstance(slots, Tensor) and slots.dtype == torch.bool
    found = _int64("slots", slots, "[n]", "; of a mask, give mask.nonzero()[:, 0]" if is_mask else "")
    replaced = np.unique(found.detach().cpu().numpy())
    if len(replaced) and not 0 <= replaced[0] <= replaced[-1] < size:
        raise ValueError(f"FaissIndex: slots must lie in [0, {size}), got {replaced[0]} to {replaced[-1]}")
    return replaced


def check_queue(queue: Any, size: int) -> None:
    """Checks that an index over `size` entries can follow `queue`.

    Raises:
        ValueError: something else, or a queue of another size.
    """
    lacking = [name for name in ("views", "ids", "pointer") if not hasattr(queue, name)]
    if lacking:
        raise ValueError(
            f"FaissIndex: sync takes the queue itself (a MultiViewQueue), got {type(queue).__name__}, which has no "
            f"{' and no '.join(lacking)}; for other tables, give update the slots that were replaced"
        )
    if queue.ids.shape[0] != size:
        raise ValueError(
            f"FaissIndex: the queue holds {queue.ids.shape[0]} entries, and the index was built over {size}; build it "
            "over this queue"
        )
