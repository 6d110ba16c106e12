"""The CUDA kernels of the loss and of the queue, emulated as those of test_cuda_emulated.py, against the reference."""

from __future__ import annotations

import shutil
import sys
from typing import Any

import pytest
import torch
from cases import LOSS_CASES, LossCase, name_of
from emulation_fixtures import RTX, borders_hold, check_loss

from cpr_kernels.memory import enqueue

pytest_plugins = ["emulation_fixtures"]
pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("g++") is None, reason="the emulation needs g++ on Linux"
)
WIDE_CASES = [
    LossCase("200 features", 9, 70, 200, ids=9),
    LossCase("257 features", 66, 70, 257, ids=9),
    LossCase("wide, large scores", 3, 90, 384, scale=20.0, dtype=torch.bfloat16),
]


@pytest.mark.parametrize("case", WIDE_CASES[:1], ids=name_of)
def test_losses_where_a_block_has_little_memory(
    core: Any, case: LossCase, guarded: list[torch.Tensor]
) -> None:
    core.set_limits(*RTX)
    check_loss(core, case)
    borders_hold(guarded)


@pytest.mark.parametrize("case", [*LOSS_CASES, *WIDE_CASES], ids=name_of)
def test_losses(core: Any, case: LossCase, guarded: list[torch.Tensor]) -> None:
    check_loss(core, case)
    if case.queries:
        borders_hold(guarded)


@pytest.mark.parametrize("batch", [0, 1, 5, 8, 9, 30])
def test_enqueue(core: Any, batch: int) -> None:
    g = torch.Generator().manual_seed(batch)
    for start in (0, 6):
        buffers = [torch.randn(8, 5, generator=g), torch.randn(8, 16, generator=g).half(), torch.arange(8)]
        rows = [
            torch.randn(batch, 5, generator=g),
            torch.randn(batch, 16, generator=g).half(),
            torch.arange(batch) + 50,
        ]
        expected = [b.clone() for b in buffers]
        places = [torch.tensor(start), torch.tensor(min(start, 8))]
        expected_places = [p.clone() for p in places]
        enqueue.reference(expected, *expected_places, rows)
        enqueue.on_stream(buffers, *places, rows, core, 0)
        for made, wanted in zip([*buffers, *places], [*expected, *expected_places]):
            assert torch.equal(made, wanted)
