"""`cpr explore TABLE`: the page mines what the library mines, works by keyboard and on a phone, and loads nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import train_sets  # noqa: F401  skips without the trainer's packages
from explorer_pages import LISTED, body_of, by_library, in_page
from hostile_names import NAMES
from mine_data import table
from tuning_data import clusters

from bench.harness.chromium import Page
from cpr_kernels import MiningPlan, Schedule, Stage, cascade_topk, parse_schedule
from cpr_kernels.__main__ import main
from cpr_kernels.train.pages.explorer.lists import Mined, lists_of
from cpr_kernels.train.pages.explorer.packed import fitting, packed, unpacked
from cpr_kernels.train.pages.explorer.page import page
from cpr_kernels.tuning import Expansion
from cpr_kernels.tuning.whitening import principal_axes

pytest_plugins = ["page_fixtures"]
ROWS = 90


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A table with classes, names and texts of every kind, pictures, a row without a view; and its page."""
    import cv2

    folder = tmp_path_factory.mktemp("explore")
    arrays = table(rows=ROWS)
    arrays["rgb"][7] = np.nan
    names = np.array([f"{NAMES[i % len(NAMES)]} {i}" for i in range(ROWS)])
    classes = np.array([NAMES[0], NAMES[6], NAMES[7]])
    for i in range(ROWS):
        picture = np.full((20, 30, 3), 40 * (i % 3) + 60, np.uint8)
        cv2.imwrite(str(folder / f"{i}.png"), picture)
    files = np.array([f"{i}.png" for i in range(ROWS - 1)] + ["lost.png"])
    np.savez(folder / "t.npz", **arrays, names=names, classes=classes, thumbnail=files)
    np.savez(folder / "plain.npz", flow=arrays["flow"], text=names)
    assert (
        main(
            [
                "explore",
                str(folder / "t.npz"),
                "--out",
                str(folder / "t.html"),
                "--title",
                NAMES[1],
                "--stages",
                "3",
            ]
        )
        == 0
    )
    assert main(["explore", str(folder / "plain.npz"), "--out", str(folder / "plain.html")]) == 0
    return SimpleNamespace(folder=folder, arrays=arrays, names=names, classes=classes, page=folder / "t.html")


def test_the_page_mines_what_the_library_mines(made: SimpleNamespace, tab: Page) -> None:
    [held] = body_of(made.page)["runs"]
    tab.resize(1200, 900)
    tab.open(made.page, "#query=4")
    queries = [0, 4, 7, 31, ROWS - 1]
    for schedule in (held["schedule"], "flow:40,rgb:9,flow:3", "2*flow+rgb:0.5,rgb:1/3", "flow:200", "rgb:5"):
        assert in_page(tab, schedule, queries) == [
            [] if q == 7 and "rgb" in schedule else stages
            for q, stages in zip(queries, by_library(held, schedule, queries))
        ]
    assert [sorted(one) for one in tab.run(f"return {LISTED}")] == [
        by_library(held, held["schedule"], [4])[0][-1]
    ]
    assert not tab.errors and not tab.requests
    first = tab.run(
        "const score = Float64Array.from({length: 60}, (_, i) => (i * 7) % 5);"
        "return best(Int32Array.from({length: 60}, (_, i) => i), score, 7)"
    )
    assert first == sorted(range(60), key=lambda i: (-(i * 7 % 5), i))[:7]  # ties to the lower index


NO_WORKER = {"refused at once": ("delete self.Worker", ""), "forbidden": ("", "worker-src 'none'")}


@pytest.mark.parametrize("way", NO_WORKER)
def test_without_a_worker_the_page_mines_the_same_and_says_so(
    made: SimpleNamespace, tab: Page, way: str
) -> None:
    before, policy = NO_WORKER[way]
    page = made.folder / "workless.html"
    page.write_text(made.page.read_text().replace("worker-src blob:", policy or "worker-src blob:", 1))
    [held] = body_of(made.page)["runs"]
    state = (
        "return [Boolean(miner.worker), !el('here').hidden, document.querySelectorAll('.picks .clip').length]"
    )
    tab.open(made.page, "#query=4")
    assert tab.run(state) == [True, False, 5]
    mined = in_page(tab, held["schedule"], [0, 4])
    tab.open(page, "#query=4", before)
    assert in_page(tab, held["schedule"], [0, 4]) == mined == by_library(held, held["schedule"], [0, 4])
    assert tab.run(state) == [False, True, 5]


def test_its_note_is_the_overlap_with_the_embeddings_themselves(made: SimpleNamespace) -> None:
    [held] = body_of(made.page)["runs"]
    rows = {
        v: torch.nn.functional.normalize(torch.from_numpy(made.arrays[v]), dim=1) for v in ("flow", "rgb")
    }
    ids = torch.from_numpy(np.unique(made.arrays["video"], return_inverse=True)[1])
    mined, _ = cascade_topk(rows, rows, parse_schedule(held["schedule"]), query_ids=ids, key_ids=ids)
    kept = [stages[-1] for stages in by_library(held, held["schedule"], range(ROWS))]
    same = sum(len({i for i in mined[q].tolist() if i >= 0} & set(kept[q])) for q in range(ROWS))
    share = same / int((mined >= 0).sum())
    assert (
        share > 0.95
        and f"rounded to 16 bits. Of what {ROWS} rows mine by this schedule, {share:.1%} is" in held["note"]
    )


def test_small_integers_are_near_and_long_rows_are_shortened() -> None:
    torch.manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(50, 24), dim=1)
    rows[3] = torch.nan
    for bits, most in ((16, 2e-5), (8, 6e-3)):
        back = unpacked(packed(rows, bits)).float()
        assert back[3].isnan().all() and (back - rows)[torch.arange(50) != 3].abs().max() < most
    few, bits = fitting({"a": rows})
    assert bits == 16 and few["a"] is rows
    assert fitting({"a": torch.randn(20_001, 4)})[1] == 8
    low = torch.randn(10_000, 20) @ torch.randn(20, 900)  # of rank 20
    short, bits = fitting({"a": low, "b": low[:, :300]})
    assert bits == 8 and sum(view.shape[1] for view in short.values()) <= 520
    some = short["a"][:200]
    assert torch.allclose(some @ some.T, low[:200] @ low[:200].T, rtol=1e-3, atol=1e-1)


def test_the_lists_are_what_they_say() -> None:
    views, labels = clusters(rows=120, noise=0.4)
    ids = torch.arange(120)
    wrong = labels.clone()
    wrong[5] = (labels[5] + 1) % 8
    names = tuple("abcdefgh")
    found, mined = lists_of(Mined(views, ids, parse_schedule("v0:40,v1:4"), {}, wrong, names), 1000)
    lists = {one["name"]: one for one in found}
    assert list(lists) == ["hubs", "never", "views", "agreement", "labels"]
    times = torch.bincount(mined.indices.flatten(), minlength=120)
    first = lists["hubs"]["rows"][0]
    assert times[first[0]] == times.max() and first[1] == f"{int(times.max())}×"
    assert {row for row, _ in lists["never"]["rows"]} == set((times == 0).nonzero()[:, 0].tolist())
    by_row = dict(map(tuple, lists["labels"]["rows"]))
    assert by_row[5].startswith(f"→ {names[int(labels[5])]}, ")
    assert 5 in [row for row, _ in lists["labels"]["rows"][:3]]
    shares = [float(text.partition("%")[0]) for _, text in lists["views"]["rows"]]
    assert shares == sorted(shares) and "10 nearest" in lists["views"]["says"]
    votes = [float(text.partition("%")[0]) for _, text in lists["agreement"]["rows"]]
    assert votes == sorted(votes)


def test_a_plan_mines_in_the_page_and_two_stand_side_by_side(tmp_path: Path, tab: Page) -> None:
    views, _ = clusters(rows=120, nuisance=2.0)
    np.savez(
        tmp_path / "t.npz", **{name: rows.numpy() for name, rows in views.items()}, ids=np.arange(120) // 2
    )
    whiten = {view: principal_axes(rows).whitener(0.5) for view, rows in views.items()}
    both = Schedule([Stage({"v0": 0.5, "v1": 0.5}, 5)])
    MiningPlan(whiten, Expansion(5, 3), 50, both).save(tmp_path / "hubs.json")
    MiningPlan(whiten, None, None, both).save(tmp_path / "plain.json")
    plans = [str(tmp_path / name) for name in ("hubs.json", "plain.json")]
    out = tmp_path / "page.html"
    assert main(["explore", str(tmp_path / "t.npz"), "--plan", *plans, "--out", str(out)]) == 0
    [held] = body_of(out)["runs"]
    assert held["schedule"] == "tuned_v0+tuned_v1:50,tuned_v0+tuned_v1+2*hub:5"
    assert held["schedules"][1] == ["plan plain", "tuned2_v0+tuned2_v1:5"]
    tab.open(out, "#query=11")
    queries = list(range(0, 120, 7))
    for schedule in (held["schedule"], "tuned2_v0+tuned2_v1:5"):
        assert in_page(tab, schedule, queries) == by_library(held, schedule, queries)
    plan = MiningPlan.load(tmp_path / "hubs.json")
    sources = torch.arange(120) // 2
    mined, _ = plan.mine(views, plan.prepare_keys(views, sources), sources)
    same = [
        set(stages[-1]) == set(mined[q].tolist())
        for q, stages in zip(queries, in_page(tab, held["schedule"], queries))
    ]
    assert np.mean(same) > 0.9
    tab.press("c")
    heads = tab.run("return [...document.querySelectorAll('.found h2')].map((one) => one.textContent)")
    assert len(heads) == 2 and all(re.fullmatch(r"mined: 5; \d by both", head) for head in heads)
    chosen = tab.run(
        "return [...document.querySelectorAll('.settings select')].map((one) => one.selectedOptions[0].textContent)"
    )
    assert chosen == ["plan hubs", "plan plain"]


def test_every_control_is_reached_and_works_by_keyboard(made: SimpleNamespace, tab: Page) -> None:
    tab.resize(1200, 900)
    tab.open(made.page, "#query=5")
    tab.run("document.activeElement.blur()")
    wanted = tab.run(
        "const seen = [...document.querySelectorAll('button, select, input')].filter((one) => one.checkVisibility());"
        "seen.forEach((one, i) => (one.dataset.tab = i)); return seen.length"
    )
    reached = set()
    for _ in range(wanted + 3):
        tab.press("Tab")
        reached.add(tab.run("return document.activeElement.dataset.tab ?? null"))
    assert wanted > 30 and len(reached - {None}) == wanted
    state = "return [choice.query, choice.stage, choice.compare, choice.ranked, choice.list]"
    tab.run("document.activeElement.blur()")
    for key in ("ArrowRight", "ArrowDown", "c", "a"):
        tab.press(key)
    assert tab.run(state) == [6, 1, True, True, ""] and "axes=ranks" in tab.run("return location.hash")
    tab.press("?")
    assert tab.run("return !el('help').hidden && el('keys').ariaExpanded") == "true"
    tab.press("/")
    for letter in "left":
        tab.press(letter)
    found = tab.run("return listed().map(([entry]) => titleOf(runs[0], entry))")
    assert 0 < len(found) < ROWS and all("left" in title for title in found)
    tab.run("el('find').value = ''; el('find').blur(); drawPicker()")
    for key in ("l", "h"):  # the list of hubs, by its first letter
        tab.press(key)
    assert tab.run(state)[4] == "hubs" and "Mined most often" in tab.run("return el('says').textContent")
    first = tab.run("return choice.query")
    tab.run("el('list').blur()")
    tab.press("ArrowRight")
    rows = body_of(made.page)["runs"][0]["lists"][0]["rows"]
    assert [first, tab.run("return choice.query")] == [rows[0][0], rows[1][0]]
    tab.run("document.querySelector('.picks .clip').focus()")
    entry = tab.run("return +document.activeElement.dataset.entry")
    tab.press("Enter")
    assert tab.run("return choice.query") == entry
    assert not tab.errors


AXE = "const found = await axe.run(document, {resultTypes: ['violations']});" \
    "return found.violations.map((one) => [one.id, one.nodes.length, one.nodes[0].html.slice(0, 200), one.nodes[0].failureSummary.slice(0, 300)])"  # fmt: skip


@pytest.mark.parametrize("dark", [False, True])
def test_names_roles_and_contrast(made: SimpleNamespace, tab: Page, dark: bool) -> None:
    core = pytest.importorskip("axe_core_python")
    tab.emulate(dark=dark)
    tab.resize(1200, 900)
    tab.open(made.page if dark else made.folder / "plain.html", "#query=5&stage=2&list=hubs")
    tab.run((Path(core.__file__).parent / "axe.min.js").read_text())
    assert tab.run(AXE) == []
    tab.emulate()


@pytest.mark.parametrize("width", [1000, 1200])
def test_no_column_of_the_stages_is_cut(made: SimpleNamespace, tab: Page, width: int) -> None:
    tab.resize(width, 900)
    tab.open(made.page)
    needed, there = tab.run(
        "const box = document.querySelector('.scroll'); return [box.scrollWidth, box.clientWidth]"
    )
    assert needed <= there


def test_a_phone_and_paper(made: SimpleNamespace, tab: Page) -> None:
    tab.resize(390, 844)
    tab.open(made.page, "#query=5&stage=2")
    assert tab.run("return document.documentElement.scrollWidth") <= 390
    sizes = tab.run(
        "const texts = [...document.querySelectorAll('svg text, td, th, .name, small, em')].filter((one) => one.checkVisibility());"
        "return texts.map((one) => parseFloat(getComputedStyle(one).fontSize))"
    )
    assert len(sizes) > 30 and min(sizes) >= 11
    tab.emulate(media="print")
    shown = tab.run(
        "return ['aside', 'nav', 'table', 'canvas'].map((one) => document.querySelector(one).checkVisibility())"
    )
    assert shown == [False, False, True, True]
    tab.emulate()


def test_names_are_text_and_pictures_are_the_rows_own(made: SimpleNamespace, tab: Page, capsys: Any) -> None:
    tab.resize(1200, 900)
    tab.open(made.page, "#query=3")
    found = tab.run(
        "return {ran: window.ran ?? null, title: document.title, strays: document.querySelectorAll('img, #panes script').length,"
        "classes: [...el('class').options].slice(1).map((one) => one.textContent),"
        "names: [0, 1, 2].map((entry) => nameOf(runs[0], entry)),"
        "strips: runs[0].album.videos.filter(pictured).length,"
        "lost: clip(runs[0], 89).querySelector('.text').textContent === nameOf(runs[0], 89)}"
    )
    assert found == {
        "ran": None, "title": NAMES[1], "strays": 0, "classes": list(made.classes), "names": list(made.names[:3]),
        "strips": ROWS - 1, "lost": True,
    }  # fmt: skip
    middles = tab.run(
        "const image = new Image(), pen = make('canvas', {width: 112 * 16, height: 112 * 6}).getContext('2d');"
        "image.src = clip(runs[0], 3).querySelector('.strip').style.backgroundImage.slice(5, -2); await image.decode();"
        "pen.drawImage(image, 0, 0);"
        "const middle = (one) => pen.getImageData(112 * (one % 16) + 56, 112 * Math.floor(one / 16) + 56, 1, 1).data[1];"
        "return [image.width, image.height, ...[0, 4, 87, 88].map((row) => middle(videoOf(runs[0], row).cell))]"
    )
    assert middles[:2] == [112 * 16, 112 * 6]
    assert all(abs(middle - grey) < 4 for middle, grey in zip(middles[2:], (60, 100, 60, 100)))
    places = tab.run(
        "return [0, 17].map((row) => [clip(runs[0], row).querySelector('.strip').style].flatMap((one) => [one.backgroundSize, one.backgroundPosition]))"
    )
    assert places[0] == ["1600% 600%", "0% 0%"]  # 16 across, 6 down; row 17 is the second of the second line
    assert [float(part.strip("%")) for part in places[1][1].split()] == pytest.approx(
        [100 / 15, 20], rel=1e-4
    )
    assert not tab.requests and not tab.errors


def test_ten_thousand_rows_keep_the_budget_and_are_mined(tmp_path: Path, tab: Page) -> None:
    rng = np.random.default_rng(0)
    views = {name: rng.normal(size=(10_000, 128)).astype(np.float32) for name in ("rgb", "flow")}
    np.savez(
        tmp_path / "t.npz",
        **views,
        label=np.arange(10_000) % 50,
        name=np.array([f"clip {i}" for i in range(10_000)]),
    )
    out = tmp_path / "big.html"
    assert main(["explore", str(tmp_path / "t.npz"), "--sample", "300", "--out", str(out), "--quiet"]) == 0
    assert out.stat().st_size < 8e6
    [held] = body_of(out)["runs"]
    tab.open(out, "#query=17")
    assert in_page(tab, held["schedule"], [17, 9999]) == by_library(held, held["schedule"], [17, 9999])
    print(
        "milliseconds until drawn",
        tab.run(
            "return [performance.getEntriesByType('navigation')[0].loadEventEnd, document.body.dataset.milliseconds]"
        ),
    )


def test_pictures_and_embeddings_of_many_rows_keep_the_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import cv2

    monkeypatch.setattr(
        "cpr_kernels.train.pages.explorer.packed.ROWS", 1
    )  # a row takes what it takes among 10,000
    rng, rows = np.random.default_rng(0), 120
    for i in range(32):
        soft = cv2.resize(rng.uniform(0, 255, (6, 8, 3)), (160, 120), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(tmp_path / f"{i}.png"), soft + rng.normal(0, 25, soft.shape))
    views = {name: rng.normal(size=(rows, 200)).astype(np.float32) for name in ("rgb", "flow")}
    files = np.array([f"{i % 32}.png" for i in range(rows)])
    np.savez(
        tmp_path / "t.npz",
        **views,
        label=np.arange(rows) % 9,
        path=files,
        text=np.array(["a word " * 40] * rows),
    )
    out = tmp_path / "t.html"
    assert main(["explore", str(tmp_path / "t.npz"), "--out", str(out), "--quiet"]) == 0
    body = body_of(out)
    [album], [held] = body["albums"], body["runs"]
    code = len(page({"version": 0, "title": "", "albums": [], "runs": []}))
    lists = len(json.dumps(held["lists"]))  # of at most 200 rows each
    assert out.stat().st_size - code - lists < rows * 15e6 / 10_000
    assert album["sheets"]["cells"] == rows and [view["bits"] for view in held["views"]] == [8, 8]
    assert sum(map(len, album["sheets"]["data"])) * 3 / 4 < 480 * rows * 1.1


def test_mine_writes_the_page_beside_its_result(made: SimpleNamespace, capsys: Any) -> None:
    page = made.folder / "mine.html"
    assert main(["mine", str(made.folder / "t.npz"), "--topk", "3", "--report", str(page)]) == 0
    [held] = body_of(page)["runs"]
    assert held["topk"] == 3 and str(page) in capsys.readouterr().out
    assert main(["mine", str(made.folder / "t.npz"), "--report", str(page)]) == 2
    assert "--report" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "x"], "--data: is for runs"),
        (["--pictures", "video"], "--pictures: .* is not there"),
        (["--names", "nothing"], "--names: no array 'nothing'"),
        (["--plan", "a", "b", "c"], "--plan: at most 2 plans"),
        (["--sample", "0"], "--sample: must be >= 1"),
    ],
)
def test_wrong_options_are_one_line(
    made: SimpleNamespace, capsys: Any, options: list[str], message: str
) -> None:
    out = made.folder / "no.html"
    assert main(["explore", str(made.folder / "t.npz"), "--out", str(out), *options]) == 2
    assert re.search(message, capsys.readouterr().err) and not out.exists()
