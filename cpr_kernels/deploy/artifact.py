"""Reads and writes artifacts: a trained model in one file, an uncompressed zip of weights, program and manifest.

`manifest.json` holds the model's inputs and outputs, how videos become its input, the class names, and the SHA-256 of
every other member. `program.pt2` is a `torch.export` program with a free batch size: uint8 clips in, embeddings (and
class probabilities) out, normalisation inside; `torch.export.load` loads it. `weights.safetensors` holds the same
weights by name, for further training. `model.onnx` is there where `cpr export --onnx` was given.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..files import replacing

FORMAT, VERSION = "cpr_kernels artifact", 1
PROGRAM, WEIGHTS, ONNX, MANIFEST = "program.pt2", "weights.safetensors", "model.onnx", "manifest.json"
NEEDED = ("kind", "views", "clip", "embedding", "classes", "files")
CLIP = ("frames", "crop", "size", "fps_stride", "limit", "clips", "flow", "flow_bound")


class ArtifactError(ValueError):
    """Says what is wrong with an artifact that cannot be used, and what to do."""


def write(path: Path, manifest: Mapping[str, Any], members: Mapping[str, bytes]) -> None:
    """Writes an artifact, atomically.

    `manifest` lacks only format, version and the members' hashes.
    """
    files = {name: {"bytes": len(body), "sha256": digest(body)} for name, body in members.items()}
    full = {"format": FORMAT, "version": VERSION, **manifest, "files": files}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, body in {MANIFEST: json.dumps(full, indent=1).encode(), **members}.items():
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), body)  # same model, same bytes
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing([path]) as [part]:
        part.write_bytes(buffer.getvalue())


def read(path: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Returns the manifest and the members of an artifact, every hash checked.

    Raises:
        ArtifactError: missing, no artifact, of another version, cut short, or not what its manifest says.
    """
    if not path.is_file():
        raise ArtifactError(f"artifact: {path} does not exist; make one with `cpr export`")
    try:
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        manifest = json.loads(members.pop(MANIFEST))
    except (zipfile.BadZipFile, KeyError, ValueError, EOFError, OSError) as error:
        raise ArtifactError(
            f"artifact: {path} is cut short or no artifact of `cpr export` ({type(error).__name__}: {error})"
        ) from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ArtifactError(f"artifact: {path} was not written by `cpr export`")
    if manifest.get("version") != VERSION:
        raise ArtifactError(
            f"artifact: {path} has version {manifest.get('version')}, this cpr_kernels reads version {VERSION}; export "
            "it again, or install the cpr_kernels that wrote it"
            + (f" ({manifest['cpr_kernels']})" if "cpr_kernels" in manifest else "")
        )
    _check(path, manifest, members)
    return manifest, members


def _check(path: Path, manifest: dict[str, Any], members: dict[str, bytes]) -> None:
    """Raises `ArtifactError` where the manifest and the members do not agree."""
    lacking = [name for name in NEEDED if name not in manifest]
    lacking += [f"clip.{name}" for name in CLIP if name not in manifest.get("clip", {})]
    if lacking:
        raise ArtifactError(f"artifact: the manifest of {path} lacks {', '.join(lacking)}; export it again")
    for name in (PROGRAM, WEIGHTS):
        if name not in manifest["files"]:
            raise ArtifactError(f"artifact: the manifest of {path} names no {name}; export it again")
    for name, entry in manifest["files"].items():
        if name not in members:
            raise ArtifactError(f"artifact: {path} lacks {name}, which its manifest names; export it again")
        if len(members[name]) != entry.get("bytes") or digest(members[name]) != entry.get("sha256"):
            raise ArtifactError(
                f"artifact: {name} in {path} is not the one that the manifest describes (another SHA-256); it was "
                "changed or damaged: export it again"
            )
    if left := set(members) - set(manifest["files"]):
        raise ArtifactError(f"artifact: {path} holds {sorted(left)[0]}, which its manifest does not name")


def digest(body: bytes) -> str:
    """Returns the SHA-256, hexadecimal."""
    return hashlib.sha256(body).hexdigest()
