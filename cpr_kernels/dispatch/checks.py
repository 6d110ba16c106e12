"""Every error that a caller's input can cause at the ops is worded here: argument, expected, received, remedy."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.compiler import is_compiling
from torch.nn import Parameter

from .calls import CascadeCall, LossCall, RerankCall

SCORE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LOSS_DTYPES = (*SCORE_DTYPES, torch.float64)
MAX_ENTRIES = 2**31 - 1


FLOAT32 = torch.finfo(torch.float32)
ROUNDS_TO_INFINITY = 2.0**128 - 2.0**103  # from here on, in float32


def is_float32(number: float) -> bool:
    """Whether the number is 0 or stays a finite number of full precision in float32, in which kernels use it."""
    return number == 0 or FLOAT32.tiny <= abs(number) < ROUNDS_TO_INFINITY


def _shape(tensor: Tensor) -> str:
    return f"{list(tensor.shape)}"


def require(holds: bool, op: str, sentence: str) -> None:
    """Raise ``ValueError("op: sentence")`` unless the condition holds."""
    if not holds:
        raise ValueError(f"{op}: {sentence}")


def _dtype_names(dtypes: tuple[torch.dtype, ...]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


FREED_BELOW = (
    1 << 40
)  # a freed storage begins at address 0; no live one of torch's lies below it and at its offset


def check_memory(op: str, **tensors: Any) -> None:
    """Every tensor, or list of them, is dense and has its memory, so that a kernel may read it by address.

    Raises:
        ValueError: naming the argument.
    """
    for name, given in tensors.items():
        if isinstance(given, Tensor):
            _check_memory(op, name, given)
        elif isinstance(given, (list, tuple)):
            for i, tensor in enumerate(given):
                _check_memory(op, f"{name}[{i}]", tensor)


def _check_memory(op: str, name: str, tensor: Any) -> None:
    if not isinstance(tensor, Tensor):
        return
    if tensor.layout is not torch.strided:
        raise ValueError(
            f"{op}: {name} must be a dense tensor, got layout {tensor.layout}; use {name}.to_dense()"
        )
    if type(tensor) not in (Tensor, Parameter) or tensor.device.type == "meta":
        return  # fake and functional tensors have no address
    if tensor.data_ptr() < FREED_BELOW and tensor.numel() and not tensor.untyped_storage().nbytes():
        raise ValueError(
            f"{op}: {name} of shape {_shape(tensor)} has no memory: its storage was freed "
            "(untyped_storage().resize_(0), as FSDP does between uses); gather it first"
        )


def check_one_kind(op: str, tensors: Iterable[Any]) -> None:
    """Either all tensors are fake ones (torch.compile's, without memory) or none is.

    Raises:
        ValueError: both kinds came, and their mode does not mix them.
    """
    if is_compiling():
        return
    given = [tensor for tensor in tensors if isinstance(tensor, Tensor)]
    fake = [tensor for tensor in given if isinstance(tensor, FakeTensor)]
    if fake and len(fake) < len(given) and not fake[0].fake_mode.allow_non_fake_inputs:
        raise ValueError(
            f"{op}: {len(fake)} of {len(given)} tensors are FakeTensors, which hold no numbers; give real tensors, "
            "or make all of them with one FakeTensorMode.from_tensor"
        )


def check_views(owner: str, views: Mapping[str, int]) -> None:
    """Views of a memory have names that buffers can carry, and sizes >= 1.

    Raises:
        ValueError: naming the view, what was expected and what came.
    """
    if not views:
        raise ValueError(f"{owner}: views is empty; give {{name: D}} for each view")
    for name, dim in views.items():
        if "." in name:
            raise ValueError(
                f"{owner}: the name of view {name!r} must hold no dot, for it becomes part of a buffer's name; "
                f"use {name.replace('.', '_')!r}"
            )
        if dim < 1:
            raise ValueError(f"{owner}: view {name!r} must have D >= 1, got {dim}")


def check_like(op: str, name: str, tensor: Tensor, first: tuple[str, Tensor]) -> None:
    """`tensor` shares device and dtype with the first argument."""
    other_name, other = first
    if tensor.dtype != other.dtype:
        raise ValueError(
            f"{op}: {name} is {tensor.dtype}, but {other_name} is {other.dtype}; one dtype a call, convert one of them"
        )
    if tensor.device != other.device:
        raise ValueError(
            f"{op}: {name} is on {tensor.device}, but {other_name} is on {other.device}; move one of them"
        )


def check_ids(op: str, name: str, ids: Tensor, length: int, per: str, device: torch.device) -> None:
    """`ids` is [length] int64 on `device`."""
    if not isinstance(ids, Tensor):
        raise ValueError(f"{op}: {name} must be an int64 tensor [{length}], got {type(ids).__name__}")
    if ids.dim() != 1 or ids.shape[0] != length:
        raise ValueError(f"{op}: {name} must have shape [{length}] (one id per {per}), got {_shape(ids)}")
    if ids.dtype != torch.int64:
        raise ValueError(f"{op}: {name} must be int64, got {ids.dtype}; use {name}.long()")
    if ids.device != device:
        raise ValueError(f"{op}: {name} is on {ids.device}, expected {device}; move it there")


def _check_features(op: str, call: CascadeCall) -> None:
    queries, keys = call.queries, call.keys
    if not queries:
        raise ValueError(f"{op}: queries holds no view; give one tensor [B, D] per view")
    if len(queries) != len(keys):
        raise ValueError(
            f"{op}: queries holds {len(queries)} views but keys holds {len(keys)}; give the same views"
        )
    first = queries[0]
    if first.dtype not in SCORE_DTYPES:
        raise ValueError(f"{op}: queries[0] must be one of {_dtype_names(SCORE_DTYPES)}, got {first.dtype}")
    dtype, device, shape, key_shape = first.dtype, first.device, first.shape, keys[0].shape
    for v, (query, key) in enumerate(zip(queries, keys)):
        of_query, of_key = query.shape, key.shape
        fits = len(of_query) == len(of_key) == 2 and of_query[1] == of_key[1]
        alike = query.dtype == key.dtype == dtype and query.device == key.device == device
        if not (fits and alike and of_query[0] == shape[0] and of_key[0] == key_shape[0]):
            _explain_view(op, call, v)
    if keys[0].shape[0] > MAX_ENTRIES:
        raise ValueError(
            f"{op}: keys holds {keys[0].shape[0]} entries; at most {MAX_ENTRIES} fit one call, split it"
        )


def _explain_view(op: str, call: CascadeCall, v: int) -> None:
    """The error of a view that does not fit the others."""
    query, key, first, first_key = call.queries[v], call.keys[v], call.queries[0], call.keys[0]
    if query.dim() != 2:
        raise ValueError(f"{op}: queries[{v}] must have shape [B, D], got {_shape(query)}")
    if key.dim() != 2:
        raise ValueError(f"{op}: keys[{v}] must have shape [N, D], got {_shape(key)}")
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
    check_like(op, f"queries[{v}]", query, ("queries[0]", first))
    check_like(op, f"keys[{v}]", key, ("queries[0]", first))


def check_cascade(call: CascadeCall, op: str = "cascade_topk") -> None:
    """All rules of DESIGN 3.1 that depend on shapes, dtypes, devices and numbers.

    Raises:
        ValueError: naming the argument, what was expected and what came.
    """
    _check_features(op, call)
    masks = {"query_ids": call.query_ids, "key_ids": call.key_ids, "exclude": call.exclude}
    check_memory(op, queries=call.queries, keys=call.keys, **masks)
    num_views, num_stages = len(call.queries), len(call.stage_keep)
    require(num_stages > 0, op, "stage_keep is empty; a cascade needs at least one stage")
    if len(call.stage_weights) != num_stages * num_views:
        raise ValueError(
            f"{op}: stage_weights must hold S*V = {num_stages}*{num_views} = {num_stages * num_views} numbers, "
            f"got {len(call.stage_weights)}"
        )
    _check_stages(op, tuple(call.stage_weights), tuple(call.stage_keep))
    _check_cascade_masks(op, call)


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
                f"{op}: exclude must be bool of shape [{num_queries}, {num_keys}], got {mask.dtype} {_shape(mask)}"
            )
        if mask.device != device:
            raise ValueError(f"{op}: exclude is on {mask.device}, expected {device}; move it there")


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
            f"got {candidates.dtype} {_shape(candidates)}"
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


def check_loss(call: LossCall, op: str = "mil_nce") -> None:
    """All rules of DESIGN 3.2 that depend on shapes, dtypes, devices and numbers.

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
    check_memory(op, **call._asdict())
    if query.dim() != 2:
        raise ValueError(f"{op}: query must have shape [B, D], got {_shape(query)}")
    if query.dtype not in LOSS_DTYPES:
        raise ValueError(f"{op}: query must be one of {_dtype_names(LOSS_DTYPES)}, got {query.dtype}")
    if call.positive.shape != query.shape:
        raise ValueError(
            f"{op}: positive must have query's shape {_shape(query)}, got {_shape(call.positive)}"
        )
    if keys.dim() != 2 or keys.shape[1] != query.shape[1]:
        raise ValueError(f"{op}: keys must have shape [N, {query.shape[1]}], got {_shape(keys)}")
    require(
        keys.shape[0] <= MAX_ENTRIES,
        op,
        f"keys holds {keys.shape[0]} entries; at most {MAX_ENTRIES} fit one call",
    )
    check_like(op, "positive", call.positive, ("query", query))
    check_like(op, "keys", keys, ("query", query))
    positives = call.positives
    if positives.dim() != 2 or positives.shape[0] != query.shape[0] or positives.dtype != torch.int64:
        raise ValueError(
            f"{op}: positives must be int64 of shape [{query.shape[0]}, P] (-1 is padding), "
            f"got {positives.dtype} {_shape(positives)}"
        )
    require(
        positives.device == query.device, op, f"positives is on {positives.device}, expected {query.device}"
    )
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
            f"{op}: use_own must be bool of shape [{query.shape[0]}], got {use_own.dtype} {_shape(use_own)}"
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
            raise ValueError(f"{op}: {name} must be a 0-dim int64 tensor, got {value.dtype} {_shape(value)}")
    check_memory(op, buffers=buffers, rows=rows, pointer=pointer, count=count)
    for i, (buffer, row) in enumerate(zip(buffers, rows)):
        if buffer.dim() == 0 or buffer.shape[0] == 0 or buffer.shape[0] != buffers[0].shape[0]:
            raise ValueError(
                f"{op}: buffers[{i}] must hold the same N >= 1 entries as buffers[0], got {_shape(buffer)}"
            )
        if row.dim() != buffer.dim() or row.shape[1:] != buffer.shape[1:] or row.shape[0] != rows[0].shape[0]:
            raise ValueError(
                f"{op}: rows[{i}] must have shape [{rows[0].shape[0] if rows[0].dim() else 'B'}, "
                f"{', '.join(map(str, buffer.shape[1:]))}], got {_shape(row)}"
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
