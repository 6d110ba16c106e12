"""The report in a browser: light, dark, on a phone, printed; and what its figures are."""

from __future__ import annotations

import shutil
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from report_pages import printed, violations
from train_sets import tiny

from bench.harness.chromium import Page
from bench.studies.pictures import MOST, PICTURES, WIDTH, take
from cpr_kernels.train.data.manifest import Manifest
from cpr_kernels.train.evaluate.features import Protocol, measured_videos
from cpr_kernels.train.evaluate.paired_gain import Gain, paired_gains
from cpr_kernels.train.evaluate.retrieval import evaluate_run
from cpr_kernels.train.pages.report import settings, verdict, write_report
from cpr_kernels.train.pages.report.trends import chance_of_mining, losses, rates, trends
from cpr_kernels.train.pretrain.config import Mining, Optim
from cpr_kernels.train.pretrain.run_folder import config_of
from cpr_kernels.train.runtime.run_log import read_lines
from cpr_kernels.train.views.pictures import flow_picture

pytest_plugins = ["train_fixtures", "page_fixtures"]


@pytest.fixture(scope="module")
def runs(cascade_run: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A run, and one of other weights and settings to compare with."""
    folder = tmp_path_factory.mktemp("runs")
    made = [Path(shutil.copytree(cascade_run, folder / name)) for name in ("cascade", "other")]
    files = sorted((made[1] / "encoders").glob("*"))
    for kind in ("rgb", "flow"):
        first, last = [file for file in files if f".{kind}." in file.name][:: len(files) // 2 - 1]
        shutil.copy(first, last)
    text = (made[1] / "config.json").read_text()
    (made[1] / "config.json").write_text(text.replace('"method": "cpr"', '"method": "coclr"'))
    for run in made:
        evaluate_run(run, clips=1, last=True)
    return made


@pytest.fixture(scope="module")
def page(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(
        runs[:1], tmp_path_factory.mktemp("page") / "report.html", inside="i.html", baseline=runs[1]
    )


STATE = """
    await Promise.all([...document.images].map((one) => one.decode()));
    const anchors = [...document.querySelectorAll("nav a")].map((one) => one.hash.slice(1));
    return {wide: document.scrollingElement.scrollWidth - innerWidth, plots: document.querySelectorAll(".plot").length,
        lost: anchors.filter((one) => !document.getElementById(one)), anchors: anchors.length,
        heads: document.querySelectorAll("h2").length,
        unsized: [...document.images].filter((one) => !one.width || one.naturalWidth !== +one.getAttribute("width")
            && !one.classList.contains("plot")).length};
"""
GROWTH = """
    const heights = [document.scrollingElement.scrollHeight];
    for (let y = 0; y < heights[0]; y += innerHeight) {
        scrollTo(0, y);
        await new Promise((done) => requestAnimationFrame(done));
        heights.push(document.scrollingElement.scrollHeight);
    }
    return [...new Set(heights)].length;
"""


def test_it_holds_on_every_screen(page: Path, tab: Page) -> None:
    for width, dark in ((390, False), (1280, True)):
        tab.resize(width, 900)
        tab.emulate(dark=dark)
        tab.open(page)
        assert tab.run(GROWTH) == 1
        state = tab.run(STATE)
        assert state["wide"] <= 0 and state["lost"] == [] and state["unsized"] == 0
        assert state["anchors"] == state["heads"] == 9 and state["plots"] == 5
        assert violations(tab) == []
        assert tab.requests == [] and tab.errors == []


def test_it_is_read_by_keyboard(page: Path, tab: Page) -> None:
    tab.resize(390, 900)
    tab.open(page)
    seen = []
    for _ in range(14):
        tab.press("Tab")
        seen.append(tab.run("return document.activeElement.hash || document.activeElement.ariaLabel"))
    assert seen[1:10] == [
        "#summary", "#classes", "#retrieval", "#mining", "#trends", "#found", "#mined", "#views", "#settings",
    ]  # fmt: skip
    assert seen[10:12] == ["retrieval", "mining quality"]  # tables that scroll sideways
    tab.run("document.querySelector('nav a[href=\"#mined\"]').focus()")
    tab.press("Enter")
    assert abs(tab.run("return document.getElementById('mined').getBoundingClientRect().top")) < 20


def test_no_heading_ends_a_printed_page(page: Path, tab: Page) -> None:
    tab.resize(1280, 900)
    tab.open(page)
    heads = set(
        tab.run("return [...document.querySelectorAll('h1,h2,h3,h4,caption')].map((one) => one.textContent)")
    )
    pages = printed(tab)
    assert len(pages) >= 4 and heads & {line for lines in pages for line in lines}
    assert [lines[-1] for lines in pages if lines[-1] in heads] == []


def test_on_paper_nothing_lies_over_another(page: Path, tab: Page) -> None:
    tab.resize(794, 1000)
    tab.emulate(media="print")
    tab.open(page)
    assert tab.run("return document.scrollingElement.scrollWidth") <= 794
    over = """
        const boxes = [...document.querySelectorAll(".tile, .tile ~ p, .dots .row > *, h2, .query, .plot")].map((one) => one.getBoundingClientRect());
        const lies = (a, b) => a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1;
        return [boxes.length, boxes.flatMap((a, i) => boxes.slice(i + 1).filter((b) => lies(a, b))).length];
    """
    number, lying = tab.run(over)
    assert number > 40 and lying == 0
    tab.emulate()


def test_its_first_figures_are_the_paired_gains(page: Path, runs: list[Path]) -> None:
    protocol = Protocol(frames=8, crop=32, clips=1)
    text = page.read_text()
    for gain in paired_gains(runs[0], runs[1], protocol):
        assert f"{verdict.signed(gain.difference)} <small>points" in text
        assert f"95 % interval {verdict.signed(gain.low)} to {verdict.signed(gain.high)}" in text
        of_class = gain.by_class.values()
        for place, whole in ((0, gain.run), (1, gain.baseline)):
            assert sum(row[place] * row[2] for row in of_class) / sum(
                row[2] for row in of_class
            ) == pytest.approx(whole)
    assert len(text) < 5e6


def test_several_runs_begin_with_what_differs(runs: list[Path], tmp_path: Path) -> None:
    text = write_report(runs, tmp_path / "two.html").read_text()
    assert "<td>cpr</td><td>coclr</td>" in text[: text.index('id="retrieval"')]
    [gain] = [
        one
        for one in paired_gains(runs[1], runs[0], Protocol(frames=8, crop=32, clips=1))
        if one.view == "both"
    ]
    assert (
        f"both <b>{verdict.signed(gain.difference)}</b>" in text and "the others are compared with it" in text
    )


def gain(low: float, high: float, view: str = "rgb") -> Gain:
    return Gain(view, 0.5, 0.5 - (low + high) / 2, low, high, {})


def test_a_difference_is_one_where_its_interval_leaves_out_nought() -> None:
    gains = [gain(0.01, 0.2, "both"), gain(-0.1, 0.2), gain(-0.3, -0.1, "flow")]
    assert [verdict.verdict(one) for one in gains] == ["better", "unclear", "worse"]
    assert verdict.sentence(gains, "InfoNCE") == (
        "Better than InfoNCE: both views together. Worse than InfoNCE: flow. No difference shown: RGB."
    )
    drawn = verdict.tile(gains[0], 0.2)["place"]
    assert drawn == pytest.approx({"low": 52.4, "middle": 75.2, "high": 98})
    assert verdict.tile(gain(-np.inf, np.inf), 0.2)["place"]["low"] is None
    assert verdict.signed(-0.0001) == "0.0" and verdict.signed(-0.051) == "−5.1"


def test_chance_is_that_of_a_random_pick(data: Path) -> None:
    manifest = Manifest.load(data)
    videos = [video for video in manifest.videos if video.split == "train"]
    shares = []
    for one in videos:
        others = [other for other in videos if other.group != one.group]
        shares.append(np.mean([other.label == one.label for other in others]))
    assert chance_of_mining(manifest) == pytest.approx(np.mean(shares))
    small = replace(
        manifest,
        videos=[*manifest.videos[:0], *videos[:6], *[v for v in manifest.videos if v.split == "test"][:2]],
    )
    protocol = Protocol(frames=8, crop=32, clips=1, ks=(1, 2, 6))
    label = {
        split: [small.videos[i].label for i in measured_videos(small, split, protocol)]
        for split in ("train", "test")
    }
    for k, chance in zip(protocol.ks, verdict.chance_of_recall(small, protocol)):
        found = [
            any(x == one for x in some) for one in label["test"] for some in combinations(label["train"], k)
        ]
        assert chance == pytest.approx(np.mean(found))


def test_losses_and_rates_are_those_of_the_log(cascade_run: Path) -> None:
    config, lines = config_of(cascade_run), read_lines(cascade_run / "log.jsonl")
    steps = [line for line in lines if line["kind"] == "step" and line["phase"] == "infonce"]
    drawn = losses(lines)
    assert drawn["rgb"][0] == (1, pytest.approx(np.mean([s["loss_rgb"] for s in steps if s["epoch"] == 0])))
    trained = dict.fromkeys(line["phase"] for line in lines if line["kind"] == "epoch")
    assert list(trained) == ["infonce", "cycle1-rgb", "cycle1-flow"]
    assert any(np.isnan(y) for _, y in drawn["flow"])  # no line across the epochs that train RGB alone
    optim = replace(config.optim, lr=0.1, cycle_lr=0.02, warmup=2, decay_at=1.0)
    assert rates(replace(config, optim=optim), lines)[0][1] == pytest.approx(0.05)
    assert {round(y, 9) for _, y in rates(replace(config, optim=optim), lines)} == {0.05, 0.1, 0.01, 0.02}
    titles = [plot["title"] for plot in trends(config, lines, 0.1)]
    assert titles[0] == "Right among the mined (PMR)" and titles[-2:] == ["Loss", "Learning rate"]


def test_settings_that_differ_come_first(data: Path, tmp_path: Path) -> None:
    first = tiny(data, tmp_path)
    other = replace(first, infonce_epochs=0, mining=Mining(method="coclr"), optim=Optim(lr=0.5))
    found = settings.table([settings.flat(first), settings.flat(other)], first)
    names = [row["name"] for row in found["differ"]]
    assert names[0] == "mining: method" and set(names) >= {"training: infonce_epochs", "optim: lr"}
    values = {row["name"]: row["values"] for row in found["differ"]}
    assert values["training: infonce_epochs"][1] == "0" and values["mining: method"][1] == "coclr"
    same = {row["name"]: row for rows in found["groups"].values() for row in rows}
    assert same["queue"] == {"name": "queue", "value": str(first.queue), "set": True}
    assert same["flip"]["set"] is False and not set(values) & set(same)


def test_a_still_background_does_not_look_like_motion() -> None:
    """Noise of the stored numbers is white, and so is a shake of the camera in another frame than the motion's."""
    torch.manual_seed(0)
    flow: Any = np.random.default_rng(0).integers(126, 130, (6, 40, 40, 2)).astype(np.uint8)
    flow[2] += 12  # the camera
    flow[4, 10:20, 10:20] = (127, 207)
    picture = flow_picture(flow)
    still = np.ones((40, 40), bool)
    still[10:20, 10:20] = False
    assert picture[still].min() >= 250 and picture[10:20, 10:20].min(axis=2).max() < 40


def test_the_pictures_of_the_docs_are_small(page: Path, tab: Page, tmp_path: Path) -> None:
    for name in ("report.html", "report_inside.html"):  # the explorer's is opened like any page
        shutil.copy(page, tmp_path / name)
    made = take(tab, tmp_path, tmp_path)
    assert [path.name for path in made] == ["report.webp", "mined.webp", "explorer.webp"]
    for path, picture in zip(made, PICTURES):
        assert path.stat().st_size <= MOST
        shown = cv2.imread(str(path))
        assert shown.shape == (picture.height, WIDTH, 3) and shown.std() > 10
    assert not np.array_equal(cv2.imread(str(made[0]))[:600], cv2.imread(str(made[1]))[:600])
    (tmp_path / "report.html").unlink()
    with pytest.raises(ValueError, match=r"demo: .* holds no report\.html; make it first: cpr demo --out"):
        take(tab, tmp_path, tmp_path)
