"""The smallest artifact, made without a training."""

from __future__ import annotations

from pathlib import Path

import torch

from cpr_kernels.deploy import artifact
from cpr_kernels.train.export import program_of, weights_of


class Means(torch.nn.Module):
    """The smallest model: mean colours of 8 x 8 cells of the first frame, and a softmax of some of them."""

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
    """An artifact of it: loads at once, unlike a real one."""
    torch.manual_seed(0)
    model = Means(classes)
    example = [torch.zeros(2, 8, 32, 32, 3, dtype=torch.uint8)]
    clip = {
        "frames": 8, "crop": 32, "size": 32, "fps_stride": 1, "limit": 300, "clips": 2, "flow": "draft",
        "flow_bound": 8.0,
    }  # fmt: skip
    manifest = {
        "kind": "test", "views": [{"name": "rgb", "record": "rgb"}], "clip": clip, "embedding": 48,
        "classes": [f"class {i}" for i in range(classes)],
    }  # fmt: skip
    artifact.write(
        path, manifest, {artifact.PROGRAM: program_of(model, example), artifact.WEIGHTS: weights_of(model)}
    )
    return path
