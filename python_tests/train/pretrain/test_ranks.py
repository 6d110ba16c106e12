"""Several processes hold one run: same queue, same weights, killed or not; parts of a batch, bfloat16."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import trainer_ranks
from places import ROOT
from train_sets import tiny
from train_steps import assert_same_run, one_step

from cpr_kernels.networks import ENCODERS
from cpr_kernels.train import TrainError
from cpr_kernels.train.pretrain import loop
from cpr_kernels.train.pretrain.config import Mining, Optim, TrainConfig, from_json, to_json
from cpr_kernels.train.pretrain.loop import build, pretrain
from cpr_kernels.train.runtime import ranks
from cpr_kernels.train.runtime.checkpoint import load
from cpr_kernels.train.runtime.run_log import read_lines

pytest_plugins = ["train_fixtures"]

RANKS = 3  # with two, any order of adding gradients gives the same bits
KILLED_AT = 5  # in the middle of the second epoch: the last checkpoint is of step 4


def in_ranks(out: Path, config: TrainConfig, resume: bool = False) -> Path:
    """A run in processes of their own, which keep each rank's state."""
    (out / "wanted.json").write_text(to_json(replace(config, out=out / "run")))
    trainer_ranks.on_ranks(RANKS, out, resume)
    return out


def killed_in_ranks(out: Path, config: TrainConfig) -> Path:
    """The same under torchrun, where rank 1 kills itself at a step: torchrun ends the others."""
    (out / "wanted.json").write_text(to_json(replace(config, out=out / "run")))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(RANKS), "--standalone"]
    ran = subprocess.run(
        [*command, trainer_ranks.__file__, str(out), str(KILLED_AT)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ran.returncode != 0 and "SIGKILL" in ran.stderr, ran.stderr[-3000:]
    return out


@pytest.fixture(scope="module")
def ranks_run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of several processes that was never stopped."""
    out = tmp_path_factory.mktemp("ranks")
    return in_ranks(out, tiny(data, out, optim=Optim(momentum=0.9, accumulate=2)))


def test_ranks_hold_the_same_queue_and_weights(ranks_run: Path) -> None:
    steps = sorted(int(path.stem.split("-")[1]) for path in ranks_run.glob("rank0-*.pt"))
    assert len(steps) == 4  # InfoNCE: two epochs; RGB, flow: an epoch each
    for step in steps:
        first, *others = (load(ranks_run / f"rank{rank}-{step}.pt")["model"] for rank in range(RANKS))
        own = {
            name for name in first if "running" in name or "num_batches" in name
        }  # batch norm sees its rank's
        for other in others:
            differ = [name for name in first if name not in own and not torch.equal(first[name], other[name])]
            assert differ == []
        assert int(first["queue.count"]) == 24
    lines = read_lines(ranks_run / "run" / "log.jsonl")
    epochs = [line for line in lines if line["kind"] == "epoch"]
    assert [line["phase"] for line in epochs] == ["infonce", "infonce", "cycle1-rgb", "cycle1-flow"]
    mined = read_lines(ranks_run / "run" / "mined.jsonl")[-1]
    assert len(mined["videos"]) == 12 == len(set(mined["videos"]))  # all ranks' parts of the batch
    assert load(ranks_run / "run" / "checkpoint.pt")["step"] == steps[-1] + 1


def test_a_killed_rank_s_run_resumes_bit_for_bit(ranks_run: Path, data: Path, tmp_path: Path) -> None:
    config = from_json((ranks_run / "wanted.json").read_text())
    killed = killed_in_ranks(tmp_path, config)
    assert load(killed / "run" / "checkpoint.pt")["step"] < KILLED_AT
    in_ranks(killed, config, resume=True)
    assert_same_run(ranks_run / "run", killed / "run")
    assert len(read_lines(killed / "run" / "log.jsonl")) == 20  # none doubled


def test_keys_are_encoded_in_shuffled_batches(ranks_run: Path) -> None:
    seen = [load(ranks_run / f"seen{rank}.pt")["seen"][:, 0].tolist() for rank in range(RANKS)]
    assert sorted(value for of_rank in seen for value in of_rank) == [
        10 * rank + i for rank in range(RANKS) for i in range(4)
    ]
    assert any(value >= 10 for value in seen[0])


def test_ranks_tune_one_plan(ranks_run: Path) -> None:
    first, *others = (load(ranks_run / f"tuned{rank}.pt") for rank in range(RANKS))
    added = {100 * step + 8 * rank + i for step in (1, 2, 3) for rank in range(RANKS) for i in (0, 1)}
    assert added < set(first["store"]["ids"].tolist())
    for other in others:
        assert other["plan"] == first["plan"]
        assert all(torch.equal(first["store"][name], other["store"][name]) for name in first["store"])
        for view, white in first["whiten"].items():
            assert torch.equal(white["mean"], other["whiten"][view]["mean"])
    assert [(ranks_run / f"plans{rank}").exists() for rank in range(RANKS)] == [True, False, False]


def test_one_process_is_left_alone() -> None:
    assert ranks.world() == 1 and ranks.rank() == 0 and ranks.share_of(7) == 7
    module, rows = torch.nn.Linear(2, 2), torch.rand(3, 2)
    assert ranks.averaged(module) is module and ranks.gathered(rows) is rows
    assert torch.equal(ranks.shuffled(module, rows, 0), module(rows))


def test_a_batch_in_parts_is_the_batch(data: Path, tmp_path: Path) -> None:
    config = tiny(data, tmp_path, mining=Mining(stages=3, topk=2, query="online", frozen_query="online"))
    (whole, one), (parts, several) = (
        one_step(replace(config, optim=replace(config.optim, accumulate=n))) for n in (1, 5)
    )
    assert torch.allclose(one.losses["rgb"], several.losses["rgb"], rtol=1e-5)
    assert one.mined.keys() == several.mined.keys() and one.mined["mined"].shape == (12, 2)
    assert all(torch.equal(one.mined[name], several.mined[name]) for name in one.mined)
    for a, b in zip(whole.online["rgb"].parameters(), parts.online["rgb"].parameters()):
        assert (a.grad - b.grad).norm() <= 1e-3 * a.grad.norm() + 1e-6
    assert torch.allclose(whole.queue.views["flow"], parts.queue.views["flow"], atol=1e-5)
    assert torch.equal(whole.queue.ids, parts.queue.ids)


class Flat(torch.nn.Module):
    """The smallest network: one product, for any CPU."""

    architecture = "flat"

    def __init__(self, width: float, embedding: int) -> None:
        super().__init__()
        self.width, self.embedding, self.feature_size = width, embedding, 3 * 8 * 32 * 32
        self.linear = torch.nn.Linear(self.feature_size, embedding)

    def features(self, clips: torch.Tensor) -> torch.Tensor:
        return clips.flatten(1)

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(self.linear(self.features(clips)), dim=1)


def test_bfloat16_keeps_queue_loss_and_weights_in_float32(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ENCODERS, "flat", Flat)
    monkeypatch.setattr(loop, "device_to_train_on", lambda name, amp: torch.device("cpu"))
    (whole, exact), (model, rough) = (
        one_step(tiny(data, tmp_path, amp=amp, backbone="flat")) for amp in ("off", "bf16")
    )
    assert rough.losses["rgb"].dtype == torch.float32
    assert float(rough.losses["rgb"]) == pytest.approx(float(exact.losses["rgb"]), rel=0.1)
    assert float(rough.losses["rgb"]) != float(exact.losses["rgb"])
    alike = (whole.queue.views["rgb"] * model.queue.views["rgb"]).sum(dim=1)
    assert 0.99 < alike.mean() < 1  # 8 bits of mantissa
    norms = model.queue.views["rgb"].norm(dim=1)
    assert torch.allclose(norms, torch.ones_like(norms), atol=1e-5)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert {p.grad.dtype for p in model.online.parameters() if p.grad is not None} == {torch.float32}


def test_bfloat16_on_a_cpu_without_it_is_refused(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    with pytest.raises(TrainError, match="amp: bf16 on the device cpu needs a CPU with AVX-512 BF16"):
        pretrain(tiny(data, tmp_path / "run", amp="bf16"))
    assert not (tmp_path / "run").exists()


def test_a_gradient_that_is_not_finite_stops_the_run(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(Flat):
        def forward(self, clips: torch.Tensor) -> torch.Tensor:
            flat = super().forward(clips)
            return flat + 0 * (flat - flat.detach()).abs().sqrt()  # 0, with an infinite slope

    monkeypatch.setitem(ENCODERS, "flat", Broken)
    with pytest.raises(TrainError, match="step 0: the loss or its gradient is not finite"):
        pretrain(tiny(data, tmp_path / "run", backbone="flat"))


def test_batches_that_do_not_divide_are_refused(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TrainError, match="7 parts of a batch of 12 hold fewer than 2 videos each"):
        tiny(data, tmp_path, optim=Optim(accumulate=7)).check()
    monkeypatch.setattr(ranks, "world", lambda: 5)
    with pytest.raises(TrainError, match="12 videos do not divide among 5 processes"):
        build(tiny(data, tmp_path))
