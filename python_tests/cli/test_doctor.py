"""`cpr doctor` says what is true, and fails when an answer is wrong; the stub of the core says what the core has."""

from __future__ import annotations

import ast
import json
import re
import sys
from pathlib import Path

import pytest
import torch
from places import ROOT

import cpr_kernels
from cpr_kernels import _core, mining
from cpr_kernels.__main__ import main
from cpr_kernels.cli import doctor

STUB = Path(cpr_kernels.__file__).with_name("_core.pyi")


def test_a_healthy_installation_passes(capsys):
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^all \d+ tests passed$", shown, re.MULTILINE)
    assert f"torch {torch.__version__}" in shown and _core.cpu_isa() in shown
    assert "-> native" in shown and "reference  can run" in shown


def test_json_holds_the_same_facts(capsys):
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["core"]["file"] == _core.__file__
    assert found["backends"]["cpu"]["cascade_topk"]["native"] is None
    assert {test["name"].split(",")[0] for test in found["tests"]} >= {"cascade_topk", "mil_nce"}
    assert all(test["error"] is None for test in found["tests"])


def test_a_wrong_answer_is_found_and_is_exit_status_1(monkeypatch, capsys):
    right = mining.native.run

    def swapped(call):
        indices, scores = right(call)
        return indices.flip(1), scores

    monkeypatch.setattr(mining.native, "run", swapped)
    assert main(["doctor"]) == 1
    shown = capsys.readouterr().out
    assert "WRONG" in shown and "mined entries differ from the reference's" in shown
    assert "1 of " in shown.splitlines()[-1]


def test_a_backend_that_breaks_is_told_not_raised(monkeypatch):
    def broken(call):
        raise RuntimeError("no such\nsymbol")

    monkeypatch.setattr(mining.native, "run", broken)
    [told] = [test for test in doctor.self_test(torch.device("cpu")) if test["error"]]
    assert told["error"] == "RuntimeError: no such symbol"


def test_without_the_test_nothing_is_run(monkeypatch):
    monkeypatch.setattr(doctor, "self_test", lambda device: pytest.fail("was run"))
    assert doctor.examine(test=False)["tests"] == []


def test_two_openmp_runtimes_are_seen(tmp_path):
    maps = tmp_path / "maps"
    maps.write_text(
        "7f00-7f01 r-xp 00000000 08:01 1  /a/libgomp.so.1\n7f01-7f02 r--p 00000000 08:01 1  /a/libgomp.so.1\n"
        "7f02-7f03 r-xp 00000000 08:01 2  /b/libgomp-f9a9ad78.so.1.0.0\n7f03-7f04 rw-p 0 00:00 0\n"
        "7f04-7f05 r-xp 00000000 08:01 3  /usr/lib/libomptarget.so\n"
    )
    assert doctor.openmp_runtimes(maps) == ["/a/libgomp.so.1", "/b/libgomp-f9a9ad78.so.1.0.0"]
    assert doctor.openmp_runtimes(tmp_path / "none") == []


def test_the_extras_it_looks_for_are_those_of_the_package():
    if sys.version_info < (3, 11):
        pytest.skip("reads pyproject.toml with tomllib, which Python 3.10 lacks")
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for name, (_, packages) in doctor.EXTRAS.items():
        assert sorted(packages) == sorted(re.split("[>=<]", text)[0] for text in extras[name]), name


def functions_of_the_stub():
    """{name: number of arguments}."""
    body = ast.parse(STUB.read_text()).body
    return {
        node.name: len(node.args.posonlyargs) + len(node.args.args)
        for node in body
        if isinstance(node, ast.FunctionDef)
    }


def test_the_stub_names_every_function_of_the_core_with_its_arguments():
    typed = functions_of_the_stub()
    built = {name for name in dir(_core) if not name.startswith("__")}
    assert built <= set(typed)
    assert all(name.startswith("cuda_") for name in set(typed) - built)
    for name in built:
        signature = str(getattr(_core, name).__doc__).splitlines()[0]
        assert len(re.findall(r"\barg\d+:", signature)) == typed[name], signature


def test_the_stub_names_every_cuda_function_that_the_sources_bind():
    sources = ROOT / "csrc" / "bindings" / "cuda.h"
    if not sources.is_file():
        pytest.skip("the sources are not beside the tests")
    bound = set(re.findall(r'm\.def\(\s*"(cuda_\w+)"', sources.read_text()))
    assert bound == {name for name in functions_of_the_stub() if name.startswith("cuda_")}


def test_the_citation_names_this_version():
    text = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {cpr_kernels.__version__}\n" in text
    assert f"## [{cpr_kernels.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_a_processor_without_kernels_of_its_own_is_named():
    found = doctor.examine(test=False)
    assert ("no kernels of its own" in doctor.as_text(found)) == (found["core"]["in_use"] == "generic")
    found["core"]["in_use"] = "generic"  # as on ARM
    assert "no kernels of its own for" in doctor.as_text(found)
