"""`python -m bench drift`: encoders that move as they say, and miners that are refitted at their intervals."""

from __future__ import annotations

import pytest
import torch

cli = pytest.importorskip("bench.cli", reason="bench is not beside the tests")

from bench.plans import drift  # noqa: E402
from bench.plans.drift import ANEW, BEGIN, END, INTERVALS, NEVER, PLAIN, Drift, Encoder, Row  # noqa: E402


def test_embeddings_rotate_and_are_of_length_1() -> None:
    labels = torch.arange(drift.CLASSES)

    def rows(angle: float, at: float) -> torch.Tensor:
        kind = Drift("", angle / drift.TURNOVERS, (0.0, 0.0), (0.0, 0.0))
        return Encoder(kind, torch.Generator().manual_seed(0))(labels, at)

    still, turned, opposite = rows(0.0, 0.0), rows(0.5, 1.0), rows(torch.pi, 1.0)
    assert torch.allclose(turned.norm(dim=1), torch.ones(len(labels)))
    assert torch.allclose((still * turned).sum(dim=1), torch.full((len(labels),), 0.5).cos(), atol=1e-5)
    assert torch.allclose(opposite, -still, atol=1e-5)
    assert torch.allclose(still @ still.T, turned @ turned.T, atol=1e-5)  # rotations keep neighbours


def test_noise_and_nuisance_go_from_first_to_last() -> None:
    labels = torch.zeros(400, dtype=torch.int64)

    def spread(at: float) -> float:
        kind = Drift("", 0.0, (9.0, 0.0), (0.5, 0.5))
        return float(Encoder(kind, torch.Generator().manual_seed(0))(labels, at).std(dim=0).mean())

    assert spread(0.0) > spread(0.9) > spread(1.0)


def test_refitting_follows_what_rotates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift, "TURNOVERS", 3)
    row = drift.study(Drift("rotates", 0.4), 0)
    assert list(row.pmr) == [PLAIN, *INTERVALS, ANEW]
    assert row.pmr["each step"] > row.pmr["1"] > row.pmr[NEVER] + 0.05
    assert row.pmr["4"] == row.pmr[NEVER]  # no refit within three turnovers
    assert row.refit_ms > 0 and set(row.agreement) == {NEVER, "1"}


def test_the_page_is_written(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    row = Row({PLAIN: 0.25, NEVER: 0.5}, {NEVER: 0.1, "1": 0.2}, 7.0)
    monkeypatch.setattr(drift, "study", lambda *_: row)
    (tmp_path / "page.md").write_text(f"before\n{BEGIN}\n{END}\nafter\n")
    assert cli.main(["drift", "--seeds", "0", "1", "--page", str(tmp_path / "page.md")]) == 0
    text = (tmp_path / "page.md").read_text()
    assert text.startswith("before\n") and "mean of 2 seeds" in text and "A refit took 7 ms" in text
    cells = [cell.strip() for cell in next(line for line in text.splitlines() if "| none" in line).split("|")]
    assert cells[1:5] == ["none", "0.250", "0.500", "0.100 / 0.200"]
