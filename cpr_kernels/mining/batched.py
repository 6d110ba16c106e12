"""The cascade under torch.func.vmap: a batch of queries against shared keys is one call with more queries."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from ..dispatch.batching import fold, looped, unfold
from ..dispatch.calls import CascadeCall, RerankCall


def batching_rule(op: Callable[..., Any], kind: type[CascadeCall] | type[RerankCall]) -> Callable[..., Any]:
    """The rule of `op`, whose arguments are the fields of `kind`, for `torch.library.register_vmap`."""
    masks = ("query_ids", "exclude") if kind is CascadeCall else ("candidates", "query_ids", "exclude")

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        missing = (None,) * (len(kind._fields) - len(args))
        call, size = kind(*args, *missing), info.batch_size
        dims: Any = kind(*in_dims, *missing)
        shared_keys = all(dim is None for dim in (*dims.keys, dims.key_ids, dims.key_bias))
        shared_mask = call.exclude is not None and dims.exclude is None  # not to be repeated for each call
        if not shared_keys or shared_mask or size == 0:
            return looped(functools.partial(op, **kwargs), size, in_dims, args)
        queries: list[Any] = [fold(query, dim, size) for query, dim in zip(call.queries, dims.queries)]
        folded: dict[str, Any] = {
            name: fold(getattr(call, name), getattr(dims, name), size) for name in masks
        }
        mined = op(*call._replace(queries=queries, **folded), **kwargs)
        return tuple(unfold(part, size) for part in mined), (0, 0)

    return rule
