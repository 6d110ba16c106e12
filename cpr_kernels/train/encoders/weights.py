"""Saves and loads weights as safetensors: no code in the file, plain facts in its header, shared tensors once."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from ...networks import new_encoder
from ...progress import say
from ...reading.records import as_record, read_json
from ...reading.seals import SEAL, UNSEALED, file_hash, tensors_hash
from .. import TrainError
from ..runtime.checkpoint import load
from ..runtime.files import write_atomically
from .published import encoder_of_iic, is_iic, load_published

ENCODER_KIND = "cpr_kernels encoder"
T = TypeVar("T")


@dataclass(frozen=True)
class EncoderFacts:
    """Holds what `new_encoder` needs, as a file's header has it."""

    architecture: str
    width: float
    embedding: int


def save_tensors(path: Path, module: nn.Module, facts: Mapping[str, Any]) -> None:
    """Writes a module's state, atomically.

    A layer with two names is stored under the first; `facts` are written to the header.
    """
    from safetensors.torch import save

    first = _first_names(module)
    tensors = {
        name: value.detach().cpu().contiguous()
        for name, value in module.state_dict().items() if first[name] == name
    }  # fmt: skip
    texts = {name: json.dumps(value) for name, value in facts.items()}
    texts[SEAL] = json.dumps(tensors_hash(io.BytesIO(save(tensors, texts))))
    write_atomically(path, save(tensors, texts))


def read_facts(path: Path) -> dict[str, Any]:
    """Returns the facts in a file's header.

    Raises:
        TrainError: missing, cut short, or no safetensors file of ours.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise TrainError(f"checkpoint: {path} does not exist")
    try:
        with safe_open(str(path), framework="pt") as file:
            header = file.metadata() or {}
        return {name: read_json(value) for name, value in header.items()}
    except (SafetensorError, ValueError, OSError) as error:
        raise TrainError(
            f"checkpoint: {path} cannot be read: cut short, damaged, or not written by cpr_kernels "
            f"({' '.join(str(error).split())})"
        ) from None


def checked_facts(path: Path, kind: type[T]) -> T:
    """Returns the facts in a file's header as a record, after the file's content hash and every field were checked.

    Raises:
        TrainError: see `read_facts`; another hash than the file's; a field that is missing or of another type or range.
    """
    facts = read_facts(path)
    try:
        if SEAL not in facts:
            say(f"checkpoint: {path} {UNSEALED}")
        else:
            with path.open("rb") as file:
                if tensors_hash(file) != facts[SEAL]:
                    raise ValueError("its content is not what its hash says; take a whole copy of it")
        return as_record(facts, kind)
    except (ValueError, OSError) as error:
        raise TrainError(f"checkpoint: {path} is damaged: {error}") from None


def load_tensors(path: Path, module: nn.Module) -> None:
    """Loads a file's tensors into a module, strictly: a name missing, left over or of another shape is an error."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    first = _first_names(module)
    try:
        stored: dict[str, Tensor] = load_file(str(path))
    except (SafetensorError, ValueError, OSError, KeyError) as error:
        raise TrainError(f"checkpoint: {path} cannot be read ({' '.join(str(error).split())})") from None
    state = {name: stored[first[name]] for name in first if first[name] in stored}
    unknown = {name: value for name, value in stored.items() if name not in first}
    try:
        module.load_state_dict({**state, **unknown})
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise TrainError(f"checkpoint: {path} does not fit {type(module).__name__}: {reason[:300]}") from None


def weights_hash(path: Path) -> str:
    """Returns the SHA-256 of a safetensors file without its header's facts, of any other file the whole.

    Equal weights of one network have equal hashes.
    """
    if path.suffix != ".safetensors":
        return file_hash(path)
    digest = hashlib.sha256(str(read_facts(path).get("architecture")).encode())
    with path.open("rb") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _first_names(module: nn.Module) -> dict[str, str]:
    """Returns {name: the first name of the same tensor}, in the order of the state."""
    first: dict[int, str] = {}
    return {
        name: first.setdefault(id(value), name) for name, value in module.state_dict(keep_vars=True).items()
    }


def save_encoder(path: Path, encoder: nn.Module, view: str, **facts: str | int | float) -> None:
    """Writes one encoder as safetensors, with its view and plain facts about it (phase, step)."""
    save_tensors(path, encoder, {"kind": ENCODER_KIND, "view": view, **encoder_facts(encoder), **facts})


def encoder_facts(encoder: nn.Module) -> dict[str, Any]:
    """Returns what `new_encoder` needs to make an encoder like this one."""
    return {name: getattr(encoder, name) for name in ("architecture", "width", "embedding")}


def load_encoder(path: Path, say: Callable[[str], None] | None = None) -> Any:
    """Loads an encoder that a run saved (safetensors), of any architecture, or that of a published checkpoint.

    Of published checkpoints: the `encoder_q` of CoCLR and CPR, the R3D of IIC; `say` then gets the report of what was
    loaded and what was not.
    """
    if path.suffix != ".safetensors":
        state = load(path)
        if "sampler" in state and "optimizer" in state:
            raise TrainError(
                f"checkpoint: {path} is the checkpoint of a whole run, not one encoder; give a file of "
                f"{path.parent / 'encoders'}"
            )
        if is_iic(state):
            return encoder_of_iic(state, path)
        encoder, report = load_published(path, state=state)
        if say is not None:
            say(f"{path}: {report}")
        return encoder
    if (kind := read_facts(path).get("kind", "file of another program")) != ENCODER_KIND:
        raise TrainError(f"checkpoint: {path} holds a {kind}, no encoder")
    facts = checked_facts(path, EncoderFacts)
    encoder = new_encoder(facts.architecture, facts.width, facts.embedding)
    load_tensors(path, encoder)
    return encoder
