"""The layers of csrc: includes go down, never up and never in a circle; kernels call nothing of the dispatcher."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from places import ROOT

CSRC = ROOT / "csrc"
pytestmark = pytest.mark.skipif(not CSRC.is_dir(), reason="the sources are not beside the tests")

# A file includes files of its own entry and of later ones; folders of one entry never include each other. Files that
# stand in csrc/cpu and csrc/cuda themselves are named one by one.
LAYERS = [
    {"bindings"},
    {"cpu/dispatch.cpp"},
    {"cpu/cascade", "cpu/loss", "cpu/peak_flops.cpp", "cpu/enqueue.cpp", "cpu/plan_steps.cpp", "cuda/cascade",
     "cuda/loss", "cuda/enqueue.cu"},
    {"cuda/prepare.h", "cuda/tiny"},
    {"cuda/score.h", "cuda/select"},
    {"cuda/split_rows.h"},
    {"cpu/select"},
    {"cpu/scores"},
    {"cpu/arena.h"},
    {"cpu/simd", "cpu/workspace", "cpu/ids.h", "cpu/kernels.h", "cuda/device"},
    {"cuda/device/emulate"},
    {""},  # what CPU and CUDA share
]  # fmt: skip
MAX_FILES = 13
MAX_LINES = 400
OF_THE_DISPATCHER = re.compile(r"\b(\w+_cpu|chosen|retry_\w+|plan_cascade|plan_exhaustive)\(")


def sources() -> list[Path]:
    return sorted(path for path in CSRC.rglob("*") if path.suffix in (".h", ".cpp", ".cu"))


def room_of(path: Path) -> str:
    """The entry of LAYERS that a file belongs to: its folder, or itself where it stands beside folders."""
    name, folder = path.relative_to(CSRC).as_posix(), path.parent.relative_to(CSRC).as_posix()
    if folder in ("cpu", "cuda"):
        return "cpu/workspace" if name.startswith("cpu/workspace.") else name
    return "" if folder == "." else folder


def includes(path: Path) -> list[Path]:
    """The files of csrc that a file includes."""
    named = re.findall(r'^\s*#include "([^"]+)"', path.read_text(), flags=re.MULTILINE)
    found = [(path.parent / name).resolve() for name in named]
    missing = [target for target in found if not target.is_file()]
    assert not missing, f"{path}: includes {missing}"
    return found


def level_of(path: Path) -> int:
    levels = [number for number, rooms in enumerate(LAYERS) if room_of(path) in rooms]
    assert len(levels) == 1, f"{path.relative_to(CSRC)}: {room_of(path)!r} has no layer; add it to LAYERS"
    return levels[0]


def test_includes_go_down() -> None:
    for path in sources():
        for target in includes(path):
            if room_of(path) != room_of(target):
                assert level_of(target) > level_of(path), (
                    f"{path.relative_to(CSRC)} includes {target.relative_to(CSRC)}, which is not below it"
                )


def test_no_file_includes_itself_through_others() -> None:
    graph = {path: includes(path) for path in sources()}
    done: set[Path] = set()

    def visit(path: Path, above: tuple[Path, ...]) -> None:
        assert path not in above, " -> ".join(p.name for p in (*above[above.index(path) :], path))
        if path not in done:
            for target in graph[path]:
                visit(target, (*above, path))
            done.add(path)

    for path in graph:
        visit(path, ())


def test_kernels_call_nothing_of_the_dispatcher() -> None:
    """Of the functions that dispatch.cpp and planner.cpp define, kernels that it calls use none."""
    dispatcher = {CSRC / "cpu" / "dispatch.cpp", *(CSRC / "cpu" / "cascade").glob("planner.*")}
    defined = {name for path in dispatcher for name in OF_THE_DISPATCHER.findall(path.read_text())}
    assert {"cascade_topk_cpu", "plan_cascade", "retry_exhaustively", "chosen"} <= defined
    for path in set(sources()) - dispatcher:
        if path.is_relative_to(CSRC / "cpu") and path.name not in ("enqueue.cpp", "plan_steps.cpp"):
            assert not OF_THE_DISPATCHER.findall(path.read_text()), path


def test_no_crowds_and_no_long_files() -> None:
    for folder in {path.parent for path in sources()}:
        assert len(list(folder.glob("*.*"))) <= MAX_FILES, folder
    for path in sources():
        assert len(path.read_text().splitlines()) <= MAX_LINES, path


PRIVATE_WORDS = r"\b(told|door|settle[sd]?|supers?|coarse|coded|ask_for|long way|short way|judging)\b"


def test_words_of_the_field() -> None:
    """Words that only this repository knew have not come back."""
    for path in sources():
        found = re.findall(PRIVATE_WORDS, path.read_text())
        assert not found, f"{path}: {found}"
