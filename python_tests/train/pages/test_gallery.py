"""Galleries show what a video sounds like: its spectrogram beside its frames, and who has none."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from chromium import evaluate_in_page
from train_sets import tiny
from train_steps import Toy

from cpr_kernels import MultiViewQueue, parse_schedule
from cpr_kernels.networks import ENCODERS
from cpr_kernels.train.data.manifest import Manifest
from cpr_kernels.train.data.store import FrameStore
from cpr_kernels.train.evaluate.retrieval import evaluate_run
from cpr_kernels.train.pages.explorer.packed import unpacked
from cpr_kernels.train.pages.explorer.runs import explore
from cpr_kernels.train.pages.report import write_report
from cpr_kernels.train.pages.thumbnails import extra_pictures
from cpr_kernels.train.pretrain.config import Clips, Mining
from cpr_kernels.train.pretrain.loop import pretrain
from cpr_kernels.train.pretrain.missing_views import ViewMask
from cpr_kernels.train.views import chosen
from cpr_kernels.train.views.pictures import spectrogram_picture

pytest_plugins = ["train_fixtures", "page_fixtures"]
VIEWS = ("rgb", "audio")


@pytest.fixture(scope="module")
def run(sound_data, tmp_path_factory):
    config = tiny(
        sound_data, tmp_path_factory.mktemp("heard") / "run", views=VIEWS, backbone="toy", infonce_epochs=1, queue=8,
        clips=Clips(frames=8, crop=32, batch=4, workers=0, apart=True), mining=Mining(method="coclr", topk=2),
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ENCODERS, "toy", Toy)
        pretrain(config)
        evaluate_run(config.out, clips=1)
    return config.out


@pytest.fixture(scope="module")
def explorer(run, tmp_path_factory):
    return explore([run], tmp_path_factory.mktemp("page") / "explore.html")


def decoded(body):
    return cv2.imdecode(np.frombuffer(base64.b64decode(body), np.uint8), cv2.IMREAD_COLOR).astype(float)


def height_of_the_brightest(picture):
    """0 at the top, 1 at the bottom; viridis is brightest where it is loudest."""
    return picture.sum(axis=(1, 2)).argmax() / len(picture)


def test_a_spectrogram_is_dark_to_yellow_with_high_bands_above_and_time_to_the_right():
    stored = np.zeros((128, 200), np.uint8)
    stored[100:, 150:] = 255  # high and late, at full scale
    stored[:20, :50] = 255 - round(255 * 30 / 90)  # low and early, 30 dB less
    picture = spectrogram_picture(stored).astype(int)
    assert picture.shape == (48, 96, 3)
    dark, teal, yellow = [68, 1, 84], [33, 145, 140], [253, 231, 37]  # the ends and the middle of viridis
    for place, colour in (((2, 90), yellow), ((45, 5), teal), ((20, 40), dark), ((2, 5), dark)):
        assert np.abs(picture[place] - colour).max() <= 2, place
    quiet = stored.astype(float) - 255 * 20 / 90  # the same 20 dB softer: scaled by its own loudest place
    same = np.abs(spectrogram_picture(quiet.clip(0).astype(np.uint8)) - picture).max(axis=2) <= 3
    assert same.mean() > 0.95  # all but edges, where softness is lost at -90 dB


def test_who_has_no_sound_is_shown_as_such(sound_data):
    manifest, store = Manifest.load(sound_data), FrameStore(sound_data)
    for video in manifest.videos:
        assert extra_pictures(("rgb", "flow", "residual"), store, video) == []
        [sound] = extra_pictures(VIEWS, store, video)
        if manifest.classes[video.label] == "mute":
            assert (sound.caption, sound.picture, sound.why) == ("no audio", None, "no sound track")
        else:
            assert re.fullmatch(r"audio, 0\.\d s", sound.caption) and sound.picture.shape == (48, 96, 3)
            at = height_of_the_brightest(sound.picture)
            assert at < 0.5 if manifest.classes[video.label] == "high" else at > 0.8


def test_the_report_shows_sound_below_the_frames(run, tmp_path):
    page = write_report([run], tmp_path / "report.html").read_text()
    clips = re.split(r'<div class="clip [^"]*"', page)[1:]
    assert len(clips) >= 20
    seen = set()
    for clip in clips:
        pictures = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', clip)
        name = re.match(r' title="(low|high|mute)">', clip)[1]
        seen.add(name)
        assert len(pictures) == (2 if name == "mute" else 3)
        assert ("no audio" in clip) == ('title="no sound track"' in clip) == (name == "mute")
        if name != "mute":
            assert re.search(r"audio, 0\.\d s", clip)
            at = height_of_the_brightest(decoded(pictures[2]))
            assert at < 0.5 if name == "high" else at > 0.8
    assert seen == {"low", "high", "mute"} and "spectrogram of the video" in page
    assert "nothing mined: the query lacks a view" in page


def test_the_explorer_shows_it_and_leaves_stages_out_as_training_does(run, explorer, sound_data, tab):
    text = re.search(r'<script id="data" type="application/json">(.*?)</script>', explorer.read_text())[1]
    body = json.loads(text)
    [held], [album] = body["runs"], body["albums"]
    for video in album["videos"]:
        sound, name = video["extra"]["audio"], album["classes"][video["class"]]
        assert bool(sound["data"]) == (name != "mute") and bool(sound["why"]) == (name == "mute")
    rows = {view["name"]: unpacked(view).float() for view in held["views"]}
    entries = len(held["sources"])
    mute = [
        i for i, video in enumerate(held["videos"]) if not album["videos"][video]["extra"]["audio"]["data"]
    ]
    assert 0 < len(mute) < entries and (rows["audio"][mute] == 0).all()
    schedules = ("audio:6,rgb:3", "rgb:6,audio:3", "audio:3", "rgb+audio:3")
    script = f"""
        const mine = async (stages, query) => {{
            const last = (await ask("trace", 0, stages, query, [])).traced.at(-1);
            return last ? best(last.kept, last.score) : [];
        }};
        const queries = [...Array(runs[0].entries).keys()], result = {{}};
        result.picks = await Promise.all({json.dumps(schedules)}.map((text) =>
            Promise.all(queries.map((query) => mine(parseSchedule(text, runs[0]), query)))));
        choice.panes[0].schedule = "audio:3"; setQuery({mute[0]}); await drawn();
        result.said = document.querySelector("#panes .soft").textContent;
        const shown = listed().map(([entry]) => clip(runs[0], entry).querySelector(".beside i"));
        result.shown = [shown.length, shown.filter((one) => one.style.backgroundImage.startsWith("url(")).length];
        return result;
    """
    tab.open(explorer)
    result = tab.run(script)
    assert not tab.errors
    assert (
        result["said"]
        == "this clip has no audio: as in training, that stage is left out, and nothing is mined"
    )
    videos = {video: album["videos"][video] for video in held["videos"]}
    with_sound = sum(bool(video["extra"]["audio"]["data"]) for video in videos.values())
    assert result["shown"] == [len(videos), with_sound]
    assert result["picks"] == [mined_in_training(text, held, album, rows, sound_data) for text in schedules]


def mined_in_training(text, held, album, rows, sound_data):
    """What the trainer mines for every entry of the page's queue, each as a query."""
    manifest = Manifest.load(sound_data)
    index = {video.id: i for i, video in enumerate(manifest.videos)}
    videos = torch.tensor([index[album["videos"][video]["id"]] for video in held["videos"]])
    ids = torch.tensor(held["sources"])
    queue = MultiViewQueue({view: rows[view].shape[1] for view in VIEWS}, len(ids))
    queue.enqueue(rows, ids, labels=videos)
    view_mask = ViewMask(manifest, chosen(VIEWS), torch.device("cpu"))
    picks = view_mask.mine(rows, queue, {"mined": parse_schedule(text)}, ids, videos)["mined"]
    return [[entry for entry in row if entry >= 0] for row in picks.tolist()]


def test_a_run_without_sound_shows_none(run, sound_data, tmp_path):
    config = tiny(
        sound_data, tmp_path / "deaf", views=("rgb",), backbone="toy", infonce_epochs=1, cycles=0, queue=8,
        clips=replace(Clips(frames=8, crop=32, batch=4), workers=0),
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ENCODERS, "toy", Toy)
        pretrain(config)
        evaluate_run(config.out, clips=1)
    page = write_report([config.out], tmp_path / "report.html").read_text()
    assert 'class="beside"' not in page and "spectrogram" not in page
    both = explore([config.out, run], tmp_path / "both.html")
    result = evaluate_in_page(
        both, "return runs.map((run) => clip(run, 0).querySelectorAll('.beside').length)", tmp_path
    )
    assert result == [0, 1]
