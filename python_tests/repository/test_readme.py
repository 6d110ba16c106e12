"""The README's own code runs, and what it names is there."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
from places import ROOT

from cpr_kernels.__main__ import main

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_blocks_run_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) >= 2
    scope: dict[str, object] = {}
    for block in blocks:
        if "FaissIndex" in block and importlib.util.find_spec("faiss") is None:
            continue  # an extra that is not installed
        exec(compile(block, "README.md", "exec"), scope)
    positives = scope["positives"]
    assert tuple(positives.shape) == (16, 5) and (positives >= 0).all()  # type: ignore[attr-defined]
    assert "-> native" in capsys.readouterr().out


def test_the_commands_exist(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        raise SystemExit(main(["--help"]))
    assert not ended.value.code
    listed = capsys.readouterr().out
    for command in set(re.findall(r"^(?:\$ )?cpr (\w+)", README, flags=re.MULTILINE)):
        assert command in listed


def test_the_tree_is_the_tree() -> None:
    tree = README.split("## Layout")[1].split("```")[1]
    folder = Path()
    for line in tree.strip("\n").splitlines():
        name = line.split()[0] if line.strip() else ""
        if not line.startswith(" ") and name.endswith("/"):
            folder = ROOT / name
            assert folder.is_dir(), name
        elif re.match(r"  [\w.]", line):
            for file in re.findall(r"^  ([\w./]+)", line):
                assert (folder / file).exists(), file
