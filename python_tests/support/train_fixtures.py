"""A small prepared data set for the trainer's tests: real mp4 files through the real decoder and TV-L1."""

from __future__ import annotations

from pathlib import Path

import pytest
from train_sets import DRAFT, tiny

from cpr_kernels.train.data.prepare import prepare
from cpr_kernels.train.data.synthetic import SyntheticSettings, generate
from cpr_kernels.train.pretrain.loop import pretrain


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


@pytest.fixture(scope="session")
def sound_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """15 prepared videos of three classes, of which one has no sound; groups 1 to 7 test, so split by a CSV."""
    from sound_files import sound_set

    videos = sound_set(tmp_path_factory.mktemp("sounds"))
    rows = ["path,label,split"]
    for path in sorted(videos.rglob("*.mkv")):
        split = "test" if "_g05_" in path.name else "train"
        rows.append(f"{path.relative_to(videos).as_posix()},{path.parent.name},{split}")
    (videos / "list.csv").write_text("\n".join(rows))
    out = tmp_path_factory.mktemp("sound_data")
    prepare(videos / "list.csv", out, DRAFT)
    return out


@pytest.fixture(scope="session")
def cascade_run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, InfoNCE and one cycle. To be read only."""
    return pretrain(tiny(data, tmp_path_factory.mktemp("finished") / "cascade"))


@pytest.fixture(scope="session")
def s3d_run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of the narrowest S3D."""
    return pretrain(tiny(data, tmp_path_factory.mktemp("finished") / "s3d", backbone="s3d"))
