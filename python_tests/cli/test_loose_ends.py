"""What killed writers leave: the next writer removes it, `cpr doctor FOLDER` lists it, and living writers are left alone."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from cpr_kernels.__main__ import main
from cpr_kernels.files import leftovers, relocated, replacing

KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import files
with files.replacing([Path(sys.argv[1])]) as [part]:
    part.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def killed_writer(path: Path) -> Path:
    """The temporary file of a process that was killed while it wrote `path`."""
    from cpr_kernels import files

    package = Path(files.__file__).parent
    ran = subprocess.run([sys.executable, "-c", KILLED, str(path), str(package)], capture_output=True)
    assert ran.returncode == -9, ran.stderr
    [part] = path.parent.glob(f".{path.name}.*.part")
    return part


def test_the_next_writer_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    part = killed_writer(path)
    assert (
        leftovers(tmp_path) == leftovers(tmp_path, "a.bin") == [part] and leftovers(tmp_path, "b.bin") == []
    )
    with replacing([path]) as [mine]:
        assert not part.exists() and leftovers(tmp_path) == []  # its own has a living writer
        mine.write_text("whole")
    assert path.read_text() == "whole" and list(tmp_path.iterdir()) == [path]


def test_a_living_writer_s_file_is_kept(tmp_path: Path) -> None:
    living = tmp_path / ".a.bin.5.part"
    with living.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with replacing([tmp_path / "a.bin"]) as [mine]:
            mine.write_text("whole")
        assert living.exists()


def test_the_doctor_lists_and_removes(tmp_path: Path, capsys: Any) -> None:
    pytest.importorskip("faiss", reason="indexes need faiss: pip install 'cpr_kernels[deploy]'")
    from cpr_kernels.deploy import clip_index

    index = tmp_path / "known"
    clip_index.extend(index, "m", [clip_index.Clip("a.mp4", 0.0, 1.0, 10, 20)], torch.eye(3)[:1])
    kept = sorted(tmp_path.rglob("*"))
    copy = tmp_path / "run" / ".data.part"
    copy.mkdir(parents=True)
    ends = [tmp_path / ".o.npz.12.part", index / "vectors.7.faiss", copy / ".lock"]
    for path in ends:
        path.write_bytes(b"half")
    assert main(["doctor", str(tmp_path)]) == 1
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 4 and told[-1] == "3 loose ends, 12 bytes; --fix removes them"
    assert sorted(line.split("  ")[0] for line in told[:-1]) == sorted(map(str, [*ends[:2], copy]))
    with (copy / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a copy that is being made
        assert main(["doctor", str(tmp_path), "--fix"]) == 0
    assert copy.is_dir() and not ends[0].exists() and not ends[1].exists()
    assert main(["doctor", str(tmp_path), "--fix"]) == 0
    assert sorted(tmp_path.rglob("*")) == sorted([*kept, tmp_path / "run"])
    capsys.readouterr()
    assert main(["doctor", str(tmp_path)]) == 0 and capsys.readouterr().out == "no loose ends\n"
    assert main(["doctor", "--fix"]) == 2 and "give the folders" in capsys.readouterr().err


def test_paths_follow_a_folder_that_moves(tmp_path: Path) -> None:
    run, data = tmp_path / "a" / "run", tmp_path / "data"
    moved = tmp_path / "b" / "a" / "run"
    for folder in (run, data, moved):
        folder.mkdir(parents=True)
    assert relocated(data, str(run), run) == relocated(data, None, moved) == data
    assert relocated(data, str(run), moved) == data  # moved without it
    (tmp_path / "b" / "data").mkdir()
    assert relocated(data, str(run), moved) == tmp_path / "b" / "data"
