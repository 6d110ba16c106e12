"""A small prepared data set for the trainer's tests: real mp4 files through the real decoder and TV-L1."""

from __future__ import annotations

from pathlib import Path

import pytest
from train_sets import DRAFT

from cpr_kernels.train.prepare import prepare
from cpr_kernels.train.synthetic import SyntheticSettings, generate


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """72 generated mp4 files: 9 classes, 4 sources a class (1 of them for testing), 2 clips a source."""
    folder = tmp_path_factory.mktemp("clips")
    generate(folder, SyntheticSettings(sources=4, test_sources=1, clips=2, frames=14, size=40))
    return folder


@pytest.fixture(scope="session")
def data(clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The generated files, prepared."""
    out = tmp_path_factory.mktemp("data")
    prepare(clip_folder, out, DRAFT)
    return out
