"""Turns the named views of the Python functions into the ops' arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from torch import Tensor

from ..dispatch.calls import CascadeCall, RerankCall
from ..dispatch.checks import check_cascade
from ..dispatch.sharded_keys import ShardedKeys
from ..dispatch.tensor_checks import check_one_kind
from . import sharded
from .schedule import Schedule

Keys: TypeAlias = Mapping[str, Tensor] | Mapping[str, ShardedKeys]


def as_call(
    queries: Mapping[str, Tensor],
    keys: Keys,
    schedule: Schedule,
    query_ids: Tensor | None = None,
    key_ids: Tensor | None = None,
    exclude: Tensor | None = None,
    key_bias: Tensor | None = None,
) -> CascadeCall:
    """Returns the op's arguments; only the views that the schedule weighs take part, in order of first use.

    Raises:
        ValueError: queries and keys of different views, a schedule that names a view they do not hold, or a
            `key_bias` that is no tensor.
    """
    if not isinstance(schedule, Schedule):
        schedule = Schedule(schedule)
    if queries.keys() != keys.keys():
        raise ValueError(f"cascade_topk: queries hold views {sorted(queries)}, but keys hold {sorted(keys)}")
    views = schedule.views
    for view in views:
        if view not in queries:
            schedule.table(tuple(queries))  # raises, naming the stage and the view
    weights, keep = schedule.judged
    of_queries, of_keys = [queries[v] for v in views], [keys[v] for v in views]
    for table in (*of_queries, *of_keys):
        if not isinstance(table, (Tensor, ShardedKeys)):
            raise ValueError(
                f"cascade_topk: queries and keys must hold torch tensors, got {type(table).__name__}; "
                "torch.as_tensor makes one"
            )
    _check_bias_kind("cascade_topk", key_bias, of_keys[0].shape[0])
    check_one_kind("cascade_topk", (*of_queries, *of_keys, query_ids, key_ids, exclude, key_bias))
    return CascadeCall(of_queries, of_keys, weights, keep, query_ids, key_ids, exclude, key_bias)


def _check_bias_kind(op: str, key_bias: object, num_keys: int) -> None:
    if not isinstance(key_bias, Tensor | None):  # the op's schema takes no other, and says so in other words
        raise ValueError(
            f"{op}: key_bias must be a float32 tensor [{num_keys}], got {type(key_bias).__name__}"
        )


def as_rerank_call(
    queries: Mapping[str, Tensor],
    keys: Keys,
    schedule: Schedule,
    candidates: Tensor,
    **masks: Tensor | None,
) -> RerankCall:
    """Returns the arguments of `cascade_rerank`; `masks` as :func:`cascade_topk`'s, `key_bias` among them.

    Raises:
        ValueError: as :func:`as_call`, sharded keys, or candidates that are no tensor.
    """
    for table in keys.values():
        _check_bias_kind("cascade_rerank", masks.get("key_bias"), table.shape[0])
    call = as_call(queries, keys, schedule, **masks)
    if call.sharded:
        raise ValueError(f"cascade_rerank: {call.sharded}; only cascade_topk and mil_nce read shards")
    if not isinstance(candidates, Tensor):
        raise ValueError(
            f"cascade_rerank: candidates must be an int64 tensor [B, C], got {type(candidates).__name__}"
        )
    return RerankCall(call.queries, call.keys, candidates, *call[2:])


def check_call(call: CascadeCall) -> None:
    """Raises ValueError for whatever the op refuses, also where the keys are sharded."""
    if call.sharded:
        sharded.check(call)
    else:
        check_cascade(call)
