"""Writes trained heads as an artifact: weights as safetensors, a `torch.export` program, and a manifest."""

from __future__ import annotations

from pathlib import Path

import torch

from ... import __version__
from ...deploy import artifact
from ...deploy.adapter import KIND, RECORD
from ...deploy.network import weights_of
from ...deploy.program import program_of
from ...networks.heads import Heads
from ..runtime.files import write_atomically

ARTIFACT = "model.cpr"


def export(heads: Heads, folder: Path) -> list[Path]:
    """Writes `model.cpr`, and beside it what it holds: `weights.safetensors` and `program.pt2`; returns the paths.

    The program takes a float32 tensor [M, D_v] a view, and returns as many [M, E_v]; M is free.
    """
    heads = heads.eval()
    example = tuple(torch.zeros(2, len(head.mean)) for head in heads.heads.values())
    members = {artifact.PROGRAM: program_of(heads, example), artifact.WEIGHTS: weights_of(heads)}
    views = [
        {
            "name": view, "record": RECORD, "embedding": head.embedding,
            "architecture": "residual" if head.residual else "projection",
        }
        for view, head in heads.heads.items()
    ]  # fmt: skip
    manifest = {
        "kind": KIND,
        "cpr_kernels": __version__,
        "torch": str(torch.__version__),
        "views": views,
        "inputs": [f"{view}: float32 [M, {len(head.mean)}]" for view, head in heads.heads.items()],
        "outputs": [f"{view}: float32 [M, {head.embedding}]" for view, head in heads.heads.items()],
        "embedding": sum(head.embedding for head in heads.heads.values()),
        "classes": [],
    }
    artifact.write(folder / ARTIFACT, manifest, members)
    for name, body in members.items():
        write_atomically(folder / name, body)
    return [folder / ARTIFACT, *(folder / name for name in sorted(members))]
