"""The explorer: its page is whole, its cascade is the op's, and it works in a browser."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import train_sets  # noqa: F401  skips without the trainer's packages
from chromium import evaluate_in_page
from tuning_data import clusters

from cpr_kernels import MiningPlan, Schedule, Stage, cascade_topk, parse_schedule
from cpr_kernels.__main__ import main
from cpr_kernels.train import TrainError
from cpr_kernels.train.pages.explore import explore, memory_of, page
from cpr_kernels.train.pages.tuned_views import int16_rows, quantized, tuned_views
from cpr_kernels.train.pretrain.run_folder import config_of
from cpr_kernels.train.runtime.checkpoint import load, save
from cpr_kernels.tuning import Expansion
from cpr_kernels.tuning.whitening import principal_axes

pytest_plugins = ["train_fixtures"]


@pytest.fixture(scope="module")
def run(cascade_run: Path) -> Path:
    return cascade_run


@pytest.fixture(scope="module")
def written(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return explore([run], tmp_path_factory.mktemp("page") / "explore.html")


def body_of(path: Path) -> dict[str, Any]:
    found = re.search(
        r'<script id="data" type="application/json">(.*?)</script>', path.read_text(), re.DOTALL
    )
    assert found
    return json.loads(found[1])


def exact(run: dict[str, Any], stages: list[tuple[dict[str, float], int]], query: int) -> list[list[int]]:
    """Survivors of each stage by the definition, on the page's own integers."""
    names = [view["name"] for view in run["views"]]
    rows = {name: int16_rows(view).numpy() for name, view in zip(names, run["views"])}
    scales = {view["name"]: view["scale"] ** (1 if "bias" in view else 2) for view in run["views"]}
    asks = {view["name"]: [1] if "bias" in view else rows[view["name"]][query] for view in run["views"]}
    alive = [i for i, source in enumerate(run["sources"]) if source != run["sources"][query]]
    survivors = []
    for weights, keep in stages:
        score = sum(w * scales[name] * (rows[name] @ asks[name]) for name, w in weights.items())
        alive = sorted(alive, key=lambda i: (-score[i], i))[:keep]
        survivors.append(alive)
    return survivors


def test_the_page_is_whole_and_holds_the_queue(run: Path, written: Path) -> None:
    text, [held] = written.read_text(), body_of(written)["runs"]
    assert not re.search(r"(src|href)=[\"']?(https?:|//|file:)", text) and "/*" not in text[:200]
    queue, plan = memory_of(run, config_of(run))
    assert plan is None
    for view in held["views"]:
        kept = int16_rows(view) * view["scale"]
        assert torch.allclose(kept.float(), queue[view["name"]], atol=2 * view["scale"])
    album = body_of(written)["albums"][0]
    assert len(album["videos"]) == len(set(queue["videos"].tolist()))
    assert held["schedule"] == str(parse_schedule(held["schedule"])) and len(held["epochs"]) == 4


def test_sixteen_bits_mine_what_the_op_mines() -> None:
    torch.manual_seed(0)
    rows = {view: torch.nn.functional.normalize(torch.randn(400, 32), dim=1) for view in ("a", "b")}
    ids = torch.arange(400)
    schedule = parse_schedule("a:0.5,b:50,a+b:5", 400)
    mined, _ = cascade_topk(rows, rows, schedule, query_ids=ids, key_ids=ids)
    held = {
        "views": [{"name": view, **quantized(rows[view])} for view in rows],
        "sources": ids.tolist(),
    }
    stages = [(stage.weights, stage.keep) for stage in schedule]
    same = [set(exact(held, stages, q)[-1]) == set(mined[q].tolist()) for q in range(0, 400, 20)]
    assert np.mean(same) >= 0.9  # entries closer than 16 bits may change places


LISTED = (
    "[...document.querySelectorAll('.picks')].map(row => [...row.children].map(one => +one.dataset.entry))"
)
KEY = "const press = (key) => document.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true}));"


def test_the_page_s_cascade_is_the_definition(written: Path, tmp_path: Path) -> None:
    [held] = body_of(written)["runs"]
    script = """
        const found = [];
        for (const query of [0, 3, 11]) for (const schedule of ["flow:12,rgb:6,flow:3", "2*flow+rgb:0.5,rgb:1/3"]) {
            const stages = parseSchedule(schedule, runs[0]);
            found.push(cascade(runs[0], stages, query).map((stage) => stage.kept));
        }
        return found;
    """
    result = iter(evaluate_in_page(written, script, tmp_path))
    first = [({"flow": 1.0}, 12), ({"rgb": 1.0}, 6), ({"flow": 1.0}, 3)]
    entries = len(held["sources"])
    second = [({"flow": 2.0, "rgb": 1.0}, entries // 2), ({"rgb": 1.0}, entries // 6)]
    for query in (0, 3, 11):
        assert next(result) == exact(held, first, query)
        assert next(result) == exact(held, second, query)


def test_it_is_used_by_keyboard_and_says_what_is_wrong(written: Path, tmp_path: Path) -> None:
    script = f"""{KEY}
        const result = {{picks: {LISTED}, stages: document.querySelectorAll("tbody tr").length}};
        const stage = () => [...document.querySelectorAll("tbody")[0].rows].findIndex((row) => row.ariaSelected === "true");
        result.first = choice.query;
        press("ArrowRight"); result.second = choice.query;
        press("ArrowLeft"); result.back = choice.query;
        press("ArrowDown"); result.down = stage();
        press("ArrowDown"); press("ArrowDown"); press("ArrowDown"); result.most = stage();
        press("c"); result.panes = document.querySelectorAll(".pane").length;
        result.two = {LISTED};
        press("c");
        result.wrong = [];
        for (const text of ["flow", "sound:5", "flow:3,rgb:9", "flow:1.5"]) {{
            const input = document.querySelector(".settings input");
            input.value = text; input.onchange();
            result.wrong.push(document.querySelector(".error").textContent);
        }}
        result.marks = document.querySelectorAll(".clip.right, .clip.wrong").length;
        choice.panes[0].schedule = runs[0].schedule; draw();
        await new Promise((done) => setTimeout(done, 800));
        result.average = document.querySelector(".share").textContent;
        result.address = location.hash;
        result.plots = document.querySelectorAll("#history svg[role=img] polyline").length;
        result.bars = document.querySelectorAll("#history rect").length;
        result.plays = getComputedStyle(document.querySelector(".big .strip")).animationName;
        return result;
    """
    result = evaluate_in_page(written, script, tmp_path, "#query=5")
    assert result["first"] == result["back"] == 5 and result["second"] != 5
    assert result["down"] == 1 and result["most"] == result["stages"] - 1
    assert result["panes"] == 2 and len(result["two"]) == 2 and result["two"][0] == result["picks"][0]
    assert "view:keep" in result["wrong"][0] and 'no view "sound"' in result["wrong"][1]
    assert "more than the 3 before it" in result["wrong"][2] and "share above 1" in result["wrong"][3]
    assert re.match(r"PMR of this schedule over \d+ clips: [\d.]+ %", result["average"])
    assert (
        "query=5" in result["address"]
        and result["plots"] >= 3
        and result["bars"] >= 9
        and result["plays"] == "play"
    )


def test_the_picks_are_those_the_definition_says(written: Path, tmp_path: Path) -> None:
    [held] = body_of(written)["runs"]
    stages = [(stage.weights, stage.keep) for stage in parse_schedule(held["schedule"])]
    assert evaluate_in_page(written, f"return {LISTED}", tmp_path, "#query=7") == [exact(held, stages, 7)[-1]]


def big(entries: int) -> dict[str, Any]:
    """A page of many entries with the smallest pictures."""
    import base64

    import cv2

    _, jpeg = cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))
    strip = base64.b64encode(bytes(jpeg)).decode()
    generator = torch.Generator().manual_seed(0)
    views = [
        {"name": name, "label": name, **quantized(torch.randn(entries, 128, generator=generator))}
        for name in ("rgb", "flow")
    ]
    videos = [{"id": f"v{i}", "class": i % 50, "strip": strip} for i in range(entries)]
    run = {
        "name": "big", "album": 0, "phase": "cycle", "mines": True, "views": views,
        "videos": list(range(entries)), "sources": list(range(entries)),
        "schedule": f"flow:{entries // 2},rgb:{entries // 4},flow:5", "topk": 5, "epochs": [], "plain": 2,
    }  # fmt: skip
    album = {"classes": [f"class {i}" for i in range(50)], "frames": 1, "flow": False, "videos": videos}
    return {"version": 1, "title": "</script> & <b>", "albums": [album], "runs": [run]}


def test_ten_thousand_entries_are_mined_and_a_phone_needs_no_sideways_scrolling(tmp_path: Path) -> None:
    path = tmp_path / "big.html"
    path.write_text(page(big(10_000)))
    script = """
        const times = [];
        for (const query of [17, 5000, 9999]) { setQuery(query); times.push(+document.body.dataset.milliseconds); }
        return {times, title: document.title};
    """
    result = evaluate_in_page(path, script, tmp_path)
    assert result["title"] == "</script> & <b>"
    assert len(result["times"]) == 3
    print("milliseconds", result["times"])
    small = tmp_path / "small.html"
    small.write_text(page(big(200)))
    wide = evaluate_in_page(
        small,
        "document.body.style.width = '340px'; draw();"
        "return [document.body.scrollWidth, ...[...document.querySelectorAll('.pane, .bar, #picker, .ask, .split')]"
        ".map(one => one.scrollWidth)]",
        tmp_path,
        width=500,
    )
    assert max(wide) <= 340


def test_three_views_and_one(tmp_path: Path) -> None:
    body = big(40)
    [run] = body["runs"]
    torch.manual_seed(1)
    run["views"].append({"name": "audio", "label": "sound", **quantized(torch.randn(40, 8))})
    run["schedule"], run["plain"] = "audio:20,flow:10,rgb+audio:5", 3
    alone = {**run, "name": "alone", "views": run["views"][:1], "schedule": "rgb:5", "plain": 1}
    body["runs"] = [run, alone]
    path = tmp_path / "three.html"
    path.write_text(page(body))
    script = """
        const pick = () => document.querySelectorAll("#panes select[aria-label^=view]");
        const result = {before: [...pick()].map((one) => one.value), rows: document.querySelectorAll("tbody tr").length};
        pick()[0].value = "1"; pick()[0].onchange();
        result.after = [...pick()].map((one) => one.value);
        choice.panes[0].run = 1; choice.panes[0].schedule = runs[1].schedule; draw();
        result.alone = document.querySelectorAll("tbody tr").length + document.querySelectorAll(".error").length;
        return result;
    """
    result = evaluate_in_page(path, script, tmp_path)
    assert result == {"before": ["2", "0"], "rows": 3, "after": ["1", "0"], "alone": 1}


def test_a_plan_is_mined_in_the_page(tmp_path: Path) -> None:
    rows, _ = clusters(rows=120, nuisance=2.0)
    views, sources = dict(zip(("rgb", "flow"), rows.values())), torch.arange(120) // 2
    whiten = {view: principal_axes(table).whitener(0.5) for view, table in views.items()}
    plan = MiningPlan(whiten, Expansion(5, 3), 50, Schedule([Stage({"rgb": 0.5, "flow": 0.5}, 5)]))
    mined, scores = plan.mine(views, plan.prepare_keys(views, sources), sources)
    tuned, schedule = tuned_views(plan, views, sources)
    assert str(schedule) == "tuned_rgb+tuned_flow:50,tuned_rgb+tuned_flow+2*hub:5"
    body = big(120)
    [run] = body["runs"]
    plain = [{"name": view, "label": view, **quantized(table)} for view, table in views.items()]
    run |= {"views": [*plain, *tuned], "sources": sources.tolist(), "schedule": str(schedule)}
    path = tmp_path / "tuned.html"
    path.write_text(page(body))
    script = """
        const found = runs[0].sources.map((_, query) => cascade(runs[0], parseSchedule(runs[0].schedule, runs[0]), query).at(-1));
        return {kept: found.map((stage) => stage.kept), score: found[3].score[found[3].kept[0]],
                axes: [...document.querySelectorAll("#panes select[aria-label^=view]")].map((one) => one.selectedOptions[0].textContent),
                choices: document.querySelectorAll("#panes select[aria-label^=view] option").length,
                named: [...document.querySelector("select[aria-label='schedule by name']").options].map((one) => one.value)};
    """
    result = evaluate_in_page(path, script, tmp_path)
    stages = [(stage.weights, stage.keep) for stage in schedule]
    assert result["kept"][::10] == [exact(run, stages, query)[-1] for query in range(0, 120, 10)]
    same = [set(kept) == set(expected) for kept, expected in zip(result["kept"], mined.tolist())]
    assert np.mean(same) >= 0.9  # entries closer than 16 bits may change places
    assert result["score"] == pytest.approx(2 * float(scores[3, 0]), abs=1e-3)
    assert result["axes"] == ["flow, tuned", "RGB, tuned"] and result["choices"] == 8
    assert result["named"] == [str(schedule), "rgb:5", "flow:5", "rgb+flow:5"]


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
