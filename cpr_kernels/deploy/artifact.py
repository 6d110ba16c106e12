"""Reads and writes artifacts: a trained model in one file, an uncompressed zip of weights, program and manifest.

`manifest.json` holds the model's inputs and outputs, its network, how videos become its input, the class names, and the
SHA-256 of every other member. `weights.safetensors` holds the weights by name. `program.pt2` is a `torch.export`
program with a free batch size: uint8 clips in, embeddings (and class probabilities) out, normalisation inside;
`torch.export.load` loads it, which can run code. `model.onnx` is there where `cpr export --onnx` was given.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta

from ..files import replacing
from ..progress import say
from ..reading.records import as_record, read_json
from ..reading.seals import UNSEALED, check_seal, sealed
from ..reading.zips import opened, read_members

FORMAT, VERSION = "cpr_kernels artifact", 1
PROGRAM, WEIGHTS, ONNX, MANIFEST = "program.pt2", "weights.safetensors", "model.onnx", "manifest.json"
Positive = Annotated[int, Meta(ge=1, le=1 << 20)]


class ArtifactError(ValueError):
    """Says what is wrong with an artifact that cannot be used, and what to do."""


@dataclass(frozen=True)
class ViewEntry:
    """Names an input, the record that it is cut from, and its encoder; an empty architecture is not described."""

    name: str
    record: str
    architecture: str = ""
    width: Annotated[float, Meta(gt=0, le=64)] = 1.0
    embedding: Annotated[int, Meta(ge=0, le=1 << 16)] = 0


@dataclass(frozen=True)
class ClipEntry:
    """Says how videos become clips; see `cpr prepare`, whose settings these are."""

    frames: Annotated[int, Meta(ge=1, le=4096)]
    crop: Annotated[int, Meta(ge=1, le=4096)]
    size: Annotated[int, Meta(ge=1, le=4096)]
    fps_stride: Annotated[int, Meta(ge=1, le=4096)]
    limit: Positive
    clips: Annotated[int, Meta(ge=1, le=4096)]
    flow: Literal["full", "fast", "draft"]
    flow_bound: Annotated[float, Meta(gt=0, le=1e6)]
    fps: Annotated[float, Meta(ge=0, le=1e6)] = 0.0


@dataclass(frozen=True)
class Member:
    """Describes a member of the file."""

    bytes: Annotated[int, Meta(ge=0)]
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True)
class Manifest:
    """Holds what an artifact says of itself, checked."""

    kind: str
    views: Annotated[list[ViewEntry], Meta(min_length=1, max_length=16)]
    embedding: Positive
    classes: list[str]
    files: dict[str, Member]
    clip: ClipEntry | None = None  # None: the input is rows of embeddings
    torch: str = ""
    cpr_kernels: str = ""

    @property
    def described(self) -> bool:
        """Returns whether the network can be rebuilt from this description and the weights."""
        return all(view.architecture for view in self.views)


def write(path: Path, manifest: Mapping[str, Any], members: Mapping[str, bytes]) -> None:
    """Writes an artifact, atomically.

    `manifest` lacks only format, version and the members' hashes.
    """
    files = {name: {"bytes": len(body), "sha256": digest(body)} for name, body in members.items()}
    full = sealed({"format": FORMAT, "version": VERSION, **manifest, "files": files})
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, body in {MANIFEST: json.dumps(full, indent=1).encode(), **members}.items():
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), body)  # same model, same bytes
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing([path]) as [part]:
        part.write_bytes(buffer.getvalue())


def read(path: Path) -> tuple[Manifest, dict[str, bytes]]:
    """Returns the manifest and the members of an artifact: names and sizes, every field, every hash checked.

    Raises:
        ArtifactError: missing, no artifact, of another version, cut short, or not what its manifest says.
    """
    if not path.is_file():
        raise ArtifactError(f"artifact: {path} does not exist; make one with `cpr export`")
    try:
        with path.open("rb") as file:
            members = read_members(file)
        body = read_json(members.pop(MANIFEST))
    except (KeyError, ValueError, OSError) as error:
        reason = f"it has no {MANIFEST}" if isinstance(error, KeyError) else str(error)
        raise ArtifactError(
            f"artifact: {path} is cut short or no artifact of `cpr export`: {reason}"
        ) from None
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        raise ArtifactError(f"artifact: {path} was not written by `cpr export`")
    if body.get("version") != VERSION:
        raise ArtifactError(
            f"artifact: {path} has version {body.get('version')}, this cpr_kernels reads version {VERSION}; export "
            "it again, or install the cpr_kernels that wrote it"
            + (f" ({body['cpr_kernels']})" if "cpr_kernels" in body else "")
        )
    try:
        if not check_seal(body):
            say(f"artifact: the manifest of {path} {UNSEALED}; export it again")
        manifest = as_record(body, Manifest)
    except ValueError as error:
        raise ArtifactError(f"artifact: the manifest of {path} is wrong: {error}; export it again") from None
    _check(path, manifest, members)
    return manifest, members


def stated_kind(path: Path) -> str | None:
    """Returns the kind that the manifest states, which says what is to read the file; None where it states none.

    Nothing else is read or checked: :func:`read` does that.
    """
    try:
        with path.open("rb") as file, opened(file) as archive:
            body = read_json(archive.read(MANIFEST))
    except (KeyError, ValueError, OSError):
        return None
    kind = body.get("kind") if isinstance(body, dict) else None
    return kind if isinstance(kind, str) else None


def _check(path: Path, manifest: Manifest, members: dict[str, bytes]) -> None:
    """Raises `ArtifactError` where the manifest and the members do not agree."""
    for name in (WEIGHTS,) if manifest.described else (WEIGHTS, PROGRAM):
        if name not in manifest.files:
            raise ArtifactError(f"artifact: the manifest of {path} names no {name}; export it again")
    for name, entry in manifest.files.items():
        if name not in members:
            raise ArtifactError(f"artifact: {path} lacks {name}, which its manifest names; export it again")
        if len(members[name]) != entry.bytes or digest(members[name]) != entry.sha256:
            raise ArtifactError(
                f"artifact: {name} in {path} is not the one that the manifest describes (another SHA-256); it was "
                "changed or damaged: export it again"
            )
    if left := set(members) - set(manifest.files):
        raise ArtifactError(f"artifact: {path} holds {sorted(left)[0]}, which its manifest does not name")


def digest(body: bytes) -> str:
    """Returns the SHA-256, hexadecimal."""
    return hashlib.sha256(body).hexdigest()
