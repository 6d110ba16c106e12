"""Evaluation and the page that shows it, and the demo from end to end."""

from __future__ import annotations

import base64
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from train_sets import lively, tiny

from cpr_kernels.__main__ import COMMANDS as TABLE
from cpr_kernels.cli import train as commands
from cpr_kernels.train import TrainError, demo
from cpr_kernels.train.batches.dataset import ClipDataset
from cpr_kernels.train.data.manifest import Manifest
from cpr_kernels.train.data.synthetic import SyntheticSettings
from cpr_kernels.train.evaluate.features import Protocol, encode
from cpr_kernels.train.evaluate.paired_gain import paired_gains
from cpr_kernels.train.evaluate.probe import probe
from cpr_kernels.train.evaluate.retrieval import evaluate_run, retrieval
from cpr_kernels.train.pages.report import write_report
from cpr_kernels.train.pages.report.verdict import signed
from cpr_kernels.train.pretrain.loop import pretrain
from cpr_kernels.train.views.pictures import flow_picture

COMMANDS = {
    name: getattr(commands, command.function) for name, command in TABLE.items() if command.module == "train"
}

pytest_plugins = ["train_fixtures"]


@pytest.fixture(scope="module")
def run(cascade_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(cascade_run, tmp_path_factory.mktemp("runs") / "cascade"))
    evaluate_run(folder, clips=2)
    return folder


def pictures(page: str) -> list[bytes]:
    return [base64.b64decode(body) for body in re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)]


def test_evaluation_is_the_same_every_time(data: Path) -> None:
    torch.manual_seed(0)
    encoders = {view: lively() for view in ("rgb", "flow")}
    protocol = Protocol(frames=8, crop=32, clips=2)
    torch.manual_seed(1)
    first = retrieval(data, encoders, protocol)
    torch.manual_seed(2)
    assert retrieval(data, encoders, protocol) == first
    assert set(first) == {"rgb", "flow", "both"} and list(first["rgb"]) == [1, 5, 10, 20]
    assert all(
        a <= b for shares in first.values() for a, b in zip(list(shares.values()), list(shares.values())[1:])
    )
    assert all(encoder.training for encoder in encoders.values())


def test_features_do_not_depend_on_their_batch(data: Path) -> None:
    encoders = {"rgb": lively()}
    dataset = ClipDataset(data, 8, 32, split="test", cache_mb=0)
    whole, parts = (
        encode(dataset, encoders, Protocol(8, 32, 2), torch.device("cpu"), batch=n)["rgb"] for n in (18, 4)
    )
    assert whole.shape == (18, encoders["rgb"].feature_size)
    assert torch.allclose(whole, parts, rtol=1e-4, atol=1e-6 * whole.max().item())
    assert (whole.std(dim=0) > 0.1 * whole.abs().mean(dim=0)).any()  # videos differ, or nothing was tested


def test_features_are_kept_by_the_hash_of_their_encoder(run: Path, tmp_path: Path) -> None:
    first = json.loads((run / "eval.json").read_text())["phases"]
    kept = {path: path.stat().st_mtime_ns for path in (run / "features").iterdir()}
    assert len(kept) == 4  # RGB and flow learn together, then one after the other
    evaluate_run(run, clips=2, last=True)
    assert {path: path.stat().st_mtime_ns for path in (run / "features").iterdir()} == kept
    assert json.loads((run / "eval.json").read_text())["phases"] == first[-1:]
    other = tmp_path / "copy"
    shutil.copytree(run, other)
    last = sorted((other / "encoders").glob("*.rgb.safetensors"))
    shutil.copy(last[0], last[-1])  # other weights under the old name
    evaluate_run(other, clips=2, last=True)
    assert (
        len(list((other / "features").iterdir())) == 4
    )  # the first phase's features serve: the same weights
    changed = json.loads((other / "eval.json").read_text())["phases"][0]
    assert changed["recall"]["rgb"] == first[0]["recall"]["rgb"]
    assert changed["probe"]["rgb"] == first[0]["probe"]["rgb"]
    evaluate_run(run, clips=2)


def test_transfer_is_measured_beside_the_run(run: Path, data: Path, tmp_path: Path) -> None:
    before = (run / "eval.json").read_text()
    elsewhere = Path(shutil.copytree(data, tmp_path / "elsewhere"))
    manifest = Manifest.load(elsewhere)  # another data set, since made with other settings
    replace(manifest, settings=replace(manifest.settings, jpeg_quality=94)).save(elsewhere)
    evaluate_run(run, clips=2, data=tmp_path / "elsewhere", last=True)
    assert (run / "eval.json").read_text() == before
    moved = json.loads((run / "eval-elsewhere.json").read_text())["phases"][-1]
    assert moved["recall"] == json.loads(before)["phases"][-1]["recall"]  # the same videos


def test_probe_finds_the_only_minimum() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = 3 * torch.randn(4, 8, generator=generator)
    labels = torch.arange(4).repeat(20)
    rows = centres[labels] + torch.randn(80, 8, generator=generator)
    assert probe(rows, labels, rows, labels) == 1.0
    moved = probe(
        100 * rows + 7, labels * 5, 100 * rows + 7, labels * 5
    )  # scale, shift and names do not matter
    assert moved == 1.0
    order = torch.randperm(80, generator=generator)
    test = centres[labels] + 3 * torch.randn(80, 8, generator=generator)
    assert probe(rows, labels, test, labels) == probe(rows[order], labels[order], test, labels) < 1
    unknown = torch.where(labels == 0, 9, labels)  # a class that was never trained is always wrong
    assert probe(rows, labels, rows, unknown) == 0.75
    with pytest.raises(TrainError, match="got 1 classes and 80 test videos"):
        probe(rows[:20], torch.zeros(20, dtype=torch.long), rows, labels)


def test_report_is_one_page_with_its_pictures(run: Path, tmp_path: Path) -> None:
    page = write_report([run], tmp_path / "report.html").read_text()
    assert "http" not in re.sub(r"http://www\.w3\.org/\S+|http-equiv", "", page)
    thumbnails = pictures(page)
    assert len(thumbnails) >= 2 * 6 * 3
    assert all(cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR).std() > 1 for body in thumbnails)
    plots = re.findall(r"data:image/svg\+xml;base64,([^\"]+)", page)
    drawn = [base64.b64decode(plot).decode() for plot in plots]
    labels = ("PMR, %", "agreement, %", "median CMR, %", "loss, mean of the epoch", "learning rate")
    assert len(drawn) == 5 and all(label in plot for label, plot in zip(labels, drawn))
    assert [">chance<" in plot for plot in drawn] == [True, False, False, False, False]
    assert "Agreement: share of mined pairs" in page and "No epoch was measured" not in page
    assert page.count('<div class="dots"') == 2  # CMR of each cycle by class
    mined = page[: page.index('<h2 id="views">')]
    assert mined.count('class="clip right"') + mined.count('class="clip wrong"') == 2 * 6 * 3 * 2
    for words in (
        "flow alone",
        "RGB alone",
        "cascade, 3 stages",
        "R@20",
        "probe",
        "cycle1-flow",
        "Least: ",
        "torch",
    ):
        assert words in page, words


def test_report_marks_right_and_wrong_by_label(run: Path, data: Path, tmp_path: Path) -> None:
    page = write_report([run], tmp_path / "report.html").read_text()
    manifest = json.loads((data / "manifest.json").read_text())
    last = json.loads((run / "mined.jsonl").read_text().splitlines()[-1])
    label = [manifest["classes"][video["label"]] for video in manifest["videos"]]
    seen: list[str] = []
    right = 0
    for row, query in enumerate(last["videos"]):
        if label[query] not in seen and len(seen) < 6:
            seen.append(label[query])
            right += sum(
                label[pick] == label[query]
                for way in ("mined", "flow", "rgb")
                for pick in last["picks"][way][row]
            )
    whole = page[page.index('<h2 id="mined">') : page.index('<h2 id="views">')]
    gallery = whole[whole.index("<h3>cycle1-flow</h3>") :]
    assert gallery.count('class="clip right"') == right


def test_report_compares_runs_and_escapes_names(run: Path, data: Path, tmp_path: Path) -> None:
    other = pretrain(replace(tiny(data, tmp_path / "plain"), infonce_epochs=1, cycles=0))
    with pytest.raises(TrainError, match=r"has no eval\.json"):
        write_report([run, other], tmp_path / "report.html")
    evaluate_run(other, clips=2)
    page = write_report([run, other], tmp_path / "report.html", title="<script>a & b").read_text()
    assert "plain, infonce" in page and "cascade, cycle1-rgb" in page and "2 runs side by side" in page
    assert "<script>" not in page and "&lt;script&gt;a &amp; b" in page
    page = write_report([run], tmp_path / "report.html", baseline=other).read_text()
    assert " % of cascade, 3 stages</div>" in page  # the method of its config; it has no cycles
    protocol = Protocol(**json.loads((run / "eval.json").read_text())["protocol"])
    recall = [json.loads((one / "eval.json").read_text())["phases"][-1]["recall"] for one in (run, other)]
    gains = paired_gains(run, other, protocol)
    assert [gain.view for gain in gains] == ["rgb", "flow", "both"]
    for gain in gains:
        assert gain.run == pytest.approx(recall[0][gain.view]["1"])
        assert gain.baseline == pytest.approx(recall[1][gain.view]["1"])
        assert gain.low <= gain.difference <= gain.high
        assert f"{signed(gain.difference)} <small>points" in page
    assert {(one.low, one.high) for one in paired_gains(run, run, protocol)} == {(0.0, 0.0)}
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "views": ["rgb"]}))
    with pytest.raises(TrainError, match="baseline: must have the run's views rgb, flow, got rgb"):
        paired_gains(run, other, protocol)


def test_flow_picture_shows_direction() -> None:
    flow = np.full((4, 20, 30, 2), 127, np.uint8)
    flow[2, 5:10, 5:10] = (227, 127)
    picture = flow_picture(flow)
    assert picture[7, 7, 0] > 200 and picture[7, 7, 1:].max() < 60  # right is red
    assert picture[15, 20].min() > 240  # rest is white


def test_demo_from_videos_to_report_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        demo, "SyntheticSettings", lambda seed: SyntheticSettings(4, 1, 2, frames=12, size=40, seed=seed)
    )
    monkeypatch.setattr(demo, "FRAMES", replace(demo.FRAMES, size=32))
    out = ["--out", str(tmp_path / "demo"), "--infonce-epochs", "1", "--cycle-epochs", "1"]
    assert COMMANDS["demo"](out) == 0
    page = (tmp_path / "demo" / "report.html").read_text()
    assert "cycle1-rgb" in page and len(pictures(page)) > 40
    assert "of InfoNCE of the same length</div>" in page
    checkpoint = (tmp_path / "demo" / "run" / "checkpoint.pt").stat().st_mtime_ns
    monkeypatch.setattr(  # a later version draws more: what is there stays as it is
        demo, "SyntheticSettings", lambda seed: SyntheticSettings(5, 1, 2, frames=12, size=40, seed=seed)
    )
    assert COMMANDS["demo"](out) == 0
    assert (tmp_path / "demo" / "run" / "checkpoint.pt").stat().st_mtime_ns == checkpoint


def test_commands_teach_and_complain_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, command in COMMANDS.items():
        with pytest.raises(SystemExit) as left:
            command(["--help"])
        assert left.value.code == 0
        assert f"usage: cpr {name}" in capsys.readouterr().out
    with pytest.raises(TrainError, match="holds no prepared data set; make one with `cpr prepare`"):
        COMMANDS["pretrain"](["--preset", "small", "--data", str(tmp_path), "--out", str(tmp_path / "r")])
    with pytest.raises(
        TrainError,
        match=r"preset: must be one of paper, k400, small, modalities, iic, or a method of .* got 'big'",
    ):
        COMMANDS["pretrain"](["--preset", "big", "--data", str(tmp_path)])
    with pytest.raises(TrainError, match="a run continues with its own settings; drop --queue 3"):
        COMMANDS["pretrain"](["--resume", str(tmp_path), "--queue", "3"])
    with pytest.raises(TrainError, match="holds no run"):
        COMMANDS["evaluate"](["--run", str(tmp_path)])
