"""The small network: its shapes, its smallest clip, and that its file names it."""

from __future__ import annotations

from pathlib import Path

import torch

from cpr_kernels.networks import new_encoder
from cpr_kernels.train.encoders.weights import load_encoder, save_encoder


def test_shapes_and_unit_length() -> None:
    encoder = new_encoder("conv4", 0.25, 24).eval()
    for frames, pixels in ((8, 48), (4, 8), (5, 9)):
        clips = torch.randn(3, 3, frames, pixels, pixels)
        embeddings, features = encoder(clips), encoder.features(clips)
        assert embeddings.shape == (3, 24) and features.shape == (3, encoder.feature_size) == (3, 64)
        torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(3))


def test_file_names_the_architecture(tmp_path: Path) -> None:
    encoder = new_encoder("conv4", 0.125, 16).eval()
    save_encoder(tmp_path / "e.safetensors", encoder, "rgb", phase="infonce")
    clips = torch.randn(2, 3, 8, 32, 32)
    loaded = load_encoder(tmp_path / "e.safetensors").eval()
    assert loaded.architecture == "conv4" and torch.equal(loaded(clips), encoder(clips))
