"""The commands of the three-modality and IIC results: tiny runs of them, resumed, with their tables; and bad input."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

from sound_files import sound_set
from train_sets import tiny  # noqa: F401  (skips where the trainer's packages are missing)

from bench.studies import modalities
from cpr_kernels.train.pretrain.phases import make_plan
from cpr_kernels.train.pretrain.run_folder import config_of, encoder_files

pytest_plugins = ["train_fixtures"]


def sound_list(folder):
    """A list as the real one: data sets mixed, and classes of which one has no sound."""
    (folder / "videos").mkdir()
    sound_set(folder / "videos")
    table = folder / "list.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "dataset", "class", "split", "has_audio"])
        for path in sorted((folder / "videos").rglob("*.mkv")):
            split = "test" if "_g05_" in path.name else "train"
            label = path.parent.name
            writer.writerow([path.relative_to(folder), "ours", label, split, int(label != "mute")])
        writer.writerow(["elsewhere.mp4", "theirs", "low", "train", 1])
    return table


def test_rows_of_modalities_and_their_tables(tmp_path, capsys):
    out = tmp_path / "out"
    command = [
        "modalities", "--videos", str(sound_list(tmp_path)), "--dataset", "ours", "--with-sound", "--out", str(out),
        "--scale", "tiny", "--seeds", "0", "--rows", "rgb", "rgb+flow+audio", "--device", "cpu",
    ]  # fmt: skip
    assert modalities.main(command) == 0
    told = capsys.readouterr().out
    assert "10 videos of 2 classes" in told
    body = json.loads((out / "result.json").read_text())
    assert list(body["rows"]) == ["warm-up", "rgb", "rgb+flow+audio"]
    three = body["rows"]["rgb+flow+audio"]["0"]
    assert list(three["recall"]) == ["rgb", "flow", "audio", "all"]
    assert three["missing"] == {}
    assert set(three["mining"]["cycle2-audio"]) == {"mined", "rgb", "flow", "audio", "all"}
    assert "| rgb+flow+audio |" in (out / "result.md").read_text()
    assert "<html" in (out / "report.html").read_text()
    assert "<li>Seed 0 of 1; result.md has the tables of all.</li>" in (out / "report.html").read_text()
    mined = 100 * three["mining"]["cycle2-audio"]["mined"]["pmr"]
    row = next(line for line in told.splitlines() if "cycle2-audio" in line)
    assert [cell.strip() for cell in row.split("|")][1:4] == [
        "rgb+flow+audio",
        "cycle2-audio",
        f"{mined:.1f}",
    ]
    started = [config_of(out / "seed0" / row).init for row in ("rgb", "rgb+flow+audio")]
    assert started[0]["rgb"] == started[1]["rgb"] and set(started[1]) == {"rgb", "flow", "audio"}
    before = (out / "seed0" / "rgb" / "eval.json").stat().st_mtime_ns
    assert modalities.main(command) == 0  # all is there: nothing is trained again
    assert (out / "seed0" / "rgb" / "eval.json").stat().st_mtime_ns == before


def test_tables_have_each_seed_and_the_videos_without_a_view():
    def one(first, missing):
        recall = {"1": first, "5": 0.5, "10": 0.6, "20": 0.7}
        return {"recall": {"both": recall}, "probe": {"both": 0.8}, "missing": missing, "mining": {}}

    rows = {"rgb": {}, "rgb+audio": {"0": one(0.3, {"audio": 0.25}), "1": one(0.4, {"audio": 0.25})}}
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in modalities.tables(rows).splitlines()
    ]
    both = [
        "35.0 (30.0, 40.0)",
        *(f"{share} ({share}, {share})" for share in ("50.0", "60.0", "70.0", "80.0")),
    ]
    assert ["rgb+audio", "both", *both] in lines
    assert ["rgb+audio", "audio", "25.0"] in lines
    assert modalities.tables({"rgb": {}}) == "\n"


def test_every_row_has_a_plan_at_every_scale(tmp_path):
    for experiment, rows in modalities.EXPERIMENTS.items():
        for scale in modalities.FRAMES:
            base = replace(modalities.budget(experiment, scale, tmp_path, tmp_path), warm_up=0)
            for row in rows:
                config = modalities.row_config(base, experiment, 1, row)
                config.check()
                phases = 6 if experiment == "iic" else config.cycles * len(config.views)
                assert len(make_plan(config)) == phases, row
            warm_up = modalities.warm_up_config(replace(base, warm_up=3), experiment, 1, list(rows))
            warm_up.check()
            assert [phase.epochs for phase in make_plan(warm_up)] == [3]


def test_cpr_on_iic(clip_folder, tmp_path, capsys):
    row = "IIC + CPR, top 1 to 5"
    command = ["iic", "--videos", str(clip_folder), "--out", str(tmp_path), "--scale", "tiny", "--seeds", "1"]
    command += ["--rows", row, "--device", "cpu"]
    assert modalities.main(command) == 0
    body = json.loads((tmp_path / "result.json").read_text())["rows"][row]["1"]
    assert modalities.main(command) == 0, "the same command goes on, whatever the run wrote into its config"
    assert json.loads((tmp_path / "result.json").read_text())["rows"][row]["1"] == body
    assert list(body["recall"]) == ["rgb", "residual", "both"]
    start = config_of(modalities.folder(tmp_path, 1, row)).init
    assert start == {"rgb": encoder_files(tmp_path / "seed1" / "warm-up")[-1][1]["rgb"]}
    assert [phase for phase in body["mining"] if "mined" in body["mining"][phase]] == [
        f"cycle{n}" for n in (1, 2, 3, 4, 5)
    ]


def test_bad_input_is_a_sentence(tmp_path, capsys):
    (tmp_path / "list.csv").write_text("path,label\na.mp4,x\n")
    for options, says in (
        (["--videos", str(tmp_path), "--with-sound"], "need a CSV list"),
        (["--videos", str(tmp_path / "list.csv"), "--dataset", "ucf101"], "has no row left"),
        (["--videos", str(tmp_path / "list.csv"), "--rows", "smell"], "no row 'smell'"),
    ):
        assert modalities.main(["modalities", "--out", str(tmp_path / "o"), *options]) == 2
        assert says in capsys.readouterr().err
