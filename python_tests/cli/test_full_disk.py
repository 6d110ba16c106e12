"""A full disk, too little memory and too few open files: one line that names file and cause, and nothing is lost."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from limits import address_space, limited

import cpr_command
from cpr_kernels.__main__ import main
from cpr_kernels.cli.videos import Results
from cpr_kernels.files import replacing


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("features") / "f.npz"
    rows = np.random.default_rng(0).normal(size=(600, 4)).astype(np.float32)
    np.savez(path, rgb=rows, flow=rows[:, ::-1])
    return path


@pytest.mark.parametrize("name", ["o.npz", "o.npy", "o.csv", "o.safetensors"])
def test_a_full_disk_names_file_and_cause(name: str, table: Path, tmp_path: Path, capsys: Any) -> None:
    if name.endswith("safetensors"):
        pytest.importorskip("safetensors")
    mine = ["mine", str(table), "--out", str(tmp_path / name), "--force", "--sample", "0", "--no-progress"]
    assert main(mine) == 0
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    capsys.readouterr()
    with limited(resource.RLIMIT_FSIZE, 4096):
        assert main(mine) == 2
    written = next(iter(sorted(before)))
    assert capsys.readouterr().err == f"cpr mine: {written}: File too large\n"
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_error_that_is_not_the_disk_s_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="mine"), replacing([tmp_path / "a"]):
        raise KeyError("mine")
    with pytest.raises(FileNotFoundError, match="other"), replacing([tmp_path / "a"]):
        (tmp_path / "other").read_bytes()
    with pytest.raises(FileNotFoundError, match=r"none/a'"), replacing([tmp_path / "none" / "a"]):
        pass
    assert list(tmp_path.iterdir()) == []


def test_rows_that_were_finished_stay_whole(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"

    def write() -> None:
        with Results("jsonl", out, []) as results:
            for row in range(100):
                results.add([], "", {"row": row, "text": "x" * 300})

    with limited(resource.RLIMIT_FSIZE, 2000), pytest.raises(OSError, match=r"File too large.*rows\.jsonl"):
        write()
    rows = [json.loads(line)["row"] for line in out.read_text().splitlines()]
    assert rows == list(range(6)) and list(tmp_path.iterdir()) == [out]


def test_too_little_memory_is_one_line(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "big.npy"
    np.lib.format.open_memmap(path, "w+", np.float32, (1 << 20, 256)).flush()  # a gigabyte of nothing
    with limited(resource.RLIMIT_AS, address_space() + (300 << 20)):
        assert main(["mine", "--view", f"rgb={path}", "--schedule", "rgb:5", "--no-progress"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("cpr mine: ") and "memory" in line


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")]
)
def test_each_library_s_lack_of_memory_is_known(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def failing(name: str, argv: list[str]) -> int:
        raise error

    monkeypatch.setattr(cpr_command, "_call", failing)
    assert main(["mine"]) == 2
    assert "needs more memory than is free" in capsys.readouterr().err
    error = RuntimeError("shape mismatch")
    with pytest.raises(RuntimeError, match="shape mismatch"):
        main(["mine"])


def test_too_few_open_files_are_one_line(table: Path, tmp_path: Path, capsys: Any) -> None:
    with limited(resource.RLIMIT_NOFILE, 3):
        assert main(["mine", str(table), "--out", str(tmp_path / "o.npz")]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("cpr mine: ") and "Too many open files" in line
    assert list(tmp_path.iterdir()) == []
