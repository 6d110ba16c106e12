"""The whole step's parts add up, and a step that mines something else is no measurement."""

from __future__ import annotations

import pytest
from train_sets import DRAFT  # noqa: F401  (skips where the trainer's packages are absent)

from bench.studies import step as whole_step


def test_parts_add_up_beside_the_published_forms(capsys: pytest.CaptureFixture[str]) -> None:
    assert whole_step.main(["--quick", "--steps", "1", "--threads", "1"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    cells = {row[1]: row[2:] for row in ([cell.strip() for cell in line.split("|")] for line in lines[1:])}
    assert list(cells) == [*whole_step.PARTS, *whole_step.GOALS, "the whole step"]
    for column in (1, 3):
        shares = {name: float(row[column].removesuffix(" %")) for name, row in cells.items()}
        assert all(shares[part] > 0 for part in whole_step.PARTS)
        assert sum(shares[part] for part in whole_step.PARTS) == pytest.approx(100, abs=0.05)
        for name, (parts, _) in whole_step.GOALS.items():
            assert shares[name] == pytest.approx(sum(shares[part] for part in parts), abs=0.02)


@pytest.mark.parametrize(
    "form, says", [("published_mining", "mine other entries"), ("published_loss", "other losses")]
)
def test_steps_that_differ_are_refused(form: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = getattr(whole_step, form)

    def wrong(*args: object, **how: object) -> object:
        found = right(*args, **how)
        return ({"mined": found[0]["mined"].flip(1)}, None) if form == "published_mining" else found + 0.01

    monkeypatch.setattr(whole_step, form, wrong)
    with pytest.raises(RuntimeError, match=says):
        whole_step.main(["--quick", "--steps", "1", "--threads", "1"])


def test_a_step_count_that_cannot_work_is_named() -> None:
    with pytest.raises(ValueError, match="--steps: must be at least 1, got 0"):
        whole_step.main(["--steps", "0"])
