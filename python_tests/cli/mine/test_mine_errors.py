"""`cpr mine` and the console script: what is written and what is not, and one line for every error."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from forked import run_python
from mine_data import N, make_data, run

from cpr_kernels.__main__ import COMMANDS, main


@pytest.fixture
def data(tmp_path):
    return make_data(tmp_path)


def test_nothing_is_overwritten_without_force(data, capsys):
    out = data.folder / "mined.csv"
    out.write_text("precious")
    run(data.npz, "--stages", 3, "--out", out, status=2)
    assert "is there already; add --force" in capsys.readouterr().err
    assert out.read_text() == "precious"
    run(data.npz, "--stages", 3, "--out", out, "--force")
    assert out.read_text().startswith(
        "query,rank,index,score,query_id,id,query_label,label,query_clip,clip\n"
    )


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".csv"])
def test_a_failed_write_leaves_the_old_file(data, capsys, monkeypatch, suffix):
    out = data.folder / f"mined{suffix}"
    run(data.npz, "--stages", 3, "--out", out)
    before = {path.name: path.read_bytes() for path in data.folder.iterdir()}

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    run(data.npz, "--stages", 5, "--topk", 2, "--out", out, "--force", status=2)
    assert "No space left on device" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in data.folder.iterdir()} == before


BAD = [
    ([], "give FILE, or --view"),
    (["{f}/absent.npz"], "absent.npz: no such file"),
    (["{f}/plain"], "cannot read a file without suffix; give .npz, .npy, "),
    (["{f}/x.pkl"], "cannot read .pkl; give .npz, .npy, .safetensors, .pt, "),
    (["s3://bucket/x.npy"], "is an address, and only files are read; copy it here first"),
    (["{f}/broken.npz"], "broken.npz: not a readable .npz file"),
    (["{f}/broken.npy"], "broken.npy: not a readable .npy file"),
    (["{f}/objects.npy"], "holds Python objects"),
    (["{f}/video.npy"], "--views: no array of shape [N, D] of floats found; there is video str [60]"),
    (["{t}", "--views", "flow,depth"], "--views: no array 'depth'; there is flow float32 [60, 8]"),
    (["{t}", "--views", "flow,label"], "--views: 'label' must hold numbers of shape [N, D], got int64 [60]"),
    (["{t}", "--view", "flow"], "--view: expected NAME=FILE, got 'flow'"),
    (["{t}", "--view", "flow={f}/flow.npy"], "--view: 'flow' is given twice"),
    (["--view", "x={t}"], "--view: no array 'x'"),
    (["--view", "a={f}/flow.npy", "--view", "b={f}/short.npy"], "--views: 'b' has 9 rows, but 'a' has 60"),
    (["{t}", "--ids", "nobody"], "--ids: no array 'nobody'"),
    (["{t}", "--ids", "flow"], "--ids: 'flow' must have shape [60], one a row, got [60, 8]"),
    (["{t}", "--ids", "{f}/short_ids.npy"], "must have shape [60], one a row, got [9]"),
    (["{f}/fractions.npz", "--ids", "half"], "--ids: 'half' must hold integers or strings, got fractions"),
    (
        ["{f}/fractions.npz", "--labels", "thing"],
        "--labels: 'thing' must hold integers or strings, got object",
    ),
    (["{t}", "--labels", "nobody"], "--labels: no array 'nobody'"),
    (["{t}", "--query-ids", "video"], "--query-ids: needs --queries or --query-view"),
    (["{t}", "--queries", "{f}/absent.npz"], "absent.npz: no such file"),
    (["{t}", "--queries", "{f}/flow.npy"], "--queries: no array 'rgb'"),
    (
        ["{f}/flow.npy", "--query-view", "flow={f}/rgb.npy"],
        "--queries: 'flow' has D=6, but the entries have D=8",
    ),
    (["{t}", "--queries", "{f}/q.npz", "--query-ids", "clip"], "--ids: must be integers on both sides"),
    (["{t}", "--queries", "{f}/q.npz", "--query-ids", "clip,video"], "--query-ids: 1 column(s) expected"),
    (
        ["{f}/flow.npy", "--query-view", "flow={f}/flow.npy", "--query-ids", "x"],
        "--query-ids: the entries have no ids",
    ),
    (["{t}", "--schedule", "flow:9", "--topk", "3"], "--topk: does not go with --schedule"),
    (["{t}", "--schedule", "flow"], "schedule: cannot read 'flow'"),
    (["{t}", "--schedule", "depth:5"], "judges by view 'depth', but queries and keys hold 'flow', 'rgb'"),
    (["{t}", "--schedule", "flow:5,rgb:9"], "counts must not grow"),
    (["{t}", "--stages", "7"], "num_keys=60, ratio=1/2, stages=7 keep 0 entries at stage 6"),
    (["{t}", "--order", "flow,depth"], "--order: no view 'depth'; there is flow, rgb"),
    (["{t}", "--preset", "oracle", "--stages", "3"], "--stages: only --preset cpr has several stages"),
    (["{t}", "--preset", "other"], "invalid choice 'other' for argument '--preset'"),
    (["{t}", "--topk", "0"], "--topk: must be >= 1, got 0"),
    (["{t}", "--topk", "many"], "Error parsing --topk"),
    (["{t}", "--stages", "0"], "stages must be an integer >= 1, got 0"),
    (["{t}", "--ratio", "half"], "--ratio: expected a number such as 0.5 or 1/3, got 'half'"),
    (["{t}", "--ratio", "2"], "ratio must lie in (0, 1], got 2"),
    (["{t}", "--stages", "3", "--backend", "abacus"], "backend must be 'auto' or one of"),
    (["{t}", "--chunk", "0"], "--chunk: must be >= 1, got 0"),
    (["{t}", "--threads", "0"], "--threads: must be >= 1, got 0"),
    (["{t}", "--sample", "-1"], "--sample: must be >= 0, got -1"),
    (["{t}", "--dtype", "float8"], "invalid choice 'float8' for argument '--dtype'"),
    (
        ["{t}", "--out", "{f}/m.txt"],
        "--out: cannot write 'm.txt'; end it in .npz, .npy, .csv, .parquet, .safetensors",
    ),
    (["{t}", "--out", "{f}/none/m.npz"], "does not exist; make it first"),
    (["{t}", "--wrong"], "Unrecognized options: --wrong"),
    (["{t}", "--stage", "3"], "Unrecognized options: --stage, 3; did you mean --stages?"),
]


@pytest.mark.parametrize(("arguments", "says"), BAD, ids=[says[:40] for _, says in BAD])
def test_an_error_is_one_line_that_names_the_argument(data, capsys, arguments, says):
    f = data.folder
    (f / "broken.npz").write_bytes(b"PK\x03\x04 this is no archive")
    (f / "broken.npy").write_bytes(b"\x93NUMPY\x01\x00 nor this an array")
    np.save(f / "objects.npy", np.array([{}, []], dtype=object), allow_pickle=True)
    np.save(f / "short.npy", data.arrays["flow"][:9])
    np.save(f / "short_ids.npy", np.arange(9))
    odd = {"half": np.arange(N) / 2, "thing": np.array([None] * N)}
    np.savez(f / "fractions.npz", flow=data.arrays["flow"], **odd)
    before = sorted(f.iterdir())
    run(*(a.format(f=f, t=data.npz) for a in arguments), status=2)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("cpr mine: ") and printed.err.count("\n") == 1
    assert says in printed.err
    assert sorted(f.iterdir()) == before


def test_a_missing_package_is_named(data, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    (data.folder / "t.safetensors").write_bytes(b"")
    run(data.folder / "t.safetensors", status=2)
    assert "needs safetensors: pip install safetensors" in capsys.readouterr().err


def test_help_lists_every_command(capsys):
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(f"  {name}" in printed for name in COMMANDS)
    assert len(printed.splitlines()) <= 27
    assert main([]) == 2
    assert main(["mine", "--help"]) == 0
    assert capsys.readouterr().out.count("cpr mine ") >= 3  # usage and two examples


def test_unknown_commands_and_missing_extras(capsys, monkeypatch):
    assert main(["dig"]) == 2
    assert capsys.readouterr().err == f"cpr: no command 'dig'; expected one of {', '.join(COMMANDS)}\n"
    assert main(["pretrian"]) == 2
    assert "no command 'pretrian'; did you mean 'pretrain'? expected one of" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "tyro", None)
    assert main(["prepare", "--help"]) == 2
    assert "pip install 'cpr_kernels[train]'" in capsys.readouterr().err


def test_traceback_and_interrupt(data, capsys, monkeypatch):
    with pytest.raises(ValueError, match="no such file"):
        main(["--traceback", "mine", "absent.npz"])

    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("cpr_kernels.cli.mine.mine.cascade_topk", stopped)
    assert main(["mine", data.npz, "--stages", "3"]) == 130
    assert capsys.readouterr().err == "cpr mine: interrupted\n"


def test_as_a_program(data):
    def program(*arguments):
        return run_python("-m", "cpr_kernels", *arguments, cwd=data.folder)

    made = program("mine", "t.npz", "--stages", "3", "--topk", "4", "--out", "mined.npz")
    assert (made.returncode, made.stderr) == (0, "")
    assert "PMR" in made.stdout and "written   mined.npz" in made.stdout
    wrong = program("mine", "t.npz", "--stages", "many")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("cpr mine: Error parsing --stages: ") and "'many'" in wrong.stderr
    assert wrong.stderr.endswith(" (see cpr mine --help)\n") and wrong.stderr.count("\n") == 1
    words = [sys.executable, "-m", "cpr_kernels", "--version"]
    assert subprocess.run(words, capture_output=True, text=True).stdout.startswith("cpr_kernels ")
