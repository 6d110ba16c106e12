"""The guide's code runs and its commands exist; the API reference is made from the docstrings, all public names in it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

import cpr_kernels
from cpr_kernels.__main__ import main

GUIDE = ROOT / "docs" / "guide.md"

pytestmark = pytest.mark.skipif(not GUIDE.is_file(), reason="the guide is not beside the tests")


def test_the_guide_s_code_runs_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    scope: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", GUIDE.read_text(), flags=re.DOTALL):
        exec(compile(block, "docs/guide.md", "exec"), scope)
    shown = capsys.readouterr().out
    shares = dict(re.findall(r"^(\S+)\s+(0\.\d\d)$", shown, flags=re.MULTILINE))
    assert float(shares["flow:0.5,rgb:0.5,flow:5"]) > float(shares["flow:5"])
    assert re.search(r"PMR 0\.\d\d, chance 0\.12; CMR from 0\.\d\d to [01]\.\d\d", shown)


def test_the_guide_s_links_lead_somewhere() -> None:
    text = GUIDE.read_text()
    titles = {
        re.sub(r"[^a-z ]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^## (.*)$", text, re.M)
    }
    assert set(re.findall(r"\]\(#([\w-]+)\)", text)) == titles


@pytest.mark.parametrize("page", ["README.md", "docs/guide.md"])
def test_every_option_of_every_command_shown_exists(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip(
        "tyro", reason="the trainer's commands need their packages: pip install 'cpr_kernels[train]'"
    )
    text = (ROOT / page).read_text().replace("\\\n", " ")
    used: dict[str, set[str]] = {}
    for block in re.findall(r"```(?:bash|console)\n(.*?)```", text, flags=re.DOTALL):
        for command, rest in re.findall(r"^(?:\$ )?cpr (\w+)([^#\n]*)", block, flags=re.MULTILINE):
            used.setdefault(command, set()).update(re.findall(r"(?<=\s)--[\w.-]+", rest))
    assert len(used) >= 4
    for command, options in used.items():
        assert main([command, "--help"]) == 0
        shown = capsys.readouterr().out
        missing = {option for option in options - {"--preset"} if option not in shown}
        assert not missing, (command, missing)


def test_the_reference_names_everything_public(tmp_path: Path) -> None:
    pytest.importorskip("pdoc", reason="the API reference is made by pdoc: pip install 'cpr_kernels[docs]'")
    modules = ["cpr_kernels", "cpr_kernels.deploy"]
    ran = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-m", "pdoc", "-d", "google", "-o", tmp_path, *modules],
        capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-2000:]
    page = (tmp_path / "cpr_kernels.html").read_text()
    for name in cpr_kernels.__all__:
        assert f'id="{name}"' in page, name
    assert 'id="Model"' in (tmp_path / "cpr_kernels" / "deploy.html").read_text()
