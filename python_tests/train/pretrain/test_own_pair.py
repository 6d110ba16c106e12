"""The own pair is left out of the positives as often as `drop_own_positive` says, where a phase has others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from train_sets import tiny
from train_steps import trained

from cpr_kernels.train.pretrain import co_training
from cpr_kernels.train.pretrain.config import Mining

pytest_plugins = ["train_fixtures"]


@pytest.mark.parametrize("method", ["infonce", "cpr", "ubernce"])
def test_own_pairs_are_left_out(
    method: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not of InfoNCE, which has no other positives, be it before the cycles or instead of them."""
    given: list[torch.Tensor | None] = []
    plain = co_training.mil_nce

    def seen(*args: Any, use_own: torch.Tensor | None, **kwargs: Any) -> torch.Tensor:
        given.append(use_own)
        return plain(*args, use_own=use_own, **kwargs)

    monkeypatch.setattr(co_training, "mil_nce", seen)
    mining = Mining(method=method, stages=3, topk=2, drop_own_positive=0.5)
    config = tiny(data, tmp_path / "run", infonce_epochs=1, mining=mining)
    _, steps = trained(config, 9, monkeypatch)
    of_cycle = [own for own in given if own is not None]
    assert given[0] is None and len(given) > len(steps)  # InfoNCE of two views first
    if method == "infonce":
        assert not of_cycle
    else:
        share = torch.cat(of_cycle).float().mean()
        assert len(of_cycle) >= 2 and 0.1 < share < 0.9
