"""The console script: help without torch, examples that exist, completion, --quiet, --json and --force everywhere."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mine_data import make_data

from cpr_command import COMMANDS, main
from cpr_kernels.cli import completion, predict, train

ALL_EXTRAS = all(importlib.util.find_spec(name) for name in ("av", "cv2", "lmdb", "safetensors"))
needs_extras = pytest.mark.skipif(
    not ALL_EXTRAS, reason="the commands' packages: pip install 'cpr_kernels[train,deploy]'"
)


def test_help_version_and_a_wrong_command_import_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from cpr_command import main; main(['--help']); main(['--version']); main(['pretrian']); "
        "print([name for name in ('torch', 'numpy', 'tyro', 'cpr_kernels') if name in sys.modules])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    lines = ran.stdout.splitlines()
    assert (
        lines[-1] == "[]" and lines[-2].startswith("cpr_kernels ") and "did you mean 'pretrain'" in ran.stderr
    )


@needs_extras
@pytest.mark.parametrize("name", COMMANDS)
def test_help_begins_with_examples_whose_options_exist(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    examples = COMMANDS[name].examples
    assert examples and all(example.split()[:2] in (["cpr", name], ["cpr", "demo"]) for example in examples)
    assert main([name, "--help-all" if name == "pretrain" else "--help"]) == 0
    shown = capsys.readouterr().out
    lines = [line.strip() for line in shown.splitlines() if line.strip()]
    assert lines[1] == examples[0] and lines[0].startswith("usage: cpr")
    options = {word for example in examples for word in re.findall(r"(?<=\s)--[\w.-]+", example)}
    assert not {one for one in options - {"--preset", "--resume", "--json"} if one not in shown}
    assert "--quiet prints errors only" in shown


@needs_extras
@pytest.mark.parametrize("columns", ["80", "300"])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_rare_options_of_pretrain_are_apart(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: str, encoding: str
) -> None:
    from cpr_kernels.cli import arguments

    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr(arguments._Text, "encoding", encoding)
    assert main(["pretrain", "--help"]) == 0
    short = capsys.readouterr().out
    assert main(["pretrain", "--help-all"]) == 0
    whole = capsys.readouterr().out
    for option in ("--optim.lr", "--augment.", "--iic.negatives"):
        assert option not in short and option in whole
    for option in ("--data", "--clips.batch", "--mining.infonce-siblings", "--logger"):
        assert option in short and option in whole
    assert short.splitlines()[-1] == "More options, of optim, augment, iic: cpr pretrain --help-all"


@needs_extras
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_every_command_and_its_options(
    shell: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(name in script for name in COMMANDS)
    assert "cycle-epochs" in script and "query-view" in script and "jpeg-quality" in script
    if shutil.which(shell):
        (tmp_path / "script").write_text(script)
        subprocess.run([shell, "-n", str(tmp_path / "script")], check=True)


def test_bash_completes(tmp_path: Path) -> None:
    (tmp_path / "script").write_text(completion.script("bash"))
    code = f"""source {tmp_path}/script
    f=$(complete -p cpr | sed 's/.*-F \\([^ ]*\\).*/\\1/')
    try() {{ COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${{#COMP_LINE}}; COMPREPLY=(); $f; echo "${{COMPREPLY[@]}}"; }}
    try cpr com
    try cpr mine --que
    """
    ran = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
    first, second = ran.stdout.splitlines()
    assert first.split() == ["completion"]
    assert set(second.split()) == {"--queries", "--query-view", "--query-ids", "--query-labels"}


def test_quiet_and_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_data(tmp_path)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)  # where a bar would be shown
    assert main(["mine", data.npz, "--stages", "3", "--quiet", "--out", str(tmp_path / "m.npz")]) == 0
    assert capsys.readouterr() == ("", "") and np.load(tmp_path / "m.npz")["indices"].shape == (60, 5)
    assert main(["mine", data.npz, "--stages", "3", "--quiet", "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["entries"] == 60 and printed.err == ""
    assert main(["mine", data.npz, "--stages", "99", "--quiet"]) == 2
    assert capsys.readouterr().err.startswith("cpr mine: ")
    assert main(["mine", data.npz, "--stages", "3"]) == 0  # the next command is not quiet
    assert "PMR" in capsys.readouterr().out


@needs_extras
def test_a_quiet_command_prints_its_error_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "a.txt").write_bytes(b"no video")
    assert main(["prepare", "--videos", str(tmp_path / "v"), "--out", str(tmp_path / "d"), "--quiet"]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and "no video found" in printed.err


@pytest.mark.parametrize(
    "words",
    [
        ["predict", "model.cpr", "a.mp4", "--out", "there.csv"],
        ["search", "model.cpr", "known", "a.mp4", "--out", "there.csv"],
        ["report", "run", "--out", "there.html"], ["report", "run", "--out", "page.html", "there: page_inside.html"],
        ["explore", "run", "--out", "there.html"], ["export", "run", "--out", "there.cpr"],
        ["mine", "t.npz", "--out", "there.csv"], ["mine", "t.npz", "--report", "there.html"],
        ["mine", "t.npz", "--out", "a.npy", "there: a.scores.npy"], ["tune", "t.npz", "--out", "there.json"],
        ["tune", "t.npz", "--out", "a.json", "there: a.safetensors"], ["tune", "t.npz", "--plot", "there.svg"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_file_is_replaced_only_with_force(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("av")
    monkeypatch.chdir(tmp_path)
    *words, last = words
    words, there = (words, last[7:]) if last.startswith("there: ") else ([*words, last], last)
    Path(there).write_text("precious")
    option = next(word for word in reversed(words) if word.startswith("--"))
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said == f"cpr {words[0]}: {option}: {there} is there already; add --force to replace it\n"
    assert main([*words, "--force"]) == 2  # refused for what is missing
    assert "--force" not in capsys.readouterr().err and Path(there).read_text() == "precious"


FOLDERS = {  # what each command does with a folder that is there
    "prepare": "continued by the same command", "finetune": "continued by the same command",
    "update": "continued by the same command", "demo": "continued by the same command",
    "index": "added to", "evaluate": "measured again", "pretrain": "--resume", "adapt": "--resume",
}  # fmt: skip
NO_FILES = {"doctor", "completion"}


def test_every_command_is_of_one_kind_of_output() -> None:
    forced = {"predict", "search", "report", "explore", "export", "mine", "tune"}
    assert {*COMMANDS} == forced | {*FOLDERS} | NO_FILES


@pytest.mark.parametrize(
    "words", [["pretrain", "--data", "none"], ["adapt", "t.npz", "--ids", "none"]], ids=lambda words: words[0]
)
def test_a_folder_of_a_job_is_continued_only_by_resume(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("av")
    monkeypatch.chdir(tmp_path)
    make_data(tmp_path)
    Path("job").mkdir()
    Path("job/config.json").write_text("{}")
    assert main([*words, "--out", "job"]) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(
        rf"cpr {words[0]}: out: job holds a (run|job) already; .*--resume.* give another --out\n", said
    )
    assert Path("job/config.json").read_text() == "{}"


def test_json_is_another_name_of_lines_of_json() -> None:
    output = predict.Output(json=True)
    assert predict.format_of(output) == "jsonl" and predict.format_of(predict.Output(format="csv")) == "csv"
    with pytest.raises(ValueError, match="--json: does not go with --format csv"):
        predict.format_of(predict.Output(json=True, format="csv"))


def test_an_extra_that_is_missing_leaves_its_command_without_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "report", lambda argv: importlib.import_module("no_such_package"))
    assert completion.settings_of("report") is completion.Bare
    assert completion.settings_of("mine").__name__ == "Mine"


def test_a_quiet_command_leaves_the_process_as_loud_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    from cpr_kernels.progress import say

    assert main(["doctor", "--no-test", "--quiet"]) == 0
    say("heard")
    assert capsys.readouterr().err == "heard\n"
