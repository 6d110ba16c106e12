"""The demo with several seeds: common warm-ups, and paired differences with their intervals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.studies import demo
from cpr_kernels.train.data.synthetic import SyntheticSettings
from cpr_kernels.train.demo import Demo
from cpr_kernels.train.pretrain.run_folder import config_of


def run(r1: float, pmr: float | None = None) -> dict[str, Any]:
    mining = {"rgb": {"mined": {"pmr": pmr}}, "flow": {"mined": {"pmr": pmr}}} if pmr is not None else {}
    return {"recall": {view: {"1": r1} for view in demo.VIEWS}, "mining": mining}


RESULTS = {
    "warm-up": {"0": run(0.2), "1": run(0.3), "2": run(0.4)},
    "infonce": {"0": run(0.3), "1": run(0.35), "2": run(0.4)},
    "one view": {"0": run(0.3, 0.2), "1": run(0.4, 0.3), "2": run(0.5, 0.4)},
    "cascade": {"0": run(0.4, 0.5), "1": run(0.55, 0.6), "2": run(0.7, 0.7)},
}


def test_differences_are_paired_by_seed() -> None:
    gain, error, half = demo.paired(RESULTS, "cascade", "infonce", "rgb")  # 0.1, 0.2, 0.3
    assert (gain, error) == (pytest.approx(0.2), pytest.approx(0.1 / 3**0.5))
    assert half == pytest.approx(4.303 * 0.1 / 3**0.5)
    mixed = {"a": {"0": run(0.5)}, "b": {"0": run(0.2)}}
    mixed["a"]["0"]["recall"]["flow"]["1"] = 0.8  # 0.3 of one view, 0.6 of the other
    assert demo.paired(mixed, "a", "b", "rgb", "flow")[0] == pytest.approx(0.45)
    text = demo.markdown({"results": RESULTS, "seeds": [0, 1, 2]})
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    assert ["cascade", "55.0", "55.0", "55.0", "60.0", "60.0"] in cells
    assert ["cascade - infonce", *["+20.0 ± 24.8 (se 5.8)"] * 4] in cells


@pytest.mark.parametrize(
    ("degrees", "quantile"), [(1, 12.706), (9, 2.262), (12, 2.179), (30, 2.042), (500, 1.965)]
)
def test_students_quantile(degrees: int, quantile: float) -> None:
    assert demo.student(degrees) == pytest.approx(quantile, rel=0.01)


def test_methods_start_from_the_seeds_warm_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "METHODS", {name: demo.METHODS[name] for name in ("infonce", "cascade")})
    monkeypatch.setattr(demo, "COMPARED", (("cascade", "infonce"),))
    clips = SyntheticSettings(sources=3, test_sources=1, clips=1, frames=10, size=32)
    text = demo._work(tmp_path, [4], Demo(infonce_epochs=1, cycle_epochs=1), clips)
    cascade, infonce = (config_of(tmp_path / "seed4" / name) for name in ("cascade", "infonce"))
    assert cascade.init == infonce.init and cascade.init["rgb"].parts[-3:-1] == ("warm-up", "encoders")
    assert cascade.cycle_epochs == infonce.cycle_epochs == 1 and cascade.seed == 4
    document = json.loads((tmp_path / "demo.json").read_text())
    assert list(document["results"]) == ["warm-up", "infonce", "cascade"] and document["seeds"] == [4]
    assert (tmp_path / "demo.md").read_text() == text
