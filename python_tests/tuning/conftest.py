"""Tuning is tested on tables so small that a second thread costs more than it gives."""

from __future__ import annotations

from collections.abc import Generator

import pytest
import torch


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Generator[None, None, None]:
    """One thread of torch while these tests run."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
