"""The smallest artifacts, made without a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from cpr_kernels.deploy import artifact
from cpr_kernels.deploy.network import Network, weights_of
from cpr_kernels.deploy.program import program_of
from cpr_kernels.networks import new_encoder
from cpr_kernels.networks.inputs import PLAIN

CLIP = {
    "frames": 8, "crop": 32, "size": 32, "fps_stride": 1, "limit": 300, "clips": 2, "flow": "draft", "flow_bound": 8.0,
}  # fmt: skip
EXAMPLE = [torch.zeros(2, 8, 32, 32, 3, dtype=torch.uint8)]


class Means(torch.nn.Module):
    """A network of somebody's own: mean colours of 8 x 8 cells of the first frame, and a softmax of some of them."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(48, classes) if classes else None

    def forward(self, *views: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """[M, 8, 32, 32, 3] uint8 to embeddings [M, 48] and probabilities."""
        [clips] = views
        cells = torch.nn.functional.avg_pool2d(clips[:, 0].float().movedim(-1, 1) / 255, 8).flatten(1)
        embedding = torch.nn.functional.normalize(cells - 0.5, dim=1)
        return (embedding,) if self.linear is None else (embedding, self.linear(cells).softmax(dim=1))


def means(path: Path, classes: int) -> Path:
    """An artifact of it, without a description of the network: only its program can be loaded."""
    torch.manual_seed(0)
    model = Means(classes)
    members = {artifact.PROGRAM: program_of(model, EXAMPLE), artifact.WEIGHTS: weights_of(model)}
    artifact.write(path, manifest_of([{"name": "rgb", "record": "rgb"}], 48, classes), members)
    return path


def small(path: Path, classes: int) -> Path:
    """An artifact of an untrained network, described and without a program: made and loaded at once."""
    torch.manual_seed(0)
    encoder = new_encoder("r3d", 0.01, 0)
    size = encoder.feature_size
    network = Network({"rgb": encoder}, PLAIN, torch.nn.Linear(size, classes) if classes else None)
    with torch.no_grad():
        noise = torch.randint(0, 256, (4, 8, 32, 32, 3)).to(torch.uint8)
        network.centre_rgb.copy_(encoder.features(PLAIN["rgb"](noise)).mean(dim=0))
    view = {"name": "rgb", "record": "rgb", "architecture": "r3d", "width": 0.01, "embedding": size}
    artifact.write(path, manifest_of([view], size, classes), {artifact.WEIGHTS: weights_of(network)})
    return path


def manifest_of(views: list[dict[str, Any]], embedding: int, classes: int) -> dict[str, Any]:
    """What an artifact says of itself, without the hashes of its members."""
    names = [f"class {i}" for i in range(classes)]
    return {"kind": "test", "views": views, "clip": CLIP, "embedding": embedding, "classes": names}
