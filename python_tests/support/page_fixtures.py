"""Fixtures of tests that open pages; a module of its own, since pytest rewrites a plugin only when it imports it first."""

from __future__ import annotations

from collections.abc import Iterator

import chromium
import pytest
from bench_tools import ROOT  # noqa: F401  puts the repository's root on the path

from bench.harness.chromium import Page, browser


@pytest.fixture(scope="session")
def tab() -> Iterator[Page]:
    """One tab of a headless Chromium for all tests of pages."""
    chromium.browser()
    with browser() as page:
        yield page
