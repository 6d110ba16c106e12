"""Asks axe-core and the printed pages what is wrong with an open page."""

from __future__ import annotations

import io
from importlib.util import find_spec
from pathlib import Path

import pytest
from bench_tools import ROOT  # noqa: F401  puts the repository's root on the path

from bench.harness.chromium import Page


def violations(tab: Page) -> list[str]:
    """Returns what axe-core finds wrong in the open page: rule and the first place of each."""
    spec = find_spec("axe_core_python")
    if spec is None or spec.origin is None:
        pytest.skip("no axe-core: pip install axe-core-python")
    script = (Path(spec.origin).parent / "axe.min.js").read_text()
    return list(tab.run(
        f"{script}; const found = await axe.run(document, {{resultTypes: ['violations']}});"
        "return found.violations.map((one) => one.id + ': ' + one.nodes[0].html.slice(0, 200));"
    ))  # fmt: skip


def printed(tab: Page) -> list[list[str]]:
    """Returns the lines of each printed page."""
    pypdf = pytest.importorskip("pypdf", reason="pip install pypdf")
    pages = pypdf.PdfReader(io.BytesIO(tab.pdf())).pages
    return [[line.strip() for line in page.extract_text().splitlines() if line.strip()] for page in pages]
