"""From a training to its use: artifacts, predictions, indexes; in the trainer's absence, and with everything that lies."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import train_sets  # noqa: F401  skips without the trainer's packages
from small_artifact import Means, small

from cpr_kernels.__main__ import main
from cpr_kernels.deploy import ClipIndex, Model, artifact
from cpr_kernels.deploy import clip_index as index_room
from cpr_kernels.deploy.model import ClipBatch
from cpr_kernels.reading.seals import sealed
from cpr_kernels.train import TrainError
from cpr_kernels.train.batches.dataset import ClipDataset
from cpr_kernels.train.data.decoding import decode_rgb, encode_jpeg
from cpr_kernels.train.encoders.weights import load_encoder
from cpr_kernels.train.evaluate.classifier import load_classifier
from cpr_kernels.train.evaluate.finetune import Finetune, finetune
from cpr_kernels.train.evaluate.video_scores import video_scores
from cpr_kernels.train.export import Export, export, onnx_of
from cpr_kernels.train.pretrain.run_folder import encoder_files
from cpr_kernels.train.views import KNOWN
from cpr_kernels.video import UnreadableVideo, centre_square, timed_frames

pytest_plugins = ["train_fixtures"]


@pytest.fixture(scope="module")
def run(s3d_run: Path) -> Path:
    return s3d_run


@pytest.fixture(scope="module")
def tuned(data: Path, run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tuned") / "classifier"
    settings = {"epochs": 1, "batch": 12, "frames": 8, "crop": 32, "clips": 3, "dropout": 0.0, "workers": 0}
    finetune(Finetune(data=data, out=out, run=run, ten_crop=False, **settings))  # type: ignore[arg-type]
    return out


@pytest.fixture(scope="module")
def classifier(tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(Export(tuned, tmp_path_factory.mktemp("artifacts") / "classifier.cpr", clips=3, center=8))


@pytest.fixture(scope="module")
def encoder(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("artifacts") / "encoder.cpr"
    assert main(["export", str(run), "--out", str(out), "--clips", "2", "--center", "0"]) == 0
    return out


@pytest.fixture(scope="module")
def namer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small(tmp_path_factory.mktemp("small") / "namer.cpr", 7)


@pytest.fixture(scope="module")
def seer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small(tmp_path_factory.mktemp("small") / "seer.cpr", 0)


@pytest.fixture
def clips(clip_folder: Path) -> list[Path]:
    return sorted(clip_folder.rglob("*.mp4"))


def test_the_program_is_the_model_that_was_trained(tuned: Path, classifier: Path, data: Path) -> None:
    trained = load_classifier(tuned / "classifier.safetensors")
    dataset = ClipDataset(data, 8, 32, views=("rgb",), split="test", cache_mb=0)
    model, trusted = Model(classifier), Model(classifier, trust=True)
    assert model.classes == trained.classes and model.manifest.described
    wanted = video_scores(trained, dataset, 3, ten=False)
    for position in (0, 5):
        frames = torch.from_numpy(dataset.test_crops(position, 3, "rgb", ten=False)).flatten(0, 1)
        batch = ClipBatch({"rgb": frames}, [(0.0, 1.0)] * 3)
        embeddings, probabilities = model(batch)
        assert torch.allclose(probabilities.mean(0), wanted[position], atol=1e-6)
        assert torch.allclose(embeddings.norm(dim=1), torch.ones(3))
        for rebuilt, exported in zip((embeddings, probabilities), trusted(batch)):
            assert torch.allclose(rebuilt, exported, atol=1e-6)
    with torch.no_grad():
        for count in (1, 5):
            assert trusted._module(frames[:1].repeat(count, 1, 1, 1, 1))[1].shape == (
                count,
                len(model.classes),
            )


def test_a_video_gives_what_its_prepared_frames_gave(
    tuned: Path, classifier: Path, data: Path, clip_folder: Path
) -> None:
    trained = load_classifier(tuned / "classifier.safetensors")
    dataset = ClipDataset(data, 8, 32, views=("rgb",), split="test", cache_mb=0)
    wanted = video_scores(trained, dataset, 3, ten=False)
    model, quality = Model(classifier), dataset.manifest.settings.jpeg_quality
    for position in range(0, len(dataset), 6):
        video = dataset.manifest.videos[dataset.videos[position]]
        [clips] = model.read(clip_folder / video.id, 3)
        assert len(clips.times) == 3 and clips.times[0][0] == 0.0 and clips.times[0][1] > clips.times[0][0]
        raw = model(clips)[1]
        assert raw is not None and torch.equal(
            model.video(clip_folder / video.id).probabilities, raw.mean(dim=0)
        )
        assert (raw.mean(dim=0) - wanted[position]).abs().max() < 0.1  # JPEG's share of the pixels
        clips.records["rgb"] = as_stored(clips.records["rgb"], quality)
        stored = model(clips)[1]
        assert stored is not None and torch.allclose(stored.mean(dim=0), wanted[position], atol=1e-5)


def as_stored(clips: torch.Tensor, quality: int) -> torch.Tensor:
    """Frames [M, T, H, W, 3] after the JPEG in which `prepare` stores them."""
    frames = [decode_rgb(encode_jpeg(frame[..., ::-1], quality)) for frame in clips.flatten(0, 1).numpy()]
    return torch.from_numpy(np.stack(frames)).reshape(clips.shape)


def test_two_views_and_their_flow(run: Path, encoder: Path, clips: list[Path]) -> None:
    model = Model(encoder)
    assert [view.name for view in model.views] == ["rgb", "flow"] and model.classes == []
    seen = model.video(clips[0])
    assert seen.probabilities is None and seen.embeddings.shape == (2, model.embedding)
    rgb = load_encoder(encoder_files(run)[-1][1]["rgb"]).eval()
    [parts] = model.read(clips[0], 2)
    with torch.no_grad():
        alone = torch.nn.functional.normalize(rgb.features(KNOWN["rgb"].plain(parts.records["rgb"])), dim=1)
    half = seen.embeddings[:, : alone.shape[1]] * 2**0.5
    assert torch.allclose(half, alone, atol=1e-5)
    assert torch.allclose(seen.embeddings.norm(dim=1), torch.ones(2), atol=1e-5)


def test_long_videos_are_read_in_parts(seer: Path, clips: list[Path]) -> None:
    model = Model(seer)
    every = [second for _, second in timed_frames(clips[0], 32)]
    model.clip = replace(model.clip, limit=10)  # 14 frames: a part of 10, and 4 that hold no clip
    seen = model.video(clips[0])
    assert seen.times == [(every[0], every[8]), (every[1], every[9])]
    model.clip = replace(model.clip, limit=8)
    with pytest.raises(UnreadableVideo, match="too short: 14 frames, at least 9 are needed"):
        model.video(clips[0])


WITHOUT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"cv2", "lmdb", "torchmetrics", "matplotlib", "jinja2"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
from cpr_kernels.__main__ import main
status = main(sys.argv[1:])
assert not [name for name in sys.modules if name.startswith("cpr_kernels.train")]
sys.exit(status)
"""


def test_it_predicts_without_the_trainer_and_its_packages(classifier: Path, clips: list[Path]) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", WITHOUT, "predict", classifier, clips[0], "--format", "jsonl"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert told["path"] == str(clips[0]) and len(told["classes"]) == 5
    with zipfile.ZipFile(classifier) as archive:  # and torch alone runs the program
        program = torch.export.load(io.BytesIO(archive.read(artifact.PROGRAM))).module()
    assert len(program(torch.zeros(2, 8, 32, 32, 3, dtype=torch.uint8))) == 2


def test_onnx_gives_the_same_numbers() -> None:
    onnxruntime = pytest.importorskip(
        "onnxruntime", reason="runs the exported model.onnx: pip install onnxruntime"
    )
    pytest.importorskip("onnxscript", reason="writes model.onnx: pip install onnx onnxscript")
    model = Means(3)
    frames = torch.randint(0, 256, (5, 8, 32, 32, 3)).to(torch.uint8)
    session = onnxruntime.InferenceSession(onnx_of(model, [frames[:2]], ["rgb"]))
    found = session.run(["embedding", "probabilities"], {"rgb": frames.numpy()})
    for values, wanted in zip(found, model(frames)):
        assert np.allclose(values, wanted.detach().numpy(), atol=1e-5)


def test_frames_shrink_as_opencv_shrinks_them() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 45, 61, 3)).astype(np.uint8)
    for size, how in ((32, cv2.INTER_AREA), (17, cv2.INTER_AREA), (60, cv2.INTER_LINEAR)):
        wanted = np.stack([cv2.resize(f[:, 8:53], (size, size), interpolation=how) for f in frames])
        assert np.abs(centre_square(frames, size).astype(int) - wanted.astype(int)).max() <= 1


def test_predict_takes_files_folders_and_patterns_and_survives_broken_ones(
    namer: Path, clips: list[Path], tmp_path: Path, capsys: Any
) -> None:
    folder = tmp_path / "some"
    folder.mkdir()
    for clip in clips[:2]:
        shutil.copy(clip, folder)
    (folder / "notes.txt").write_text("no video")
    (folder / "broken.mp4").write_bytes(clips[0].read_bytes()[:300])
    words = [str(folder), str(folder / "*.mp4"), str(tmp_path / "gone.mp4")]
    out = tmp_path / "out" / "classes.csv"
    assert main(["predict", str(namer), *words, "--format", "csv", "--out", str(out), "--topk", "2"]) == 1
    told = capsys.readouterr()
    assert told.out == "" and len(told.err.splitlines()) == 3
    assert f"{folder}: passed over: text 1" in told.err
    assert "broken.mp4: not a video" in told.err and "gone.mp4: missing file" in told.err
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert [row["rank"] for row in rows] == ["1", "2", "1", "2"]
    assert {Path(row["path"]).name for row in rows} == {clip.name for clip in clips[:2]}
    assert main(["predict", str(namer), str(clips[0])]) == 0
    text = capsys.readouterr().out.splitlines()
    assert text[0] == str(clips[0]) and len(text) == 6 and " %  " in text[1]


def test_an_index_grows_and_finds(seer: Path, clips: list[Path], tmp_path: Path, capsys: Any) -> None:
    pytest.importorskip("faiss", reason="indexes need faiss: pip install 'cpr_kernels[deploy]'")
    known, copy = tmp_path / "known", tmp_path / "copy.mp4"
    shutil.copy(clips[3], copy)
    index = ["index", str(seer), "--out", str(known)]
    assert main([*index, *map(str, clips[:3]), "--save", "2"]) == 0
    assert "3 videos added, 0 were there unchanged" in capsys.readouterr().out
    assert main([*index, *map(str, clips[:5])]) == 0
    assert "2 videos added, 3 were there unchanged, 0 could not be read; 10 clips" in capsys.readouterr().out
    assert sorted(path.suffix for path in known.iterdir()) == ["", ".faiss", ".json", ".jsonl"]
    assert main(["search", str(seer), str(known), str(copy), "--format", "jsonl", "--topk", "3"]) == 0
    [told] = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert Path(told["near"][0]["known"]).name == clips[3].name
    assert told["near"][0]["score"] > 0.999 and len({near["known"] for near in told["near"]}) == 3
    assert main(["search", str(seer), str(known), str(clips[3])]) == 0
    assert str(clips[3].resolve()) not in "".join(capsys.readouterr().out.splitlines()[1:])
    assert main(["predict", str(seer), str(copy), "--index", str(known)]) == 0
    assert clips[3].name in capsys.readouterr().out.splitlines()[1]
    changed = tmp_path / "changed.mp4"
    shutil.copy(clips[0], changed)
    assert main([*index, str(changed)]) == 0
    shutil.copy(clips[1], changed)
    assert main([*index, str(changed)]) == 0  # replaced, not added
    assert "12 clips" in capsys.readouterr().out.splitlines()[-1]
    changed.unlink()
    lost = [known / ".clips.9.jsonl.77.part", known / "vectors.9.faiss"]  # of a writer that was killed
    for path in lost:
        path.write_bytes(b"half")
    assert main([*index, str(clips[0]), "--prune"]) == 0
    printed = capsys.readouterr()
    assert f"{changed.resolve()}: gone, dropped from the index" in printed.err.splitlines()
    assert printed.out.splitlines()[0].endswith("; 10 clips")
    assert not any(path.exists() for path in lost)
    _refused_indexes(known, seer, str(copy), capsys)


def test_a_kill_while_an_index_is_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("faiss", reason="indexes need faiss: pip install 'cpr_kernels[deploy]'")
    clip = index_room.Clip("a.mp4", 0.0, 1.0, 10, 20)
    index_room.extend(tmp_path, "m", [clip], torch.eye(3)[:1])
    whole, calls = index_room.replacing, []

    def killed(paths: Any) -> Any:
        calls.append(paths)
        if len(calls) == 2:  # the new files are there, the manifest is not
            raise KeyboardInterrupt
        return whole(paths)

    with monkeypatch.context() as patch:
        patch.setattr(index_room, "replacing", killed)
        with pytest.raises(KeyboardInterrupt):
            index_room.extend(tmp_path, "m", [replace(clip, path="b.mp4")], torch.eye(3)[1:2])
    assert ClipIndex(tmp_path, "m").clips == [clip]
    assert index_room.extend(tmp_path, "m", [replace(clip, path="b.mp4")], torch.eye(3)[1:2]) == 2
    found = ClipIndex(tmp_path).search(torch.eye(3)[1:2], 5)[0]
    assert [(near.clip.path, near.score) for near in found] == [("b.mp4", 1.0), ("a.mp4", 0.0)]
    assert len(list(tmp_path.iterdir())) == 4  # the lock, the manifest, one generation
    with pytest.raises(ValueError, match="of another model"):
        index_room.extend(tmp_path, "other", [clip], torch.eye(3)[:1])


def _refused_indexes(known: Path, seer: Path, video: str, capsys: Any) -> None:
    manifest = json.loads((known / "manifest.json").read_text())
    del manifest["sha256"]
    vectors = next(known.glob("vectors.*"))

    def sentence(**changes: Any) -> str:
        (known / "manifest.json").write_text(json.dumps(sealed({**manifest, **changes})))
        assert main(["search", str(seer), str(known), video]) == 2
        return capsys.readouterr().err

    assert "of another model" in sentence(model="f" * 64)
    assert "has version 9" in sentence(version=9)
    assert "its manifest says 99" in sentence(clips=99)
    body = vectors.read_bytes()
    vectors.write_bytes(body[:-1] + b"x")
    assert "is not the file that the manifest names" in sentence()
    vectors.unlink()
    assert "is missing, which the manifest names" in sentence()


def rewritten(source: Path, out: Path, **changes: Any) -> Path:
    """An artifact whose manifest says something else, its hash right."""
    with zipfile.ZipFile(source) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    manifest = {**json.loads(members[artifact.MANIFEST]), **changes}
    manifest = sealed({name: value for name, value in manifest.items() if name != "sha256"})
    with zipfile.ZipFile(out, "w") as archive:
        for name, body in {**members, artifact.MANIFEST: json.dumps(manifest).encode()}.items():
            archive.writestr(name, body)
    return out


def test_artifacts_that_lie_are_refused_in_one_line(
    namer: Path, seer: Path, clips: list[Path], tmp_path: Path, capsys: Any
) -> None:
    def sentence(path: Path) -> str:
        assert main(["predict", str(path), str(clips[0])]) == 2
        told = capsys.readouterr()
        assert told.out == "" and len(told.err.splitlines()) == 1
        return told.err

    lie = tmp_path / "lie.cpr"
    with zipfile.ZipFile(namer) as archive:
        manifest = json.loads(archive.read(artifact.MANIFEST))
    assert "does not exist; make one with `cpr export`" in sentence(tmp_path / "none.cpr")
    assert "has version 2, this cpr_kernels reads version 1" in sentence(rewritten(namer, lie, version=2))
    assert "not written by `cpr export`" in sentence(rewritten(namer, lie, format="other"))
    assert "promises 9 numbers and 7 classes, its model gives 8 and 7" in sentence(
        rewritten(namer, lie, embedding=9)
    )
    wrong = {key: value for key, value in manifest["clip"].items() if key != "size"}
    assert "Object missing required field `size` - at `$.clip`" in sentence(rewritten(namer, lie, clip=wrong))
    files = {**manifest["files"], artifact.WEIGHTS: {"bytes": 3, "sha256": "0" * 64}}
    assert "is not the one that the manifest describes" in sentence(rewritten(namer, lie, files=files))
    sound = [{"name": "audio", "record": "audio", "architecture": "resnet18"}]
    assert "is fed by audio" in sentence(rewritten(namer, lie, views=sound))
    lie.write_bytes(namer.read_bytes()[:-500])
    assert "cut short or no artifact" in sentence(lie)
    assert "is an encoder and knows no classes; give --index" in sentence(seer)


def test_export_refuses_what_it_cannot_do(run: Path, namer: Path, tmp_path: Path) -> None:
    for settings, sentence in (
        (Export(tmp_path / "none"), "is not a folder of"),
        (Export(tmp_path), "holds neither a classifier"),
        (Export(run, tmp_path / "x.cpr", views=("sound",)), "has no view 'sound'; it has rgb, flow"),
        (Export(run, tmp_path / "x.cpr", clips=0), "clips: must be at least 1"),
    ):
        with pytest.raises(TrainError, match=sentence):
            export(settings)
    assert not (tmp_path / "x.cpr").exists()


def test_the_command_says_where_it_went_and_replaces_only_when_told(
    run: Path, encoder: Path, capsys: Any
) -> None:
    assert main(["export", str(run), "--out", str(encoder)]) == 2
    assert "is there already; add --force" in capsys.readouterr().err
    assert main(["export", "--help"]) == 0
    assert "works without the trainer" in " ".join(capsys.readouterr().out.split())


def test_times_are_those_of_the_frames(clips: list[Path]) -> None:
    times = [second for _, second in timed_frames(clips[0], 32)]
    assert times[0] == 0.0 and np.all(np.diff(times) > 0)
    assert [second for _, second in timed_frames(clips[0], 32, stride=2)] == times[::2]
