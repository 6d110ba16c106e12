"""The benchmarks of data sets: what they make is what `cpr prepare` makes, and nothing of it is read again."""

from __future__ import annotations

from pathlib import Path

import pytest

for package in ("av", "cv2", "lmdb"):
    pytest.importorskip(package, reason="the trainer's packages: pip install 'cpr_kernels[train]'")

from bench.data import speed, startup  # noqa: E402
from cpr_kernels.train.data import prepare as module  # noqa: E402
from cpr_kernels.train.data.synthetic import write_mp4  # noqa: E402
from cpr_kernels.video import FLOW_SETTINGS  # noqa: E402


def test_a_simulated_data_set_is_whole_and_needs_no_decoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(startup, "CLASSES", 2)
    monkeypatch.setattr(startup, "STORED_AT_ONCE", 3)
    monkeypatch.setattr(
        module, "read_all", lambda todo, *_: [pytest.fail(f"{len(todo)} are read")] if todo else []
    )
    startup.make(tmp_path, 8)
    assert startup.steps(tmp_path)["again"]().kept == 8
    assert len(startup.steps(tmp_path)["open"]()) == 6
    assert startup.measure({"folder": str(tmp_path), "step": "load"}).keys() == {"seconds", "cpu", "mib"}


def test_the_parts_of_preparing_are_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import numpy as np

    clip = np.random.default_rng(0).integers(0, 255, (4, 32, 48, 3), np.uint8)
    write_mp4(tmp_path / "a.mp4", clip)
    assert speed.main(["--videos", str(tmp_path), "--size", "16", "--count", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in lines if line.startswith("| TV-L1")] == [
        f"TV-L1 {effort}" for effort in FLOW_SETTINGS
    ]
    assert any(line.startswith("| decoded and scaled (PyAV)") for line in lines) and "4 frames" in lines[0]
