"""The explorer: its page is whole, its cascade is the op's, and it works in a browser."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import train_sets  # noqa: F401  skips without the trainer's packages
from explorer_pages import LISTED, body_of, by_library, in_page

from bench.harness.chromium import Page
from cpr_kernels import parse_schedule
from cpr_kernels.__main__ import main
from cpr_kernels.train import TrainError
from cpr_kernels.train.pages.explorer.packed import packed, unpacked
from cpr_kernels.train.pages.explorer.page import page
from cpr_kernels.train.pages.explorer.runs import explore, memory_of
from cpr_kernels.train.pretrain.run_folder import config_of
from cpr_kernels.train.runtime.checkpoint import load, save

pytest_plugins = ["train_fixtures", "page_fixtures"]


@pytest.fixture(scope="module")
def run(cascade_run: Path) -> Path:
    return cascade_run


@pytest.fixture(scope="module")
def written(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return explore([run], tmp_path_factory.mktemp("page") / "explore.html")


def test_the_page_is_whole_and_holds_the_queue(run: Path, written: Path) -> None:
    text, [held] = written.read_text(), body_of(written)["runs"]
    assert not re.search(r"(src|href)=[\"']?(https?:|//|file:)", text) and "/*" not in text[:200]
    queue, plan = memory_of(run, config_of(run))
    assert plan is None
    for view in held["views"]:
        assert torch.allclose(unpacked(view).float(), queue[view["name"]], atol=1e-4)
    album = body_of(written)["albums"][0]
    assert len(album["videos"]) == len(set(queue["videos"].tolist()))
    assert held["schedule"] == str(parse_schedule(held["schedule"])) and len(held["epochs"]) == 4


def test_a_run_has_the_lists_too_each_video_once(run: Path, written: Path, tab: Page) -> None:
    [held] = body_of(written)["runs"]
    lists = {one["name"]: one["rows"] for one in held["lists"]}
    assert {"hubs", "views", "agreement"} <= set(lists)
    for rows in lists.values():
        videos = [held["videos"][row] for row, _ in rows]
        assert len(videos) == len(set(videos))
    mined = [
        entry for stages in by_library(held, held["schedule"], range(held["entries"])) for entry in stages[-1]
    ]
    times = Counter(mined)
    assert lists["hubs"][0][1] == f"{max(times.values())}×" and times[lists["hubs"][0][0]] == max(
        times.values()
    )
    tab.open(written, "#list=hubs")
    assert tab.run("return choice.query") == lists["hubs"][0][0]


def test_the_page_s_cascade_is_the_definition(written: Path, tab: Page) -> None:
    [held] = body_of(written)["runs"]
    tab.open(written, "#query=7")
    queries = [0, 3, 7, 11]
    for schedule in (held["schedule"], "flow:12,rgb:6,flow:3", "2*flow+rgb:0.5,rgb:1/3"):
        assert in_page(tab, schedule, queries) == by_library(held, schedule, queries)
    assert [sorted(one) for one in tab.run(f"return {LISTED}")] == [
        by_library(held, held["schedule"], [7])[0][-1]
    ]


def test_it_is_used_by_keyboard_and_says_what_is_wrong(written: Path, tab: Page) -> None:
    tab.resize(1200, 900)
    tab.open(written, "#query=5")
    picks, stages = tab.run(f"return [{LISTED}, document.querySelectorAll('tbody button').length]")
    chosen = "[choice.query, [...document.querySelectorAll('tbody button')].findIndex((one) => one.ariaPressed === 'true')]"
    for key, expected in (("ArrowRight", None), ("ArrowLeft", [5, 0]), ("ArrowDown", [5, 1])):
        tab.press(key)
        assert expected in (None, tab.run(f"return {chosen}"))
    for _ in range(stages + 1):
        tab.press("ArrowDown")
    assert tab.run(f"return {chosen}") == [5, stages - 1]
    tab.press("c")
    two = tab.run(f"return {LISTED}")
    assert len(two) == 2 and two[0] == picks[0]
    tab.press("c")
    wrong = tab.run(
        "const found = []; for (const text of ['flow', 'sound:5', 'flow:3,rgb:9', 'flow:1.5']) {"
        "  const input = document.querySelector('.settings input'); input.value = text; input.onchange(); await drawn();"
        "  found.push(document.querySelector('.error').textContent); } return found"
    )
    assert "view:keep" in wrong[0] and 'no view "sound"' in wrong[1]
    assert "more than the 3 before it" in wrong[2] and "share above 1" in wrong[3]
    result = tab.run(
        "choice.panes[0].schedule = runs[0].schedule; draw(); await drawn(); let share;"
        "do { await new Promise((done) => setTimeout(done, 50)); share = document.querySelector('.share'); }"
        "while (share.dataset.done !== 'true');"
        "return {average: share.textContent, address: location.hash,"
        " plots: document.querySelectorAll('#history svg[role=img] polyline').length,"
        " bars: document.querySelectorAll('#history rect').length,"
        " plays: getComputedStyle(document.querySelector('.big .strip')).animationName}"
    )
    assert re.match(r"PMR of this schedule over \d+ clips: [\d.]+ %", result["average"])
    assert (
        "query=5" in result["address"]
        and result["plots"] >= 3
        and result["bars"] >= 9
        and result["plays"] == "play"
    )
    tab.resize(390, 800)
    assert tab.run("return document.documentElement.scrollWidth") <= 390
    assert not tab.errors and not tab.requests


def big(entries: int) -> dict[str, Any]:
    """A page of many entries with the smallest pictures."""
    import base64

    import cv2

    _, jpeg = cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))
    strip = base64.b64encode(bytes(jpeg)).decode()
    generator = torch.Generator().manual_seed(0)
    views = [
        {"name": name, "label": name, **packed(torch.randn(entries, 128, generator=generator))}
        for name in ("rgb", "flow")
    ]
    videos = [{"id": f"v{i}", "class": i % 50, "strip": strip} for i in range(entries)]
    run = {
        "name": "big", "album": 0, "phase": "cycle", "kind": "run", "entries": entries, "views": views,
        "videos": list(range(entries)), "sources": list(range(entries)),
        "schedule": f"flow:{entries // 2},rgb:{entries // 4},flow:5", "topk": 5, "epochs": [], "plain": 2,
        "schedules": [["as trained", "rgb:5"]], "lists": [], "note": "",
    }  # fmt: skip
    album = {"classes": [f"class {i}" for i in range(50)], "frames": 1, "flow": False, "videos": videos}
    return {"version": 1, "title": "</script> & <b>", "albums": [album], "runs": [run]}


def test_three_views_and_one(tmp_path: Path, tab: Page) -> None:
    body = big(40)
    [run] = body["runs"]
    torch.manual_seed(1)
    run["views"].append({"name": "audio", "label": "sound", **packed(torch.randn(40, 8))})
    run["schedule"], run["plain"] = "audio:20,flow:10,rgb+audio:5", 3
    alone = {**run, "name": "alone", "views": run["views"][:1], "schedule": "rgb:5", "plain": 1}
    body["runs"] = [run, alone]
    path = tmp_path / "three.html"
    path.write_text(page(body))
    script = """
        const pick = () => document.querySelectorAll(".chart select");
        const result = {before: [...pick()].map((one) => one.value), rows: document.querySelectorAll("tbody tr").length};
        pick()[0].value = "0"; pick()[0].onchange(); await drawn();
        result.after = [...pick()].map((one) => one.value);
        choice.panes[0].run = 1; choice.panes[0].schedule = runs[1].schedule; draw(); await drawn();
        result.alone = document.querySelectorAll("tbody tr").length + document.querySelectorAll(".error").length;
        return result;
    """
    tab.open(path)
    assert tab.run(script) == {"before": ["2", "1"], "rows": 4, "after": ["0", "1"], "alone": 2}


def test_runs_without_traces_are_refused_in_one_line(run: Path, tmp_path: Path, capsys: Any) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(TrainError, match="holds no run"):
        explore([empty], tmp_path / "x.html")
    (empty / "config.json").write_text((run / "config.json").read_text())
    with pytest.raises(TrainError, match=r"has no checkpoint.pt.*cpr pretrain --resume"):
        explore([empty], tmp_path / "x.html")
    state = load(run / "checkpoint.pt")
    state["model"]["queue.ids"][5:] = -1
    save(empty / "checkpoint.pt", state)
    with pytest.raises(TrainError, match="holds 5 entries, at least 8"):
        explore([run, empty], tmp_path / "x.html")
    assert not (tmp_path / "x.html").exists()
    assert main(["explore", str(empty)]) == 2
    assert "holds 5 entries" in capsys.readouterr().err


def test_the_command_takes_runs_by_place(run: Path, tmp_path: Path, capsys: Any) -> None:
    assert main(["explore", str(run), str(run), "--out", str(tmp_path / "two.html")]) == 0
    assert len(body_of(tmp_path / "two.html")["runs"]) == 2
    assert str(tmp_path / "two.html") in capsys.readouterr().out
    assert main(["explore", "--help"]) == 0
    assert "which view threw out which" in " ".join(capsys.readouterr().out.split())
