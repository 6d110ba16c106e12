"""--quiet and --json of every command: nothing but errors, and one JSON value."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from mine_data import make_data
from small_artifact import small
from train_sets import DRAFT

from cpr_command import COMMANDS
from cpr_kernels import progress
from cpr_kernels.__main__ import main
from cpr_kernels.train import demo

pytest_plugins = ["train_fixtures"]

FRAMES = [
    word for name in ("size", "frames", "min_frames", "flow", "flow_bound")
    for word in (f"--{name.replace('_', '-')}", str(getattr(DRAFT, name)))
]  # fmt: skip
MAKES_FILES = {"report", "explore", "export"}
WORDS = {  # what is run; {names} are of `places`
    "mine": "{table} --stages 3",
    "tune": "{table} --sample 60",
    "adapt": "{table} --ids none --epochs 1 --out {out}/{mode}",
    "prepare": "--videos {clips} --out {data} {frames}",
    "pretrain": "--resume {run}",
    "evaluate": "{run} --clips 1 --last",
    "finetune": "--run {run} --data {data} --out {out}/tuned --epochs 1 --batch 12 --workers 0 --clips 1 --no-ten-crop",
    "report": "{run} --out {out}/report.html",
    "explore": "{run} --out {out}/inside.html",
    "export": "{run} --out {out}/run.cpr --views rgb --center 0",
    "update": "{run} --videos {new} --out {out}/more --epochs 1 --batch 6 --clips 1 --processes 1",
    "predict": "{artifact} {video}",
    "index": "{artifact} {video} --out {out}/known",
    "search": "{artifact} {out}/known {video}",
    "demo": "--out {out}/demo",
    "doctor": "--no-test",
    "completion": "bash",
}


@pytest.fixture(scope="module")
def places(
    data: Path, clip_folder: Path, cascade_run: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """Files that commands read, and a folder that they write to."""
    out = tmp_path_factory.mktemp("out")
    run = out / "run"
    shutil.copytree(cascade_run, run)
    videos = sorted(clip_folder.rglob("*.mp4"))
    new = out / "new" / videos[-1].parent.name
    new.mkdir(parents=True)
    for path in videos[-12:]:
        if path.parent.name == new.name:
            shutil.copy(path, new / f"new {path.name.replace('_g', '_g9')}")
    return {
        "table": make_data(out).npz, "clips": clip_folder, "data": data, "frames": " ".join(FRAMES), "run": run,
        "new": out / "new", "out": out, "artifact": small(out / "model.cpr", 3), "video": videos[0],
    }  # fmt: skip


def ran(name: str, places: dict[str, Any], *mode: str) -> int:
    again = ["--force"] * (name in MAKES_FILES)
    words = WORDS[name].format(**{key: str(place) for key, place in places.items()}, mode="".join(mode))
    return main([name, *words.split(), *again, *mode])


def test_every_command_is_in_the_table() -> None:
    assert WORDS.keys() == COMMANDS.keys()


@pytest.mark.parametrize("name", WORDS)
def test_quiet_prints_nothing_and_json_one_value(
    name: str, places: dict[str, Any], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        demo, "demo", lambda settings: settings.out / "report.html"
    )  # its parts are other commands
    capfd.readouterr()
    assert ran(name, places, "--quiet") == 0
    printed = capfd.readouterr()
    assert printed.err == ""
    if name == "completion":  # the script is what was asked for
        assert "--query-labels" in printed.out
    else:
        assert printed.out == ""
    assert ran(name, places, "--quiet", "--json") == 0
    printed = capfd.readouterr()
    assert printed.err == "" and json.loads(printed.out)


def test_an_adapter_s_result_is_json_too(places: dict[str, Any], capfd: pytest.CaptureFixture[str]) -> None:
    out = places["out"]
    assert (
        main(
            [
                "adapt",
                str(places["table"]),
                "--ids",
                "none",
                "--epochs",
                "1",
                "--out",
                str(out / "heads"),
                "--quiet",
            ]
        )
        == 0
    )
    words = ["predict", str(out / "heads/model.cpr"), str(places["table"]), "--out", str(out / "mapped.npz")]
    capfd.readouterr()
    assert main([*words, "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == {"rows": 60, "out": str(out / "mapped.npz")}
    assert main([*words, "--force", "--quiet"]) == 0
    assert capfd.readouterr() == ("", "")


def test_text_is_quiet_and_data_that_was_asked_for_is_not(
    places: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["predict", str(places["artifact"]), str(places["video"]), "--quiet"]
    capfd.readouterr()
    assert main([*words, "--format", "csv"]) == 0
    assert capfd.readouterr().out.startswith("path,rank,class,probability")
    assert main([*words, "missing.mp4"]) == 1
    assert capfd.readouterr() == ("", "cpr predict: missing.mp4: missing file\n")


STRETCHES = {  # what each command says while it is at work, where a line is due at once
    "prepare": ["list videos", "check "], "mine": ["read the table", "mining", "PMR and stages"],
    "tune": ["read the table", "tuning", "PMR of the plan"], "adapt": ["read the table", "adapt"],
    "evaluate": ["linear probe, rgb"], "report": ["thumbnails", "draw the report"], "explore": ["thumbnails"],
    "export": ["export the program"], "index": ["index"], "search": ["search"], "predict": ["predict"],
}  # fmt: skip


@pytest.mark.parametrize("name", STRETCHES)
def test_no_stretch_of_a_job_is_silent(
    name: str, places: dict[str, Any], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    if name == "prepare":  # which notes anew that the tables are whole, for the tests that share the data
        (places["data"] / "checked.json").unlink()
    if name == "evaluate":
        shutil.rmtree(places["run"] / "features", ignore_errors=True)
    if name == "search":
        assert ran("index", places, "--quiet") == 0
    capfd.readouterr()
    (again := places["out"] / "again").mkdir(exist_ok=True)
    assert ran(name, places if name == "search" else {**places, "out": again}) == 0
    said = capfd.readouterr().err
    for description in STRETCHES[name]:
        assert re.search(rf"^{description}.*\d+/\d+ \[", said, re.MULTILINE), (description, said[-600:])
