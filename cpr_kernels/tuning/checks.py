"""Every error that the arguments of tuning can cause: which argument, what was expected, what came, what to do."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .whitening import TESTED_ROWS, held_blocks, present

LEAST_ROWS = 8


def check_views(op: str, views: Mapping[str, Tensor], topk: int = 1) -> None:
    """Checks that two views or more are tables [N, D] of the same, enough rows.

    Raises:
        ValueError: naming the argument, what was expected and what came.
    """
    check_features(op, views)
    if len(views) < 2:
        raise ValueError(
            f"{op}: views holds one view, {next(iter(views))!r}, and without a second one nothing can tell what is "
            "mined well; give another view of the same rows, or mine by coclr_schedule as it is"
        )
    rows, least = len(next(iter(views.values()))), max(LEAST_ROWS, 2 * topk)
    if rows < least:
        raise ValueError(f"{op}: views hold {rows} rows; at least {least} are needed for topk={topk}")


def check_features(
    op: str, views: Mapping[str, Tensor], sizes: Mapping[str, int] | None = None, values: bool = True
) -> None:
    """Checks that the views are tables [N, D] of floats of the same rows, finite where they hold something.

    Args:
        op: what is called, for the message.
        views: ``{view: [N, D]}``.
        sizes: ``{view: D}`` of the views that must be there; None takes them as they are.
        values: whether to look at the numbers, for which a device is waited.

    Raises:
        ValueError: naming the view, what was expected and what came.
    """
    if not isinstance(views, Mapping) or not views:
        raise ValueError(f"{op}: views must be {{name: tensor [N, D]}}, got {type(views).__name__}")
    lacking = [view for view in sizes or {} if view not in views]
    if lacking:
        raise ValueError(
            f"{op}: the plan is of the views {list(sizes or {})}, got {list(views)}; tune again for others"
        )
    rows = None
    for name in sizes or views:
        table = views[name]
        if not isinstance(table, Tensor):
            raise ValueError(
                f"{op}: views[{name!r}] must be a torch tensor, got {type(table).__name__}; torch.as_tensor makes one"
            )
        if table.dim() != 2 or not table.shape[1] or not table.is_floating_point():
            raise ValueError(
                f"{op}: views[{name!r}] must hold floats of shape [N, D], got {table.dtype} {list(table.shape)}"
            )
        if sizes is not None and table.shape[1] != sizes[name]:
            raise ValueError(
                f"{op}: views[{name!r}] has D={table.shape[1]}, but the plan was made for D={sizes[name]}"
            )
        if rows is not None and table.shape[0] != rows:
            raise ValueError(
                f"{op}: views[{name!r}] has {table.shape[0]} rows, but the views before have {rows}"
            )
        rows = table.shape[0]
        if values and not bool(
            torch.stack([part.isfinite().all() for part in table.split(TESTED_ROWS)]).all()
        ):
            _check_finite(op, name, table)


def _check_finite(op: str, name: str, table: Tensor) -> None:
    finite = torch.cat([part.isfinite().all(dim=1) for part in table.split(TESTED_ROWS)])
    odd = ~finite & present(table)
    if bool(odd.any()):
        row = int(odd.nonzero()[0])
        raise ValueError(
            f"{op}: row {row} of views[{name!r}] holds NaN or infinity beside numbers ({int(odd.sum())} such rows); "
            "leave them out, or mark a missing view by a row of NaN or zeros throughout"
        )


def check_varied(op: str, views: Mapping[str, Tensor]) -> None:
    """Checks that no view is missing everywhere or the same in every row.

    Raises:
        ValueError: naming the view.
    """
    for name, table in views.items():
        held = present(table)
        if (count := int(held.sum())) < LEAST_ROWS:
            raise ValueError(
                f"{op}: views[{name!r}] is held by {count} of {len(table)} rows; at least {LEAST_ROWS} are needed, "
                "or leave the view out"
            )
        first = table[held.nonzero()[0, 0]]
        if all(bool((block == first).all()) for block in held_blocks(table, held)):
            raise ValueError(f"{op}: views[{name!r}] is constant: every row is the same; leave the view out")


def check_ids(op: str, ids: Tensor | None, views: Mapping[str, Tensor], topk: int = 1) -> Tensor:
    """Returns the source ids [N]: those given, or a source for each row; -1 where no view is held.

    Raises:
        ValueError: ids that do not fit, or so few sources that some row has less than `topk` others.
    """
    first = next(iter(views.values()))
    rows = first.shape[0]
    if ids is None:
        ids = torch.arange(rows, device=first.device)
    if not isinstance(ids, Tensor) or ids.dtype != torch.int64 or tuple(ids.shape) != (rows,):
        got = f"{ids.dtype} {list(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
        raise ValueError(f"{op}: ids must be int64 of shape [{rows}], the source of each row, got {got}")
    held = torch.stack([present(table) for table in views.values()]).any(dim=0)
    ids = torch.where(held, ids, -1)
    known = ids[ids >= 0]
    if topk > 1:
        largest = int(known.unique(return_counts=True)[1].max()) if len(known) else 0
        if len(known) - largest < topk:
            sources = len(known.unique())
            raise ValueError(
                f"{op}: ids name {sources} source{'s' * (sources != 1)} over {len(known)} rows, so that a row has only "
                f"{len(known) - largest} others to mine, fewer than topk={topk}; rows of one source are never mined "
                "for each other, give each video its own id"
            )
    return ids


def check_count(op: str, least: int, **values: int) -> None:
    """Raises ValueError for a value that is no integer of at least `least`."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{op}: {name} must be an integer >= {least}, got {value!r}")
