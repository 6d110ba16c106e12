"""Errors that any tensor argument can cause: memory, kind, dtype, device, ids."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.compiler import is_compiling
from torch.nn import Parameter

STORED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # of the kernels
FEATURE_DTYPES = (*STORED_DTYPES, torch.float64)  # of the ops: float64 runs on the reference
FLOAT32 = torch.finfo(torch.float32)
ROUNDS_TO_INFINITY = 2.0**128 - 2.0**103  # from here on, in float32


def is_float32(number: float) -> bool:
    """Returns True where the number is 0 or stays finite, at full precision, in float32, in which kernels use it."""
    return number == 0 or FLOAT32.tiny <= abs(number) < ROUNDS_TO_INFINITY


def shape_of(tensor: Tensor) -> str:
    """Returns a shape as error sentences write it."""
    return f"{list(tensor.shape)}"


def require(holds: bool, op: str, sentence: str) -> None:
    """Raises ``ValueError("op: sentence")`` unless the condition holds."""
    if not holds:
        raise ValueError(f"{op}: {sentence}")


def dtype_names(dtypes: tuple[torch.dtype, ...]) -> str:
    """Returns the names of dtypes without `torch.`."""
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


# A freed storage begins at address 0; no address of a live tensor is this low.
FREED_BELOW = 1 << 40


def check_memory(op: str, **tensors: Any) -> None:
    """Checks that every tensor, or list of them, is dense and has its memory, so that a kernel may read it by address.

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
            f"{op}: {name} of shape {shape_of(tensor)} has no memory: its storage was freed "
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


def check_precision(op: str, name: str, tensor: Tensor, keys_name: str, keys: Tensor) -> None:
    """`tensor` is a feature dtype on the keys' device, and the keys' dtype holds its numbers."""
    if tensor.dtype == keys.dtype in FEATURE_DTYPES and tensor.device == keys.device:
        return
    for given, value in ((name, tensor), (keys_name, keys)):
        if value.dtype not in FEATURE_DTYPES:
            raise ValueError(f"{op}: {given} must be one of {dtype_names(FEATURE_DTYPES)}, got {value.dtype}")
    if torch.promote_types(tensor.dtype, keys.dtype) != keys.dtype:
        raise ValueError(
            f"{op}: {name} is {tensor.dtype}, but {keys_name} is {keys.dtype}, which does not hold its numbers; "
            f"use {name}.to({keys.dtype}), or store the keys as {torch.promote_types(tensor.dtype, keys.dtype)}"
        )
    if tensor.device != keys.device:
        raise ValueError(
            f"{op}: {name} is on {tensor.device}, but {keys_name} is on {keys.device}; move one of them"
        )


def check_ids(op: str, name: str, ids: Tensor, length: int, per: str, device: torch.device) -> None:
    """`ids` is [length] int64 on `device`."""
    if not isinstance(ids, Tensor):
        raise ValueError(f"{op}: {name} must be an int64 tensor [{length}], got {type(ids).__name__}")
    if ids.dim() != 1 or ids.shape[0] != length:
        raise ValueError(f"{op}: {name} must have shape [{length}] (one id per {per}), got {shape_of(ids)}")
    if ids.dtype != torch.int64:
        raise ValueError(f"{op}: {name} must be int64, got {ids.dtype}; use {name}.long()")
    if ids.device != device:
        raise ValueError(f"{op}: {name} is on {ids.device}, expected {device}; move it there")
