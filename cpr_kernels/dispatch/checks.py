"""Every error that an op's arguments can cause: which argument, what was expected, what came, what to do."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from .calls import CascadeCall, LossCall, RerankCall
from .tensor_checks import (
    FEATURE_DTYPES,
    FLOAT32,
    check_ids,
    check_like,
    check_memory,
    check_precision,
    is_float32,
    require,
    shape_of,
)

MAX_ENTRIES = 2**31 - 1


def _check_features(op: str, call: CascadeCall) -> None:
    queries, keys = call.queries, call.keys
    if not queries:
        raise ValueError(f"{op}: queries holds no view; give one tensor [B, D] per view")
    if len(queries) != len(keys):
        raise ValueError(
            f"{op}: queries holds {len(queries)} views but keys holds {len(keys)}; give the same views"
        )
    first = queries[0]
    dtype, device, shape, key_shape = first.dtype, first.device, first.shape, keys[0].shape
    for v, (query, key) in enumerate(zip(queries, keys)):
        of_query, of_key = query.shape, key.shape
        fits = len(of_query) == len(of_key) == 2 and of_query[1] == of_key[1]
        alike = query.dtype == key.dtype == dtype in FEATURE_DTYPES and query.device == key.device == device
        if not (fits and alike and of_query[0] == shape[0] and of_key[0] == key_shape[0]):
            _check_view(op, call, v)
    if keys[0].shape[0] > MAX_ENTRIES:
        raise ValueError(
            f"{op}: keys holds {keys[0].shape[0]} entries; at most {MAX_ENTRIES} fit one call, split it"
        )


def _check_view(op: str, call: CascadeCall, v: int) -> None:
    """A view fits the first: as many queries and entries, one size of features, a dtype that holds the queries."""
    query, key, first, first_key = call.queries[v], call.keys[v], call.queries[0], call.keys[0]
    if query.dim() != 2:
        raise ValueError(f"{op}: queries[{v}] must have shape [B, D], got {shape_of(query)}")
    if key.dim() != 2:
        raise ValueError(f"{op}: keys[{v}] must have shape [N, D], got {shape_of(key)}")
    if query.shape[0] != first.shape[0]:
        raise ValueError(
            f"{op}: queries[{v}] holds {query.shape[0]} queries, but queries[0] holds {first.shape[0]}"
        )
    if key.shape[0] != first_key.shape[0]:
        raise ValueError(
            f"{op}: keys[{v}] holds {key.shape[0]} entries, but keys[0] holds {first_key.shape[0]}"
        )
    if query.shape[1] != key.shape[1]:
        raise ValueError(
            f"{op}: queries[{v}] has D={query.shape[1]}, but keys[{v}] has D={key.shape[1]}; "
            "a view's queries and keys must have the same size"
        )
    check_precision(op, f"queries[{v}]", query, f"keys[{v}]", key)
    if query.device != first.device:
        raise ValueError(
            f"{op}: queries[{v}] is on {query.device}, but queries[0] is on {first.device}; move one of them"
        )


def check_cascade(call: CascadeCall, op: str = "cascade_topk") -> None:
    """Checks every rule of the cascade that depends on shapes, dtypes, devices and numbers (docs/design.md).

    Raises:
        ValueError: naming the argument, what was expected and what came.
    """
    _check_features(op, call)
    masks = {"query_ids": call.query_ids, "key_ids": call.key_ids, "exclude": call.exclude}
    check_memory(op, queries=call.queries, keys=call.keys, **masks, key_bias=call.key_bias)
    num_views, num_stages = len(call.queries), len(call.stage_keep)
    require(num_stages > 0, op, "stage_keep is empty; a cascade needs at least one stage")
    if len(call.stage_weights) != num_stages * num_views:
        raise ValueError(
            f"{op}: stage_weights must hold S*V = {num_stages}*{num_views} = {num_stages * num_views} numbers, "
            f"got {len(call.stage_weights)}"
        )
    _check_stages(op, tuple(call.stage_weights), tuple(call.stage_keep))
    _check_cascade_masks(op, call)
    if call.key_bias is not None:
        check_key_bias(op, call.key_bias, call.keys[0].shape[0], "entry of keys", call.queries[0].device)


@functools.lru_cache(maxsize=256)
def _check_stages(op: str, weights: tuple[float, ...], keeps: tuple[int, ...]) -> None:
    """Rules of the stages' numbers; those of a training run are the same at every step."""
    num_views = len(weights) // len(keeps)
    previous = keeps[0]
    for s, keep in enumerate(keeps):
        row = weights[s * num_views : (s + 1) * num_views]
        if not all(map(is_float32, row)):
            raise ValueError(
                f"{op}: stage_weights of stage {s + 1} must be finite in float32, and 0 or at least {FLOAT32.tiny:.3g} "
                f"in magnitude, got {list(row)}"
            )
        if not any(row):
            raise ValueError(f"{op}: stage_weights of stage {s + 1} are all 0; some view must judge")
        if keep < 1:
            raise ValueError(f"{op}: stage_keep must be >= 1 at every stage, got {keep} at stage {s + 1}")
        if keep > previous:
            raise ValueError(
                f"{op}: stage_keep must not grow, got {keep} at stage {s + 1} after {previous} at stage {s}"
            )
        previous = keep
    if keeps[0] > 2**62:
        raise ValueError(f"{op}: stage_keep[0]={keeps[0]} is out of range")


def _check_cascade_masks(op: str, call: CascadeCall) -> None:
    num_queries, num_keys = call.queries[0].shape[0], call.keys[0].shape[0]
    device = call.queries[0].device
    if call.key_ids is not None:
        check_ids(op, "key_ids", call.key_ids, num_keys, "entry of keys", device)
    if call.query_ids is not None:
        require(call.key_ids is not None, op, "query_ids is given without key_ids; give both or only key_ids")
        check_ids(op, "query_ids", call.query_ids, num_queries, "query", device)
    if call.exclude is not None:
        mask = call.exclude
        if tuple(mask.shape) != (num_queries, num_keys) or mask.dtype != torch.bool:
            raise ValueError(
                f"{op}: exclude must be bool of shape [{num_queries}, {num_keys}], got {mask.dtype} {shape_of(mask)}"
            )
        if mask.device != device:
            raise ValueError(f"{op}: exclude is on {mask.device}, expected {device}; move it there")


def check_key_bias(op: str, key_bias: Tensor, length: int, what: str, device: torch.device) -> None:
    """Checks that a bias is a float32 tensor [length] on `device`.

    Raises:
        ValueError: naming what was expected and what came.
    """
    if key_bias.dtype != torch.float32 or tuple(key_bias.shape) != (length,):
        raise ValueError(
            f"{op}: key_bias must be float32 of shape [{length}] (one per {what}), "
            f"got {key_bias.dtype} {shape_of(key_bias)}"
        )
    require(
        key_bias.device == device, op, f"key_bias is on {key_bias.device}, expected {device}; move it there"
    )


def check_rerank(call: RerankCall, op: str = "cascade_rerank") -> None:
    """The rules of `cascade_topk`, and candidates [B, C] int64.

    Raises:
        ValueError: naming the argument, what was expected and what came.
    """
    check_cascade(call.cascade, op)
    candidates, query = call.candidates, call.queries[0]
    require(
        isinstance(candidates, Tensor), op, f"candidates must be a tensor, got {type(candidates).__name__}"
    )
    if candidates.dim() != 2 or candidates.shape[0] != query.shape[0] or candidates.dtype != torch.int64:
        raise ValueError(
            f"{op}: candidates must be int64 of shape [{query.shape[0]}, C] (-1 is padding), "
            f"got {candidates.dtype} {shape_of(candidates)}"
        )
    if candidates.device != query.device:
        raise ValueError(
            f"{op}: candidates is on {candidates.device}, expected {query.device}; move it there"
        )
    check_memory(op, candidates=candidates)
    require(
        candidates.shape[1] <= MAX_ENTRIES // 4,
        op,
        f"candidates lists {candidates.shape[1]} entries a query; at most {MAX_ENTRIES // 4} fit one call",
    )


def _check_listed(op: str, name: str, letter: str, listed: Tensor, query: Tensor) -> None:
    """Indices into keys: int64, a row per query."""
    if listed.dim() != 2 or listed.shape[0] != query.shape[0] or listed.dtype != torch.int64:
        raise ValueError(
            f"{op}: {name} must be int64 of shape [{query.shape[0]}, {letter}] (-1 is padding), "
            f"got {listed.dtype} {shape_of(listed)}"
        )
    require(listed.device == query.device, op, f"{name} is on {listed.device}, expected {query.device}")


def check_loss(call: LossCall, op: str = "mil_nce", *, plain: bool = False) -> None:
    """Checks every rule of the loss that depends on shapes, dtypes, devices and numbers (docs/design.md).

    With `plain`, `core.are_plain` has found all tensors dense and their memory there.

    Raises:
        ValueError: naming the argument, what was expected and what came.
    """
    query, keys = call.query, call.keys
    for name, value in (
        ("query", query),
        ("positive", call.positive),
        ("keys", keys),
        ("positives", call.positives),
    ):
        require(isinstance(value, Tensor), op, f"{name} must be a tensor, got {type(value).__name__}")
    if not plain:
        check_memory(op, **call._asdict())
    if query.dim() != 2:
        raise ValueError(f"{op}: query must have shape [B, D], got {shape_of(query)}")
    if call.positive.shape != query.shape:
        raise ValueError(
            f"{op}: positive must have query's shape {shape_of(query)}, got {shape_of(call.positive)}"
        )
    if keys.dim() != 2 or keys.shape[1] != query.shape[1]:
        raise ValueError(f"{op}: keys must have shape [N, {query.shape[1]}], got {shape_of(keys)}")
    require(
        keys.shape[0] <= MAX_ENTRIES,
        op,
        f"keys holds {keys.shape[0]} entries; at most {MAX_ENTRIES} fit one call",
    )
    check_precision(op, "query", query, "keys", keys)
    check_precision(op, "positive", call.positive, "keys", keys)
    _check_listed(op, "positives", "P", call.positives, query)
    if call.negatives is not None:
        _check_listed(op, "negatives", "M", call.negatives, query)
    limits = torch.finfo(torch.float64) if query.dtype == torch.float64 else FLOAT32
    fits = (
        is_float32(call.temperature) if limits is FLOAT32 else limits.tiny <= call.temperature <= limits.max
    )
    if not (call.temperature > 0 and fits):
        raise ValueError(
            f"{op}: temperature must be a finite number > 0 in {limits.dtype}, in which the loss is computed "
            f"({limits.tiny:.3g} to {limits.max:.3g}), got {call.temperature}"
        )
    if call.siblings not in (0, 1, 2):
        raise ValueError(
            f"{op}: siblings must be 1 (positives), 2 (left out) or 0 (negatives), got {call.siblings}"
        )
    if call.key_ids is not None:
        check_ids(op, "key_ids", call.key_ids, keys.shape[0], "entry of keys", query.device)
    if call.query_ids is not None:
        require(call.key_ids is not None, op, "query_ids is given without key_ids; give both or only key_ids")
        check_ids(op, "query_ids", call.query_ids, query.shape[0], "query", query.device)
    use_own = call.use_own
    if use_own is not None and (use_own.dtype != torch.bool or tuple(use_own.shape) != (query.shape[0],)):
        raise ValueError(
            f"{op}: use_own must be bool of shape [{query.shape[0]}], got {use_own.dtype} {shape_of(use_own)}"
        )
    if use_own is not None and use_own.device != query.device:
        raise ValueError(f"{op}: use_own is on {use_own.device}, expected {query.device}; move it there")


def check_positives_in_range(
    positives: Tensor, num_keys: int, op: str = "mil_nce", name: str = "positives"
) -> None:
    """Every index listed is -1 (padding) or below `num_keys`. Reads the values, so for CPU tensors.

    Raises:
        ValueError: naming the first offender and its place.
    """
    if positives.numel() == 0:
        return
    low, high = positives.aminmax()
    if low < -1 or high >= num_keys:
        row, column = ((positives < -1) | (positives >= num_keys)).nonzero()[0].tolist()
        raise ValueError(
            f"{op}: {name}[{row}, {column}] = {positives[row, column].item()} is out of range; "
            f"expected -1 (padding) or an index below N={num_keys}"
        )


def check_loss_in_range(call: LossCall) -> None:
    """The indices that a loss call lists are in range. Reads them, so for CPU tensors.

    Raises:
        ValueError: as `check_positives_in_range`.
    """
    check_positives_in_range(call.positives, call.keys.shape[0])
    if call.negatives is not None:
        check_positives_in_range(call.negatives, call.keys.shape[0], name="negatives")


def check_enqueue(
    buffers: Sequence[Tensor], pointer: Tensor, count: Tensor, rows: Sequence[Tensor], op: str = "enqueue_"
) -> None:
    """Buffers [N, ...] and rows [B, ...] fit pairwise; pointer and count are 0-dim int64.

    Raises:
        ValueError: naming the argument, what was expected and what came.
    """
    require(len(buffers) > 0, op, "buffers is empty; give one tensor [N, ...] per column of the queue")
    require(len(buffers) == len(rows), op, f"buffers holds {len(buffers)} tensors but rows holds {len(rows)}")
    for name, value in (("pointer", pointer), ("count", count)):
        require(isinstance(value, Tensor), op, f"{name} must be a tensor, got {type(value).__name__}")
        if value.dim() != 0 or value.dtype != torch.int64:
            raise ValueError(
                f"{op}: {name} must be a 0-dim int64 tensor, got {value.dtype} {shape_of(value)}"
            )
    check_memory(op, buffers=buffers, rows=rows, pointer=pointer, count=count)
    for i, (buffer, row) in enumerate(zip(buffers, rows)):
        if buffer.dim() == 0 or buffer.shape[0] == 0 or buffer.shape[0] != buffers[0].shape[0]:
            raise ValueError(
                f"{op}: buffers[{i}] must hold the same N >= 1 entries as buffers[0], got {shape_of(buffer)}"
            )
        if row.dim() != buffer.dim() or row.shape[1:] != buffer.shape[1:] or row.shape[0] != rows[0].shape[0]:
            raise ValueError(
                f"{op}: rows[{i}] must have shape [{rows[0].shape[0] if rows[0].dim() else 'B'}, "
                f"{', '.join(map(str, buffer.shape[1:]))}], got {shape_of(row)}"
            )
        check_like(op, f"rows[{i}]", row, (f"buffers[{i}]", buffer))
        require(
            buffer.device == pointer.device,
            op,
            f"buffers[{i}] is on {buffer.device}, pointer on {pointer.device}",
        )
    require(
        count.device == pointer.device, op, f"count is on {count.device}, but pointer is on {pointer.device}"
    )
