"""The table of all tests of heads, and a folder trained on it."""

from __future__ import annotations

import pytest
from adapt_data import SMALL, Trained, two_views

from cpr_kernels.train.adapt import Table
from cpr_kernels.train.adapt.job import adapt


@pytest.fixture(scope="session")
def table() -> Table:
    return two_views()


@pytest.fixture(scope="session")
def trained(table: Table, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("adapted") / "model"
    return Trained(table, folder, adapt(table, SMALL, folder))
