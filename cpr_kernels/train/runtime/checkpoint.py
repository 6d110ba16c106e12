"""Saves and loads checkpoints: tensors and plain values, never code."""

from __future__ import annotations

import argparse
import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from ...reading.seals import check_zip, sealed_zip
from .. import TrainError
from .files import write_atomically

State = dict[str, Any]


def save(path: Path, state: State) -> None:
    """Writes `torch.save`'s bytes and their hash, atomically: a kill leaves the old file or the new one."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomically(path, sealed_zip(buffer.getvalue()))


def load(path: Path) -> State:
    """Reads a checkpoint onto the CPU without running any code that it may hold.

    Raises:
        TrainError: missing, cut short, not a checkpoint, or holding more than tensors and plain values.
    """
    if not path.is_file():
        raise TrainError(f"checkpoint: {path} does not exist")
    _check_hash(path)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # plain settings, in IIC's files
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        kind = _refused_global(str(error))
        what = (
            f"holds a Python object ({kind}), which could run code when read"
            if kind
            else "is not a torch checkpoint"
        )
        hint = (
            f"; if you trust it: torch.serialization.add_safe_globals([{kind}]), then load again"
            if kind
            else ""
        )
        raise TrainError(f"checkpoint: {path} {what}{hint}") from None
    except Exception as error:  # torch raises many kinds for a damaged file
        reason = str(error).splitlines()[0].split(". ")[0] if str(error) else type(error).__name__
        raise TrainError(
            f"checkpoint: {path} cannot be read: cut short, or not a torch checkpoint ({reason})"
        ) from None
    if not isinstance(state, dict):
        raise TrainError(f"checkpoint: {path} holds a {type(state).__name__}, expected a dictionary")
    return state


def _check_hash(path: Path) -> None:
    """Raises `TrainError` where a zip file is damaged: by its hash, or in an older file by its members' checksums."""
    try:
        with path.open("rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"
        if zipped and not check_zip(path):
            with zipfile.ZipFile(path) as archive:
                if (damaged := archive.testzip()) is not None:
                    raise ValueError(f"the checksum of {damaged} is another")
    except (ValueError, zipfile.BadZipFile, OSError, EOFError, RuntimeError) as error:
        raise TrainError(f"checkpoint: {path} cannot be read: cut short or damaged ({error})") from None


def _refused_global(message: str) -> str:
    marker = "GLOBAL "
    return message.split(marker, 1)[1].split()[0] if marker in message else ""
