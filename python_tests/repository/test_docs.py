"""The pages of docs/: their code runs, their commands, links and figures are right, and the site is built from them."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pages import anchors, blocks, links, prose, run_python
from places import ROOT, SHARED_DATA

import cpr_kernels
from cpr_kernels.__main__ import main

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
WITH_CODE = [page for page in PAGES if "```python" in page.read_text() and page.name != "deploy.md"]
WRITTEN = [ROOT / "README.md", ROOT / "CHANGELOG.md", *PAGES, *sorted((ROOT / ".github").rglob("*.md"))]
# words of no field: what they stood for has a plainer name
AVOIDED = r"told|asked|asks for|doors?|settles?|settled|brings|goes on|lies|lie|the (long|short) way|walks?|beside itself"
NUMBER = re.compile(r"(?<![\w:.])\d+\.\d+(?!\w)")

pytestmark = pytest.mark.skipif(not PAGES, reason="the docs are not beside the tests")


def named(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_pages_are_short(page: Path) -> None:
    assert len(page.read_text().splitlines()) <= 250


@pytest.mark.parametrize("page", WITH_CODE, ids=named)
def test_the_code_of_a_page_runs_in_order(page: Path) -> None:
    if "FaissIndex" in page.read_text():
        pytest.importorskip("faiss", reason="the page shows FaissIndex: pip install 'cpr_kernels[faiss]'")
    if "cpr_kernels.train" in "".join(blocks(page.read_text(), "python")):
        pytest.importorskip("cv2", reason="the page shows the trainer: pip install 'cpr_kernels[train]'")
    with torch.random.fork_rng():
        run_python(page)


def test_the_pages_with_code_are_those_that_should_have_some() -> None:
    assert {page.stem for page in WITH_CODE} >= {"concepts", "mining", "large_queues", "extending"}


def test_more_stages_mine_better_on_the_page_s_example(capsys: pytest.CaptureFixture[str]) -> None:
    with torch.random.fork_rng():
        run_python(DOCS / "mining.md")
    shares = dict(re.findall(r"^(\S+)\s+(0\.\d\d)$", capsys.readouterr().out, flags=re.MULTILINE))
    assert float(shares["flow:0.5,rgb:0.5,flow:5"]) > float(shares["flow:5"])


def test_every_option_of_every_command_shown_exists(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip(
        "tyro", reason="the trainer's commands need their packages: pip install 'cpr_kernels[train]'"
    )
    used: dict[str, set[str]] = {}
    for page in WRITTEN:
        for block in blocks(page.read_text().replace("\\\n", " "), "bash|console"):
            for command, rest in re.findall(r"^(?:\$ )?cpr (\w+)([^#\n]*)", block, flags=re.MULTILINE):
                used.setdefault(command, set()).update(re.findall(r"(?<=\s)--[\w.-]+", rest))
    assert len(used) >= 10
    for command, options in used.items():
        assert main([command, "--help"]) == 0
        shown = capsys.readouterr().out
        missing = {option for option in options - {"--preset"} if option not in shown}
        assert not missing, (command, missing)


def test_every_benchmark_command_shown_exists() -> None:
    cli = pytest.importorskip("bench.cli", reason="bench is not beside the tests")
    used: dict[str, set[str]] = {}
    for page in WRITTEN:
        text = page.read_text().replace("\\\n", " ")
        for rest in re.findall(
            r"python -m bench([^#\n`]*)", "\n".join([*blocks(text, "bash"), *re.findall(r"`[^`\n]*`", text)])
        ):
            words = rest.split()
            command = words[0] if words and not words[0].startswith("-") else ""
            used.setdefault(command, set()).update(word for word in words if word.startswith("--"))
    assert {"readme", "scale", "sharded", "protocol", "modalities"} <= set(used)
    for command, options in used.items():
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
            assert not cli.main([*([command] if command else ["measure"]), "--help"])
        assert not {option for option in options if option not in out.getvalue()}, (command, options)


@pytest.mark.parametrize("page", WRITTEN, ids=named)
def test_links_lead_somewhere(page: Path) -> None:
    for target in links(page.read_text()):
        if not target.startswith("http"):
            path, _, anchor = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            assert file.exists(), target
            if anchor:
                assert anchor in anchors(file.read_text()), target


@pytest.mark.parametrize("page", WRITTEN, ids=named)
def test_files_named_exist(page: Path) -> None:
    for name in re.findall(
        r"`((?:csrc|cpr_kernels|python_tests|bench|examples|docs)/[\w./]*)`", page.read_text()
    ):
        assert (ROOT / name).exists(), name


def test_the_constants_are_those_of_the_core() -> None:
    text = (DOCS / "kernels.md").read_text()
    sources = "".join(path.read_text() for path in (ROOT / "csrc" / "cpu").rglob("*.cpp"))
    table = dict(re.findall(r"^\| `([A-Z_]+)` \| ([\d.]+) \|", text, flags=re.MULTILINE))
    assert len(table) >= 6
    for name, value in table.items():
        assert re.search(rf"constexpr \w+ {name} = {re.escape(value)};", sources), name


@pytest.mark.parametrize("page", WRITTEN, ids=named)
def test_pages_use_the_words_of_the_field(page: Path) -> None:
    found = re.findall(rf"\b(?:{AVOIDED})\b.*", prose(page.read_text()), flags=re.IGNORECASE)
    assert not re.search(rf"\b(?:{AVOIDED})\b", prose(page.read_text()), flags=re.IGNORECASE), found


def test_the_schemas_are_those_that_are_registered() -> None:
    [listed] = blocks((DOCS / "design.md").read_text(), "text")
    ops = ("cascade_topk", "cascade_rerank", "mil_nce", "mil_nce_stats", "enqueue_")
    assert listed.splitlines() == [str(getattr(torch.ops.cpr, name).default._schema) for name in ops]


def mined(table: str, *options: str) -> str:
    """Returns what `cpr mine` prints of a real feature table."""
    file = SHARED_DATA / "features" / table
    if not file.is_file():
        pytest.skip("shared/data/features, with the real feature tables, is not beside the checkout")
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(["mine", str(file), *options]) == 0
    return out.getvalue()


def test_the_output_shown_is_what_the_command_prints(tmp_path: Path) -> None:
    [short], [whole] = (
        blocks(page.read_text(), "console") for page in (ROOT / "README.md", DOCS / "mining.md")
    )
    assert set(short.splitlines()) < set(whole.splitlines())
    command, *shown = whole.splitlines()
    _, _, table, *options = command.removeprefix("$ ").split()
    out = mined(table, *(option.replace("mined.npz", str(tmp_path / "mined.npz")) for option in options))
    printed = {NUMBER.sub("#", line): line for line in out.splitlines()}
    for line in shown:
        assert NUMBER.sub("#", line) in printed, line
        ours, theirs = (NUMBER.findall(text) for text in (line, printed[NUMBER.sub("#", line)]))
        # close scores may swap between summation orders
        assert [float(n) for n in ours] == pytest.approx([float(n) for n in theirs], abs=0.0011), line
    assert np.load(tmp_path / "mined.npz")["indices"].shape == (3783, 5)


@pytest.mark.slow
def test_the_figures_of_the_mining_tables() -> None:
    text, checked = (DOCS / "mining.md").read_text(), 0
    both = "--center --sample 0 --json"
    for part, table, common in (
        (
            text.split("Other schedules")[1].split("**Three views.**")[0],
            "ucf101_test_twostream.npz",
            f"{both} --ids label,group --order flow,rgb",
        ),
        (text.split("**Three views.**")[1], "ccv_20cls_3views_20d.npz", both),
    ):
        for line in re.findall(r"^\| (?!mining|---)(.*) \|$", part, flags=re.MULTILINE):
            _, options, pmr, cmr = (cell.strip("*` ") for cell in line.split("|"))
            found = json.loads(mined(table, *common.split(), *options.split()))
            assert found["pmr"] == pytest.approx(float(pmr), abs=0.00065), line
            assert found["cmr_median"] == pytest.approx(float(cmr), abs=0.00065), line
            checked += 1
    assert checked == 15


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built in strict mode: a broken link, anchor or docstring reference is an error."""
    for package in ("material", "mkdocstrings_handlers.python"):
        pytest.importorskip(package, reason="the site is built by mkdocs: pip install 'cpr_kernels[docs]'")
    out = tmp_path_factory.mktemp("site")
    ran = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", ROOT / ".mkdocs.yml", "-d", out],
        capture_output=True, text=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, cwd=ROOT,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    return out


@pytest.mark.slow
def test_the_site_names_everything_public(site: Path) -> None:
    named = {
        name
        for page in (site / "api").glob("*.html")
        for name in re.findall(r'id="cpr_kernels\.([\w.]+)"', page.read_text())
    }
    missing = {name for name in cpr_kernels.__all__ if not {name, f"{name}.{name}"} & named}
    assert not missing
    assert {"deploy.Model", "deploy.ClipIndex", "train.s3d.S3D", "train.checkpoint.load_published"} <= named
    assert not [page for page in site.rglob("*.html") if re.search(r":(func|class|meth):", page.read_text())]


@pytest.mark.slow
def test_the_site_asks_no_other_host(site: Path) -> None:
    loaded = r"""<(?:script|img|iframe|source)[^>]*\ssrc=["']?(?:https?:)?//|<link[^>]*rel=["']?(?:stylesheet|preload|preconnect|icon)[^>]*href=["']?(?:https?:)?//"""
    for page in site.rglob("*.html"):
        assert not re.search(loaded, page.read_text()), page
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(\s*[\"']?(?:https?:)?//|@import", style.read_text()), style
    assert (site / "search" / "search_index.json").stat().st_size > 50_000


@pytest.mark.slow
def test_the_site_has_home_pages_and_benchmarks(site: Path) -> None:
    home = (site / "index.html").read_text()
    assert "Finds the positives" in home and 'src="cascade.svg"' in home
    for page in PAGES:
        assert (site / page.relative_to(DOCS).with_suffix(".html")).is_file(), page
    for picture in re.findall(r'<img[^>]*src="([^"]+)"', (site / "benchmarks.html").read_text()):
        assert (site / picture).is_file(), picture
