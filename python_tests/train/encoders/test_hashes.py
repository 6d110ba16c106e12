"""Encoders and checkpoints carry a hash of their content; a turned bit anywhere is refused, an older file is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import train_sets  # noqa: F401  skips without the trainer's packages

from cpr_kernels.networks import new_encoder
from cpr_kernels.train import TrainError
from cpr_kernels.train.encoders.weights import load_encoder, save_encoder, save_tensors
from cpr_kernels.train.evaluate.classifier import CLASSIFIER_KIND, load_classifier
from cpr_kernels.train.runtime.checkpoint import load, save


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    save_encoder(tmp_path / "e.safetensors", new_encoder("r3d", 0.01, 0), "rgb", phase="infonce")
    return tmp_path / "e.safetensors"


def turned(path: Path, at: int) -> None:
    body = bytearray(path.read_bytes())
    body[at] ^= 1
    path.write_bytes(body)


def test_a_turned_bit_of_a_weight_or_of_a_fact_is_refused(encoder: Path) -> None:
    whole = encoder.read_bytes()
    width = whole.index(b'"width":"0.01"') + len('"width":"0.0')
    for at in (len(whole) - 1, len(whole) // 2, width):
        turned(encoder, at)
        with pytest.raises(
            TrainError, match=r"e\.safetensors is damaged: its content is not what its hash says"
        ):
            load_encoder(encoder)
        encoder.write_bytes(whole)
    assert load_encoder(encoder).width == 0.01


def test_an_encoder_without_a_hash_is_read_with_a_note(encoder: Path, capsys: Any) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    with safe_open(encoder, framework="pt") as file:
        facts = {name: value for name, value in file.metadata().items() if name != "sha256"}
    save_file(load_file(encoder), encoder, facts)
    assert load_encoder(encoder).width == 0.01
    assert "e.safetensors holds no content hash" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        ({"width": "0.01"}, r"Expected `float`, got `str` - at `\$.width`"),
        ({"width": 1e9}, r"width: must be a number in \(0, 64\]"),
        ({"embedding": 1.5}, r"Expected `int`, got `float` - at `\$.embedding`"),
        ({"architecture": ["r3d"]}, r"at `\$.architecture`"),
        ({"architecture": "mlp"}, "backbone: must be one of s3d"),
    ],
)  # fmt: skip
def test_the_facts_of_a_header_are_checked(facts: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    path, made = tmp_path / "e.safetensors", new_encoder("r3d", 0.01, 0)
    whole = {
        "kind": "cpr_kernels encoder",
        "view": "rgb",
        "architecture": "r3d",
        "width": 0.01,
        "embedding": 8,
    }
    save_tensors(path, made, {**whole, **facts})
    with pytest.raises(TrainError, match=sentence):
        load_encoder(path)
    save_tensors(path, made, {**whole, "kind": CLASSIFIER_KIND, "frames": 8, "crop": 32, "classes": "ab"})
    with pytest.raises(TrainError, match=r"Expected `array`, got `str` - at `\$.classes`"):
        load_classifier(path)


def test_every_turned_bit_of_a_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    state = {"step": 3, "weight": torch.arange(64.0)}
    save(path, state)
    whole = path.read_bytes()
    for at in range(0, len(whole), 37):
        turned(path, at)
        with pytest.raises(TrainError, match=r"checkpoint: .*c\.pt"):
            load(path)
        path.write_bytes(whole)
    assert torch.equal(load(path)["weight"], state["weight"])
    torch.save(state, path)  # as older versions wrote it: its members' checksums are what it has
    assert load(path)["step"] == 3
    place = path.read_bytes().index(b"\0\0\x80?\0\0\0@")  # 1.0, 2.0
    turned(path, place + 2)
    with pytest.raises(TrainError, match=r"cut short or damaged \(the checksum of .*data/0 is another\)"):
        load(path)


def test_a_checkpoint_is_still_one_of_torch(tmp_path: Path) -> None:
    save(tmp_path / "c.pt", {"step": 3})
    assert torch.load(tmp_path / "c.pt", weights_only=True) == {"step": 3}
    assert json.dumps(load(tmp_path / "c.pt")) == '{"step": 3}'
