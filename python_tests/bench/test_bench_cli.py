"""The table of commands, and that imports between the folders of bench go down only."""

from __future__ import annotations

import subprocess
import sys

import pytest
from bench_tools import ROOT
from import_graph import circles, edges

from bench import cli
from bench.harness.workloads import OPS, workloads_of

# a folder or file of bench imports from its own and from later sets; those of one set never import each other
LAYERS = [
    {"__main__"}, {"cli"}, {"studies"}, {"plans"}, {"ops", "scale", "data"}, {"peers", "sharded", "tables"}, {"harness"}, {"__init__"},
]  # fmt: skip


def test_imports_go_down_and_in_no_circle():
    level = {name: i for i, names in enumerate(LAYERS) for name in names}
    assert edges("bench") and not [pair for pair in edges("bench") if level[pair[0]] >= level[pair[1]]]
    assert circles("bench") == []


def test_help_has_a_sentence_for_each_command(capsys):
    assert cli.main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert set(OPS) < set(cli.COMMANDS)
    for name, (_, sentence) in cli.COMMANDS.items():
        assert f"  {name:<11}  {sentence}" in lines and sentence.endswith(".")


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_command_explains_its_options(name, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([name, "--help"])
    assert stop.value.code == 0
    shown = "measure" if name in OPS else name
    assert capsys.readouterr().out.startswith(f"usage: python -m bench {shown} ")


def test_a_command_imports_no_other():
    code = "import sys; from bench import cli; cli.main(['sharded']); print(*(m for m in sys.modules if m[:6] == 'bench.'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {name.split(".")[1] for name in done.stdout.splitlines()[-1].split()}
    assert loaded == {"cli", "sharded", "harness"}


def test_an_op_is_a_command_of_its_own(capsys):
    printed = []
    for arguments in (["loss"], ["measure", "--op", "loss"], ["--op", "loss"]):
        assert cli.main([*arguments, "--list"]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] == printed[2]
    assert printed[0].startswith("loss\n") and printed[0].count("\n") == 1 + len(workloads_of("loss"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["lose"], "no command 'lose'; expected one of measure, cascade"),
        (["loss", "--op=cascade"], "--op: `loss` names"),
    ],
)
def test_a_wrong_command_is_a_sentence(arguments, says, capsys):
    assert cli.main(arguments) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("bench: ") and says in printed and printed.count("\n") == 1
