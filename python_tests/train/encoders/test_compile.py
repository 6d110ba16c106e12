"""`--compile`: the real compiler gives eager's losses and checkpoints that fit either way; where it fails, a sentence."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_view import SmallNet
from train_sets import tiny
from train_steps import one_step, settings

from cpr_kernels.networks import ENCODERS
from cpr_kernels.train import TrainError
from cpr_kernels.train.encoders.weights import load_encoder
from cpr_kernels.train.pretrain.config import Clips, Iic, Mining, TrainConfig
from cpr_kernels.train.pretrain.loop import build, pretrain, restore
from cpr_kernels.train.pretrain.run_folder import encoder_files
from cpr_kernels.train.runtime.checkpoint import load
from cpr_kernels.train.runtime.run_log import read_lines

pytest_plugins = ["train_fixtures"]


class Net(SmallNet):
    """A 3D convolution, batch norm and a linear layer: S3D's 60 layers take the compiler minutes."""

    architecture = "net"

    def __init__(self, width: float = 1.0, embedding: int = 16) -> None:
        super().__init__(width, embedding)
        self[0] = torch.nn.Conv3d(3, 8, 3, stride=2)


@pytest.fixture(autouse=True)
def small_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENCODERS, "net", Net)


def config_of(data: Path, out: Path, **changes: Any) -> TrainConfig:
    """InfoNCE of both views, then each with positives mined by the other; small steps of SGD, which pass rounding on
    as it is.
    """
    given = settings(data, out, ("rgb", "flow"), "coclr", **changes)
    slow = replace(given.optim, lr=0.002)
    return replace(given, backbone="net", infonce_epochs=1, cycles=1, cycle_epochs=1, optim=slow)


def losses(run: Path) -> list[float]:
    lines = [line for line in read_lines(run / "log.jsonl") if line["kind"] == "step"]
    return [value for line in lines for name, value in line.items() if name.startswith("loss")]


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++ on CPUs")
def test_the_real_compiler_gives_eager_s_losses_and_checkpoints(data: Path, tmp_path: Path) -> None:
    torch.compiler.reset()
    plain, compiled = (config_of(data, tmp_path / str(on), compile=on) for on in (False, True))
    pretrain(plain)
    pretrain(compiled)
    assert len(losses(plain.out)) == len(losses(compiled.out)) == 4 * 2 + 4 + 4
    # the kernels' order of summing differs: 1e-7 of an activation, times 14 in a logit, over 16 steps
    assert losses(compiled.out) == pytest.approx(losses(plain.out), abs=3e-2)
    assert losses(compiled.out) != losses(plain.out)  # else nothing was compiled
    print("largest difference", max(abs(a - b) for a, b in zip(losses(plain.out), losses(compiled.out))))
    a, b = (load(config.out / "checkpoint.pt") for config in (plain, compiled))
    assert a["model"].keys() == b["model"].keys()
    assert restore(build(replace(plain, out=tmp_path / "x")), b) == 16  # an eager run resumes a compiled one
    assert restore(build(replace(compiled, out=tmp_path / "x")), a) == 16
    clips = torch.randn(2, 3, 8, 32, 32, generator=torch.Generator().manual_seed(0))
    one, two = (
        load_encoder(encoder_files(config.out)[-1][1]["rgb"]).eval()(clips) for config in (plain, compiled)
    )
    assert torch.allclose(one, two, atol=1e-2)


def test_encoders_can_be_compiled(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled in place: names stay, so checkpoints fit either way. Eager stands in for the slow compiler."""
    plain = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: plain(self, backend="eager"))
    (one, a), (two, b) = (one_step(tiny(data, tmp_path, compile=compiled)) for compiled in (False, True))
    assert two.state_dict().keys() == one.state_dict().keys()
    assert torch.allclose(a.losses["rgb"], b.losses["rgb"], rtol=1e-5)


@pytest.mark.parametrize("framework", ["moco", "iic"])
def test_a_compiler_that_fails_is_named_in_a_sentence(
    framework: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(graph: Any, inputs: Any) -> None:
        raise RuntimeError("no C++ compiler\nfound")

    plain = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: plain(self, backend=broken))
    config = config_of(data, tmp_path / "run", compile=True)
    if framework == "iic":
        mining = Mining(method="coclr", topk=2, siblings="negative")
        config = replace(
            config, framework="iic", views=("rgb", "residual"), mining=mining, iic=Iic(negatives=8),
            clips=Clips(frames=8, crop=32, batch=12, workers=0),
        )  # fmt: skip
    with pytest.raises(
        TrainError, match=r"compile: torch.compile cannot compile .*no C.. compiler found.*without --compile"
    ):
        pretrain(config)
