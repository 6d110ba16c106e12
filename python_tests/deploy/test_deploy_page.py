"""The code of docs/deploy.md runs on an artifact, an index and a video as its commands make them."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import train_sets  # noqa: F401  skips without the trainer's packages
from pages import run_python
from places import ROOT
from small_artifact import small

from cpr_kernels.__main__ import main
from cpr_kernels.train.data.synthetic import SyntheticSettings, generate

PAGE = ROOT / "docs" / "deploy.md"


def test_its_code_finds_the_video_itself_and_its_nearest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not PAGE.is_file():
        pytest.skip("the docs are not beside the tests")
    pytest.importorskip("faiss", reason="the index is searched by FAISS: pip install 'cpr_kernels[deploy]'")
    monkeypatch.chdir(tmp_path)
    generate(Path("archive"), SyntheticSettings(sources=2, test_sources=1, clips=1, frames=14, size=40))
    small(Path("model.cpr"), 7)
    videos = sorted(Path("archive").rglob("*.mp4"))
    shutil.copy(videos[3], "holiday.mp4")
    assert main(["index", "model.cpr", "archive", "--out", "known"]) == 0
    capsys.readouterr()
    scope = run_python(PAGE)
    found = re.findall(r"^(\d\.\d\d)  (\S+) at \d\.\d s$", capsys.readouterr().out, flags=re.MULTILINE)
    assert len(found) == 5 and found[0][0] == "1.00" and Path(found[0][1]).name == videos[3].name
    assert scope["prediction"].probabilities.shape == (7,)
