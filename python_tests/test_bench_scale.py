"""`python -m bench scale` runs, writes what it promises and fills its section of the README."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from bench_tools import ROOT, run_bench


@pytest.mark.slow
def test_a_quick_run_measures_writes_and_tells_the_readme(tmp_path: Path) -> None:
    done = run_bench("scale", "--quick", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    (found,) = tmp_path.glob("*-scale-*.json")
    document = json.loads(found.read_text())
    rows = [row for row in document["measured"] if row["status"] == "ok"]
    exact = [row for row in rows if not row["factory"]]
    assert exact and all(row["topk"] == 1.0 and 0 < row["pmr"] <= 1 and row["call_s"] > 0 for row in exact)
    if importlib.util.find_spec("faiss"):
        indexed = [row for row in rows if row["factory"]]
        assert {row["factory"].rstrip("0123456789") for row in indexed} >= {"Flat", "HNSW"}
        assert all(row["topk"] > 0.5 and row["build_s"] > 0 and row["update_s"] > 0 for row in indexed)
        assert all(row["same_as_exact"] for row in indexed if row["factory"] == "Flat")
    if importlib.util.find_spec("matplotlib"):
        assert found.with_suffix(".png").stat().st_size > 10_000
    assert "| native, exact" in found.with_suffix(".md").read_text() and "| native, exact" in done.stdout

    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- scale:begin -->\nold\n<!-- scale:end -->\nafter\n")
    assert run_bench("scale", "--readme", str(readme), "--out", str(tmp_path)).returncode == 0
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "| native, exact" in text and "no independent videos" in text


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--sizes", "0"), "--sizes must be >= 1"),
        (("--readme", "{tmp}/none.md", "--out", "{tmp}"), "none.md: no such file"),
        (("--readme", str(ROOT / "README.md"), "--out", "{tmp}"), "holds no scale results"),
    ],
)
def test_wrong_arguments_are_one_line(
    arguments: tuple[str, ...], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from bench import cli

    assert cli.main(["scale", *(argument.replace("{tmp}", str(tmp_path)) for argument in arguments)]) == 2
    told = capsys.readouterr().err
    assert sentence in told and len(told.splitlines()) == 1
