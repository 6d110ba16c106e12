"""`python -m bench drawn`: tables are what their kinds say, and the plan of two good views leaves noise no say alone."""

from __future__ import annotations

import pytest
import torch

cli = pytest.importorskip("bench.cli", reason="bench is not beside the tests")

from bench.plans import drawn  # noqa: E402


@pytest.mark.parametrize("kind", drawn.KINDS, ids=lambda kind: kind.__name__)
def test_a_table_is_drawn_by_its_seed(kind) -> None:
    table, again, other = (drawn.table_of(kind, seed) for seed in (0, 0, 1))
    for name, rows in table.views.items():
        assert len(rows) == drawn.ROWS and torch.equal(rows.nan_to_num(), again.views[name].nan_to_num())
        assert not torch.equal(rows.nan_to_num(), other.views[name].nan_to_num())


def test_a_near_copy_keeps_most_of_its_view() -> None:
    rows = torch.randn(200, 9, generator=torch.Generator().manual_seed(0))
    copy = drawn.near_copy(torch.Generator().manual_seed(1), rows, 0.3)
    assert float((copy - rows).std() / rows.std()) == pytest.approx(0.3, abs=0.02)


def test_the_page_has_a_row_a_kind(monkeypatch, capsys) -> None:
    monkeypatch.setattr(drawn, "KINDS", (drawn.some_noise,))
    monkeypatch.setattr(drawn, "ROWS", 400)
    assert cli.main(["drawn", "--seeds", "0"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    single, joint, _, tuned = (float(cell) for cell in line.split("|")[2:6])
    assert line.startswith("| Two good views, two of noise") and "a:5" not in line and "b:5" not in line
    assert tuned > single and tuned > joint - 0.02
