"""Fine-tuning: what is tested is what was trained, whole videos count once, and a stop costs nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from train_sets import lively, tiny

from cpr_kernels.networks import new_encoder
from cpr_kernels.train import Interrupted, TrainError
from cpr_kernels.train.batches.dataset import ClipDataset
from cpr_kernels.train.data.manifest import Manifest
from cpr_kernels.train.encoders.weights import load_encoder, read_facts, save_encoder
from cpr_kernels.train.evaluate import finetune
from cpr_kernels.train.evaluate.classifier import Classifier, ClipSettings, load_classifier
from cpr_kernels.train.evaluate.finetune import Finetune, decay
from cpr_kernels.train.evaluate.video_scores import accuracy, fused, video_scores
from cpr_kernels.train.views.augment import Augment
from cpr_kernels.train.views.crops import corners

pytest_plugins = ["train_fixtures"]


@pytest.fixture(scope="module")
def encoder_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("encoders") / "e.safetensors"
    torch.manual_seed(0)
    save_encoder(path, lively(), "rgb", phase="infonce")
    return path


def small(data: Path, out: Path, encoder: Path, **changes: Any) -> Finetune:
    settings: dict[str, Any] = {
        "epochs": 2, "batch": 9, "frames": 8, "crop": 32, "clips": 2, "dropout": 0.5, "workers": 0,
        "augment": Augment(min_area=0.5), **changes,
    }  # fmt: skip
    return Finetune(data, out, encoder=encoder, **settings)


@pytest.fixture(scope="module")
def straight(data: Path, encoder_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finetuned") / "rgb"
    finetune.finetune(small(data, out, encoder_file))
    return out


def test_folder_holds_a_classifier_and_its_test(straight: Path, data: Path) -> None:
    classifier = load_classifier(straight / "classifier.safetensors")
    assert classifier.classes == Manifest.load(data).classes and classifier.clip == ClipSettings("rgb", 8, 32)
    assert not classifier.training
    with np.load(straight / "test.npz") as file:
        kept = {name: file[name] for name in file.files}
    assert kept["centre"].shape == kept["ten_crop"].shape == (18, 9)
    assert np.allclose(kept["centre"].sum(axis=1), 1, atol=1e-5)
    test = ClipDataset(data, 8, 32, views=("rgb",), split="test", cache_mb=0)
    again = video_scores(classifier, test, 2, ten=False)
    assert np.array_equal(again.numpy(), kept["centre"])  # from the file, without any randomness
    result = json.loads((straight / "result.json").read_text())
    assert result["centre"]["top1"] == pytest.approx((kept["centre"].argmax(1) == kept["labels"]).mean())
    steps = [json.loads(line) for line in (straight / "log.jsonl").read_text().splitlines()]
    assert len(steps) == 2 * 6 and [line["epoch"] for line in steps] == [0] * 6 + [1] * 6


def test_stopped_training_ends_with_the_same_weights(
    straight: Path, data: Path, encoder_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, calls = small(data, tmp_path / "r", encoder_file), []

    class StopsAtFourth:
        def __enter__(self) -> StopsAtFourth:
            return self

        def __exit__(self, *_: object) -> None: ...

        def __bool__(self) -> bool:
            calls.append(1)
            return len(calls) > 6

    with monkeypatch.context() as patched:
        patched.setattr(finetune, "stop_flag", StopsAtFourth)
        with pytest.raises(Interrupted, match="the same command resumes"):
            finetune.finetune(settings)
    assert not (tmp_path / "r" / "classifier.safetensors").exists()
    finetune.finetune(settings)
    one, two = (load_classifier(folder / "classifier.safetensors") for folder in (straight, tmp_path / "r"))
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values()))


def test_backbone_learns_at_its_own_rate(data: Path, encoder_file: Path, tmp_path: Path) -> None:
    before = load_encoder(encoder_file).state_dict()
    frozen = small(data, tmp_path / "f", encoder_file, epochs=1, backbone_lr=0.0, ten_crop=False)
    finetune.finetune(frozen)
    after = load_classifier(tmp_path / "f" / "classifier.safetensors").encoder.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)  # batch norm's statistics too
    assert [decay(share) for share in (0, 0.59, 0.6, 0.81)] == pytest.approx([1, 1, 0.1, 0.01])


def test_ten_crops_are_centre_corners_and_mirrors(data: Path) -> None:
    rows, columns = np.mgrid[0:64, 0:96]
    frames = np.repeat(np.stack([rows, columns, rows], -1)[None], 3, axis=0).astype(np.uint8)
    crops = corners(frames, 56)
    assert crops.shape == (5, 3, 56, 56, 3)
    assert np.array_equal(crops[1], frames[:, :56, :56]) and np.array_equal(crops[4], frames[:, 8:, 40:])
    assert np.array_equal(crops[0], frames[:, 4:60, 20:76])
    torch.manual_seed(0)
    classifier = Classifier(lively(), list("abc"), ClipSettings("rgb", 8, 32))
    test = ClipDataset(data, 8, 32, views=("rgb",), split="test", cache_mb=0)
    test.videos = test.videos[:2]
    scores = video_scores(classifier, test, 2, ten=True)
    classifier.eval()
    for position in range(2):
        cut = torch.from_numpy(test.test_crops(position, 2, "rgb", True)).flatten(0, 1)
        with torch.no_grad():
            both = [classifier(test.views["rgb"].plain(cut, mirror)).softmax(1) for mirror in (False, True)]
        assert torch.allclose(scores[position], torch.cat(both).mean(0), atol=1e-6)


def test_fusion_averages_probabilities(straight: Path, tmp_path: Path) -> None:
    scores = torch.tensor([[0.6, 0.4, 0.0], [0.1, 0.2, 0.7], [0.5, 0.3, 0.2], [0.2, 0.5, 0.3]])
    got = accuracy(scores, torch.tensor([0, 2, 1, 1]))
    assert got == pytest.approx({"top1": 0.75, "top5": 1.0, "mean_class": (1 + 1 + 0.5) / 3})
    with np.load(straight / "test.npz") as file:
        kept = {name: file[name] for name in file.files}
    perfect = {**kept, "centre": np.eye(9, dtype=np.float32)[kept["labels"]] * 3}
    (tmp_path / "p").mkdir()
    np.savez(tmp_path / "p" / "test.npz", **perfect)
    assert fused([straight, tmp_path / "p"])["centre"]["top1"] == 1.0
    np.savez(tmp_path / "p" / "test.npz", **{**perfect, "ids": perfect["ids"][::-1]})
    with pytest.raises(TrainError, match="was tested on other videos than"):
        fused([straight, tmp_path / "p"])


def test_bad_requests_are_one_sentence(
    straight: Path, data: Path, encoder_file: Path, tmp_path: Path
) -> None:
    good = small(data, tmp_path / "x", encoder_file)
    cases: list[tuple[Finetune, str]] = [
        (replace(good, encoder=None), "exactly one of --run, --encoder and --scratch, got none"),
        (replace(good, run=tiny_run(data, tmp_path)), "got run and encoder"),
        (replace(good, view="sound"), "no view 'sound'"),
        (replace(good, encoder=tmp_path / "none.safetensors"), "does not exist"),
        (
            replace(good, encoder=straight / "classifier.safetensors"),
            "holds a cpr_kernels classifier, no encoder",
        ),
        (replace(good, encoder=None, run=tmp_path), "holds no run"),
        (replace(good, encoder=None, run=tiny_run(data, tmp_path)), "has no encoder yet"),
        (replace(good, out=straight, lr=0.5), r"made with other settings \(.*lr 0\.001 -> 0\.5"),
        (replace(good, out=tiny_run(data, tmp_path)), "holds a pretraining run"),
        (replace(good, device="tpu"), "device: 'tpu' cannot be used here"),
        (
            replace(good, encoder=of_sound(tmp_path)),
            r"view: the encoder does not take clips of rgb \(Expected .*conv2d",
        ),
        (replace(good, fuse=(tmp_path / "nowhere",)), "fuse: .*nowhere holds no test.npz"),
        (
            replace(good, fuse=(of_others(straight, tmp_path),)),
            "fuse: .*others was tested on other videos than",
        ),
    ]
    for settings, sentence in cases:
        with pytest.raises(TrainError, match=sentence):
            finetune.finetune(settings)
    assert not (tmp_path / "x" / "checkpoint.pt").exists()  # all before anything was trained
    with pytest.raises(TrainError, match="holds a cpr_kernels encoder, no classifier"):
        load_classifier(encoder_file)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(encoder_file.read_bytes()[:100])
    with pytest.raises(TrainError, match="cannot be read: cut short"):
        read_facts(cut)
    of_run = replace(good, run=tiny_run(data, tmp_path), frames=0, crop=0).resolved()
    assert (of_run.frames, of_run.crop) == (8, 32)  # as the run was made
    assert replace(good, frames=0, crop=0).resolved().crop == 128


def of_sound(tmp_path: Path) -> Path:
    """The file of an encoder of spectrograms."""
    path = tmp_path / "audio.safetensors"
    save_encoder(path, new_encoder("resnet18", 0.05, 16), "audio")
    return path


def of_others(straight: Path, tmp_path: Path) -> Path:
    """The folder of a classifier that was tested on other videos."""
    (tmp_path / "others").mkdir()
    with np.load(straight / "test.npz") as file:
        np.savez(tmp_path / "others" / "test.npz", **{**file, "ids": file["ids"][::-1]})
    return tmp_path / "others"


def tiny_run(data: Path, tmp_path: Path) -> Path:
    """A folder that a pretraining run has claimed."""
    from cpr_kernels.train.pretrain.config import to_json

    (tmp_path / "claimed").mkdir(exist_ok=True)
    (tmp_path / "claimed" / "config.json").write_text(to_json(tiny(data, tmp_path / "claimed")))
    return tmp_path / "claimed"
