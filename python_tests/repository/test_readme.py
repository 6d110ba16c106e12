"""The README's code runs, its tables and its picture are current, and its tree is the tree."""

from __future__ import annotations

import importlib.util
import json
import re
from types import ModuleType

import pytest
import torch
from pages import blocks, run_python
from places import ROOT, SHARED_DATA

from cpr_kernels import losses, mining
from cpr_kernels.__main__ import main

README = (ROOT / "README.md").read_text(encoding="utf-8")


def _script(name: str) -> ModuleType:
    """Returns a script of docs/ as a module; the test skips where the docs are not beside it."""
    path = ROOT / "docs" / f"{name}.py"
    if not path.is_file():
        pytest.skip("the docs are not beside the tests")
    spec = importlib.util.spec_from_file_location(f"docs_{name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_is_one_page() -> None:
    assert len(README.splitlines()) <= 180


def test_its_code_runs_and_the_op_equals_plain_torch() -> None:
    with torch.random.fork_rng():
        scope = run_python(ROOT / "README.md")
    assert torch.equal(scope["kept"], scope["indices"])  # type: ignore[arg-type]
    positives = scope["positives"]
    assert tuple(positives.shape) == (16, 5) and (positives >= 0).all()  # type: ignore[attr-defined]


def test_the_commands_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert not main(["--help"])
    listed = capsys.readouterr().out
    named = set(re.findall(r"\bcpr (\w+)", " ".join(blocks(README, "bash|console")) + README))
    assert named >= {"mine", "prepare", "pretrain", "evaluate", "finetune", "report"}
    for command in named:
        assert re.search(rf"^  {command}\b", listed, flags=re.MULTILINE), command


def test_the_tree_names_every_folder_and_its_question() -> None:
    tree = _script("tree")
    shown = README.split(tree.TITLE)[1].split("```\n")[1]
    assert shown.rstrip("\n") == tree.render()
    for name in tree.OTHERS:
        assert (ROOT / name).is_dir(), name


def test_the_table_of_backends_is_the_tables_of_the_code() -> None:
    columns = {
        "native CPU": "native",
        "Triton": "triton",
        "FAISS": "faiss",
        "sharded": "sharded",
        "reference": "reference",
    }
    header, _, *rows = [
        [cell.strip().replace("\\*", "") for cell in line.strip("|").split("|")]
        for line in README.split("## Backends")[1].split("\n\n")[1].splitlines()
    ]
    tables = {
        "`cascade_topk`": mining.BACKENDS, "`cascade_rerank`": mining.RERANK_BACKENDS, "`mil_nce`": losses.BACKENDS,
    }  # fmt: skip
    for row in rows:
        if row[0] in tables:
            dots = {columns[name] for name, cell in zip(header, row) if cell == "●" and name in columns}
            assert dots == {backend.NAME for backend in tables[row[0]]}, row[0]
    assert {row[0] for row in rows} == {*tables, "`enqueue_`"}


def test_the_generated_pages_are_current() -> None:
    readme = pytest.importorskip("bench.tables.readme", reason="bench is not beside the tests")
    scale = importlib.import_module("bench.scale.report")
    results, page = ROOT / "bench" / "results", ROOT / "docs" / "benchmarks.md"
    documents = readme.read_all(results)
    table = readme.summary(documents, "bench/results")
    assert readme.between_markers(ROOT / "README.md", readme.BEGIN, readme.END, table) == README
    whole = readme.performance(documents, "../bench/results")
    assert readme.between_markers(page, readme.BEGIN, readme.END, whole) == page.read_text()
    long = scale.summary(scale.newest(results), "../bench/results")
    assert readme.between_markers(page, scale.BEGIN, scale.END, long) == page.read_text()


def test_the_picture_is_drawn_from_its_numbers() -> None:
    picture = _script("cascade")
    assert picture.draw(json.loads(picture.NUMBERS.read_text())) == picture.PICTURE.read_text()


def test_the_picture_s_numbers_are_those_of_the_table() -> None:
    table = SHARED_DATA / "features" / "ucf101_test_twostream.npz"
    if not table.is_file():
        pytest.skip("shared/data/features, with the real feature tables, is not beside the checkout")
    picture = _script("cascade")
    recorded, measured = json.loads(picture.NUMBERS.read_text()), picture.measure(table)
    for key in ("entries", "classes"):
        assert measured[key] == recorded[key]
    assert measured["chance"] == recorded["chance"]
    slack = 2.5 / (5 * recorded["entries"])  # close scores may swap between summation orders
    assert measured["flow_alone"] == pytest.approx(recorded["flow_alone"], abs=slack)
    for ours, theirs in zip(measured["stages"], recorded["stages"], strict=True):
        assert (ours["view"], ours["keep"]) == (theirs["view"], theirs["keep"])
        assert ours["share"] == pytest.approx(theirs["share"], abs=slack)
