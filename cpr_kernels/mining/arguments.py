"""Turns the named views of the Python functions into the ops' arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from ..dispatch.calls import CascadeCall, RerankCall
from ..dispatch.checks import check_cascade
from ..dispatch.fast_path import dispatcher_is_idle
from ..dispatch.sharded_keys import ShardedKeys
from ..dispatch.tensor_checks import check_memory, check_one_kind, shape_of
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
            `key_bias` that does not fit them.
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
    check_one_kind("cascade_topk", (*of_queries, *of_keys, query_ids, key_ids, exclude, key_bias))
    call = CascadeCall(of_queries, of_keys, weights, keep, query_ids, key_ids, exclude)
    return call if key_bias is None else _with_key_bias(call, key_bias, "cascade_topk")


def _with_key_bias(call: CascadeCall, key_bias: Tensor, op: str) -> CascadeCall:
    """Returns the call with one more view in its last stage: ones as queries, the bias as keys (in bfloat16: parts).

    Raises:
        ValueError: sharded keys, or a bias that is no float32 tensor [N] on the keys' device.
    """
    if call.sharded:
        raise ValueError(
            f"{op}: key_bias does not reach a sharded queue; store it as a view of D=1, whose query feature is 1"
        )
    num_keys, device = call.keys[0].shape[0], call.keys[0].device
    if not isinstance(key_bias, Tensor):
        raise ValueError(
            f"{op}: key_bias must be a float32 tensor [{num_keys}], got {type(key_bias).__name__}"
        )
    if key_bias.dtype != torch.float32 or tuple(key_bias.shape) != (num_keys,):
        raise ValueError(
            f"{op}: key_bias must be float32 of shape [{num_keys}] (one per entry of keys), "
            f"got {key_bias.dtype} {shape_of(key_bias)}"
        )
    if key_bias.device != device:
        raise ValueError(f"{op}: key_bias is on {key_bias.device}, expected {device}; move it there")
    if dispatcher_is_idle():  # else the tensor may have no memory of its own
        check_memory(op, key_bias=key_bias)
    in_bfloat16 = all(key.dtype == torch.bfloat16 for key in call.keys)
    of_keys = _bfloat16_parts(key_bias) if in_bfloat16 else key_bias[:, None]
    ones = torch.ones(call.queries[0].shape[0], of_keys.shape[1], dtype=of_keys.dtype, device=device)
    return call._replace(
        queries=[*call.queries, ones],
        keys=[*call.keys, of_keys],
        stage_weights=biased_weights(call.stage_weights, len(call.stage_keep)),
    )


def _bfloat16_parts(bias: Tensor) -> Tensor:
    """Returns [N, 3] bfloat16 whose rows add up to `bias` in float32, in any order: 8 bits of its 24 in each part.

    Parts below bfloat16's least number (9e-41) are lost.
    """
    rest, parts = bias.detach().contiguous(), []
    for _ in range(3):
        part = (rest.view(torch.int32) & -(1 << 16)).view(torch.float32)
        parts.append(part)
        rest = (rest - part).masked_fill(part.isinf() & ~rest.isnan(), 0.0)  # NaN, cut to infinity, stays NaN
    return torch.stack(parts, dim=1).to(torch.bfloat16)


def biased_weights(weights: Sequence[float], stages: int) -> tuple[float, ...]:
    """Returns stage weights [S * V] with one more view, of weight 1 in the last stage and 0 in the others."""
    views = len(weights) // stages
    rows = (weights[s * views : (s + 1) * views] for s in range(stages))
    return tuple(w for s, row in enumerate(rows) for w in (*row, float(s == stages - 1)))


def as_rerank_call(
    queries: Mapping[str, Tensor],
    keys: Keys,
    schedule: Schedule,
    candidates: Tensor,
    key_bias: Tensor | None = None,
    **masks: Tensor | None,
) -> RerankCall:
    """Returns the arguments of `cascade_rerank`; `masks` and `key_bias` as :func:`cascade_topk`'s.

    Raises:
        ValueError: as :func:`as_call`, sharded keys, or candidates that are no tensor.
    """
    call = as_call(queries, keys, schedule, **masks)
    if call.sharded:
        raise ValueError(f"cascade_rerank: {call.sharded}; only cascade_topk and mil_nce read shards")
    if not isinstance(candidates, Tensor):
        raise ValueError(
            f"cascade_rerank: candidates must be an int64 tensor [B, C], got {type(candidates).__name__}"
        )
    if key_bias is not None:
        call = _with_key_bias(call, key_bias, "cascade_rerank")
    return RerankCall(call.queries, call.keys, candidates, *call[2:])


def check_call(call: CascadeCall) -> None:
    """Raises ValueError for whatever the op refuses, also where the keys are sharded."""
    if call.sharded:
        sharded.check(call)
    else:
        check_cascade(call)
