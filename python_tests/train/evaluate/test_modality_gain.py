"""The gain of each modality: counted and shown from features made to order."""

from __future__ import annotations

import torch
from train_sets import tiny

from cpr_kernels.train.data.manifest import Manifest, Video
from cpr_kernels.train.evaluate import modality_gain, retrieval
from cpr_kernels.train.evaluate.features import SPLITS, Protocol


def test_turns_are_counted_and_examples_turn_right(tmp_path, monkeypatch):
    rows = [("train", 0), ("train", 1), ("test", 0), ("test", 1), ("test", 1), ("train", 2)]
    videos = [Video(f"v{i}", label, i, split, 9 if i < 5 else 3, "") for i, (split, label) in enumerate(rows)]
    monkeypatch.setattr(Manifest, "load", lambda folder: Manifest(None, ["a", "b", "c"], videos, []))
    monkeypatch.setattr(
        modality_gain, "encoder_files", lambda run: [("end", {"rgb": "rgb", "audio": "audio"})]
    )
    x, y, none = [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]
    features = {  # rgb takes every test video for class a; sound agrees at first, and one video has none
        "rgb": {"train": [x, y], "test": [x, x, x]},
        "audio": {"train": [x, y], "test": [[3.0, 4.0], [3.0, 4.0], none]},
    }

    def of_view(path, view, data, protocol, cache, device):
        return {split: torch.tensor(features[view][split]) for split in SPLITS}, {}

    monkeypatch.setattr(retrieval, "cached_features", of_view)
    config = tiny(tmp_path, tmp_path, views=("rgb", "audio"))
    protocol = Protocol(frames=8, crop=32, clips=1, center="none")
    [step] = modality_gain.gain_per_modality(
        tmp_path, config, protocol, lambda video: {"label": str(video)}, 5
    )
    assert (step["title"], step["better"], step["worse"], step["of"]) == ("audio added to RGB", 0, 0, 3)
    features["audio"]["test"] = [[-5.0, 3.0], [-5.0, 3.0], none]
    [step] = modality_gain.gain_per_modality(
        tmp_path, config, protocol, lambda video: {"label": str(video)}, 5
    )
    assert (step["better"], step["worse"], step["of"]) == (1, 1, 3)
    [query] = step["queries"]
    assert query["clip"] == {"label": "3"}
    assert [(way["name"], way["right"]) for way in query["ways"]] == [("RGB", 1), ("RGB and audio", 1)]
    assert [[(pick["label"], pick["right"]) for pick in way["picks"]] for way in query["ways"]] == [
        [("0", False), ("1", True)],
        [("1", True), ("0", False)],
    ]


def test_neighbours_rank_by_sum_and_then_by_row():
    unit = {
        "rgb": {"train": torch.eye(4)[:, :2], "test": torch.tensor([[1.0, 0.0]])},
        "flow": {"train": torch.eye(4)[:, 1:3], "test": torch.tensor([[0.0, 1.0]])},
    }
    assert modality_gain.neighbours(unit, ("rgb",)).tolist() == [[0, 1, 2]]
    assert modality_gain.neighbours(unit, ("rgb", "flow")).tolist() == [[0, 2, 1]]
