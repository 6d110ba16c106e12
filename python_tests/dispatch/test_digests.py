"""Every op answers the tables of cases as it always has."""

from __future__ import annotations

import json

import digests
import pytest
from cases import CASCADE_CASES, LOSS_CASES, CascadeCase, LossCase, name_of

KEPT = json.loads(digests.FILE.read_text())


def test_every_case_is_kept() -> None:
    assert list(KEPT["mining"]) == [case.name for case in CASCADE_CASES]
    assert list(KEPT["losses"]) == [case.name for case in LOSS_CASES]


@pytest.mark.parametrize("case", CASCADE_CASES, ids=name_of)
def test_mining_answers_the_same_bits(case: CascadeCase) -> None:
    assert digests.mined(case) == KEPT["mining"][case.name]


@pytest.mark.parametrize("case", LOSS_CASES, ids=name_of)
def test_losses_and_gradients_stay(case: LossCase) -> None:
    assert digests.losses(case) == pytest.approx(KEPT["losses"][case.name], rel=2e-6, abs=1e-12)
