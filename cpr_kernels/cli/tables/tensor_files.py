"""Reads `.safetensors`, `.pt` and `.pth`, mapped into memory; no pickled code is run."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .column import Column, Unfit, guarded, of_array, of_tensor


def safetensors(path: Path, _name: str) -> list[Column]:
    """Returns the tensors of a file; each is read on use."""
    from safetensors import safe_open

    def column(name: str, head: Any) -> Column:
        def load() -> Any:
            with safe_open(path, framework="pt") as file:
                return file.get_tensor(name)

        shape, kind = tuple(head.get_shape()), _long_name(head.get_dtype())
        return Column(name, f"{path}: {name}", shape, kind, guarded(path, load))

    with safe_open(path, framework="pt") as file:
        return [column(name, file.get_slice(name)) for name in file.keys()]  # noqa: SIM118 (not a mapping)


def _long_name(short: str) -> str:
    """Returns float32 for safetensors' F32."""
    if short == "BF16":
        return "bfloat16"
    for letter, word in (("F", "float"), ("I", "int"), ("U", "uint")):
        if short.startswith(letter) and short[1:].isdigit():
            return word + short[1:]
    return short.lower()


def pt(path: Path, name: str) -> list[Column]:
    """Returns the tensors that `torch.save` wrote: one, a list of them, or a dictionary, nested or not, of tensors and
    lists of strings or numbers. Names of nested ones are joined by ``/``.
    """
    try:
        body = _loaded(path)
    except pickle.UnpicklingError as error:
        said = str(error).partition("WeightsUnpickler error: ")[2].split("\n")[0].strip()
        raise Unfit(
            f"{path}: holds more than tensors ({said[:120] or 'other Python objects'}), which is never unpickled; save "
            "tensors, as torch.save({'rgb': rgb, 'names': list of str}, ...)"
        ) from None
    if isinstance(body, Tensor):
        return [of_tensor(name, str(path), body)]
    found = list(_flat(path, body, ""))
    if not found:
        raise Unfit(f"{path}: holds no tensors, but {type(body).__name__}")
    return found


def _loaded(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:  # files of before torch 1.6 cannot be mapped
        if "mmap" not in str(error):
            raise
        return torch.load(path, map_location="cpu", weights_only=True)


def _flat(path: Path, body: Any, prefix: str) -> Iterator[Column]:
    """Yields the columns of a value called `prefix`."""
    where = f"{path}: {prefix}"
    if isinstance(body, Tensor):
        yield of_tensor(prefix, where, body)
    elif isinstance(body, Mapping):
        for key, value in body.items():
            yield from _flat(path, value, f"{prefix}/{key}" if prefix else str(key))
    elif isinstance(body, (list, tuple)) and body:
        if all(isinstance(item, Tensor) for item in body):
            for number, tensor in enumerate(body):
                yield from _flat(path, tensor, f"{prefix}/{number}" if prefix else str(number))
        elif all(isinstance(item, str) for item in body):
            yield of_array(prefix or "names", where, np.array(body, dtype=str))
        elif all(isinstance(item, (bool, int, float)) for item in body):
            yield of_array(prefix or "values", where, np.array(body))
        else:
            yield Column(prefix or "values", where, (len(body),), "object", lambda: body)
    elif prefix:
        yield Column(prefix, where, (), type(body).__name__, lambda: body)
