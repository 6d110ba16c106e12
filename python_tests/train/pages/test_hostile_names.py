"""No name can run or blank a page, and every name is shown as it is written."""

from __future__ import annotations

import base64
import json
import re
import shutil
import warnings
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
import train_sets  # noqa: F401  skips without the trainer's packages
from chromium import evaluate_in_page
from hostile_names import NAMES

from cpr_kernels.train.evaluate.retrieval import evaluate_run
from cpr_kernels.train.pages.explorer.packed import packed
from cpr_kernels.train.pages.explorer.page import page
from cpr_kernels.train.pages.plots import Panel, curves, save_curves
from cpr_kernels.train.pages.report import write_report
from cpr_kernels.train.pages.thumbnails import thumbnail

pytest_plugins = ["train_fixtures"]

RAN = "window.ran ?? 'nothing'"


def as_parsed(name: str) -> str:
    """The text that a browser has of a name in HTML: white space in rows is one blank."""
    return " ".join(name.split())


def test_the_explorer_shows_hostile_names(tmp_path: Path) -> None:
    entries = 2 * len(NAMES)
    torch.manual_seed(0)
    strip = thumbnail(np.zeros((8, 8, 3), np.uint8)).partition(",")[2]
    videos = [
        {"id": f"{NAMES[i % len(NAMES)]}/{i}", "class": i % len(NAMES), "strip": strip}
        for i in range(entries)
    ]
    views = [{"name": name, "label": name, **packed(torch.randn(entries, 8))} for name in ("rgb", "flow")]
    cmr = dict.fromkeys(NAMES, 0.5)
    epoch = {"phase": NAMES[1], "pmr": {"mined": 0.4, "rgb": 0.2}, "cmr": {"mined": cmr, "rgb": cmr}}
    run = {
        "name": NAMES[2], "album": 0, "phase": NAMES[0], "kind": "run", "entries": entries, "views": views,
        "videos": list(range(entries)), "sources": list(range(entries)), "schedule": "flow:8,rgb:3", "topk": 3, "plain": 2,
        "epochs": [epoch, epoch], "schedules": [[NAMES[3], "flow:3"]], "lists": [], "note": NAMES[0],
    }  # fmt: skip
    album = {"classes": NAMES, "frames": 1, "flow": False, "videos": videos}
    path = tmp_path / "explore.html"
    path.write_text(page({"version": 1, "title": NAMES[0], "albums": [album], "runs": [run]}))
    script = f"""
        const texts = (mark) => [...document.querySelectorAll(mark)].map((one) => one.textContent);
        let refused = "";
        try {{ document.createElement("p").innerHTML = "<b>"; }} catch (error) {{ refused = error.name; }}
        return {{ran: {RAN}, title: document.title, refused,
            classes: texts("#class option").slice(1), names: texts("#picker small").slice(0, {len(NAMES)}),
            phases: texts("#history svg text").filter((one) => one.startsWith("<\\/script>")).length,
            bars: document.querySelectorAll("#history rect").length,
            strays: document.querySelectorAll("img, script[src], #panes script").length}};
    """
    result = evaluate_in_page(path, script, tmp_path)
    assert result == {
        "ran": "nothing", "title": NAMES[0], "refused": "TypeError", "classes": NAMES, "names": NAMES, "phases": 2,
        "bars": 2 * len(NAMES), "strays": 0,
    }  # fmt: skip


def test_the_report_shows_hostile_names(cascade_run: Path, data: Path, tmp_path: Path) -> None:
    manifest = json.loads((data / "manifest.json").read_text())
    renamed = dict(zip(manifest["classes"], NAMES, strict=True))
    shutil.copytree(data, tmp_path / "data")
    manifest["classes"] = list(renamed.values())
    del manifest["sha256_of_rest"]
    (tmp_path / "data" / "manifest.json").write_text(json.dumps(manifest))
    run = Path(shutil.copytree(cascade_run, tmp_path / r"<b>$\frac{<"))
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "data": str(tmp_path / "data")}))
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    for line in (line for line in lines if line["kind"] == "epoch"):
        for figures in line["mining"].values():
            figures["cmr"] = {renamed[name]: share for name, share in figures["cmr"].items()}
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    evaluate_run(run, clips=1, last=True)
    page_path = write_report([run, run], tmp_path / "report.html", title=NAMES[0])
    script = f"""
        const texts = (mark) => [...document.querySelectorAll(mark)].map((one) => one.textContent);
        const pictures = [...document.images];
        await Promise.all(pictures.map((one) => {{ one.loading = "eager"; return one.decode().catch(() => 0); }}));
        return {{ran: {RAN}, title: document.title, names: texts(".dots .name"), scripts: document.scripts.length,
            broken: pictures.filter((one) => !one.naturalWidth).length, plots: document.querySelectorAll(".plot").length,
            places: [...document.querySelectorAll(".dots .row use")].map((one) => one.getBoundingClientRect().left)}};
    """
    result = evaluate_in_page(page_path, script, tmp_path)
    assert result["ran"] == "nothing" and result["title"] == NAMES[0] and result["scripts"] == 1  # the probe
    assert {as_parsed(name) for name in result["names"]} == {as_parsed(name) for name in NAMES}
    assert result["broken"] == 0 and result["plots"] == 11 and len(set(result["places"])) > 5


@pytest.mark.parametrize("name", NAMES[1:8:2] + NAMES[4:5] + NAMES[-1:])
def test_a_plot_s_names_are_text(name: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        address = curves(Panel("PMR", {"mined": [(1, 0.2), (2, 0.4)]}, {"mined": name}))
        save_curves(tmp_path / "curves.svg", Panel("PMR", {name: [(1, 0.2)]}))
    drawn = ElementTree.fromstring(base64.b64decode(address.partition(",")[2]))
    texts = ["".join(one.itertext()) for one in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert re.sub("[\x07\ufffe]", "\ufffd", name) in texts
    assert ElementTree.parse(tmp_path / "curves.svg").getroot().tag.endswith("svg")
