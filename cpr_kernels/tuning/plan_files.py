"""Plans on disk: JSON to read, and the whiteners' numbers in a `.safetensors` file beside it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from ..files import replacing
from .whitening import Whitener

FORMAT = "cpr mining plan"
VERSION = 1
T = TypeVar("T")


def whiteners_path(path: Path) -> Path:
    """Returns where the whiteners of the plan at `path` are.

    Raises:
        ValueError: a path that would name both files alike.
    """
    if path.suffix == ".safetensors":
        raise ValueError(f"{path}: a plan is JSON, with .safetensors beside it; end its name in .json")
    return path.with_suffix(".safetensors")


def write(plan: Mapping[str, Any], whiten: Mapping[str, Whitener], path: Path) -> None:
    """Writes both files of a plan, each whole or not at all."""
    save, _ = _safetensors()
    beside = whiteners_path(path)
    tensors = {}
    for number, white in enumerate(whiten.values()):  # by number: a view's name may be any text
        tensors[f"mean_{number}"] = white.mean.detach().cpu().contiguous()
        if white.matrix is not None:
            tensors[f"matrix_{number}"] = white.matrix.detach().cpu().contiguous()
    body = save(tensors)
    views = [{"name": view, "size": len(white.mean)} for view, white in whiten.items()]
    kept = {"format": FORMAT, "version": VERSION, "views": views, **plan, "whiteners": _digest(body)}
    with replacing([beside, path]) as [first, second]:
        first.write_bytes(body)
        second.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def read(path: Path) -> tuple[dict[str, Any], dict[str, Whitener]]:
    """Returns a plan's dictionary and its whiteners.

    Raises:
        ValueError: files that are missing, cut, of another kind or version, or not written together.
    """
    _, load = _safetensors()
    beside = whiteners_path(path)
    for file in (path, beside):
        if not file.is_file():
            raise ValueError(
                f"{file}: no such file; a plan is a .json and a .safetensors of one name, keep them together"
            )
    found = checked(path, lambda: json.loads(path.read_text(encoding="utf-8")))
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ValueError(f"{path}: is not a mining plan; `cpr tune` and MiningPlan.save write one")
    if found.get("version") != VERSION:
        raise ValueError(
            f"{path}: is a plan of version {found.get('version')}, expected {VERSION}; tune again"
        )
    body = beside.read_bytes()
    if _digest(body) != found.get("whiteners"):
        raise ValueError(
            f"{beside}: is cut, or of another plan than {path.name}; tune again, or copy both files together"
        )
    return found, checked(path, lambda: _whiteners(found, load(body)))


def _whiteners(found: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> dict[str, Whitener]:
    return {
        str(view["name"]): Whitener(tensors[f"mean_{number}"], tensors.get(f"matrix_{number}"))
        for number, view in enumerate(found["views"])
    }


def checked(path: Path, make: Callable[[], T]) -> T:
    """Returns what `make` does.

    Raises:
        ValueError: naming the file, where its contents are not a plan's.
    """
    try:
        return make()
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        said = f"has no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path}: is cut or damaged ({said}); tune again") from error


def _digest(body: bytes) -> str:
    return hashlib.blake2b(body, digest_size=16).hexdigest()


def _safetensors() -> tuple[Callable[..., bytes], Callable[..., dict[str, torch.Tensor]]]:
    try:
        from safetensors.torch import load, save
    except ImportError as error:
        raise ImportError("a plan's whiteners are kept as .safetensors: pip install safetensors") from error
    return save, load
