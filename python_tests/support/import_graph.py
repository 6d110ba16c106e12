"""Reads every import of the repository's Python files: at the top, inside functions and under TYPE_CHECKING."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from places import ROOT

PACKAGES = ("cpr_kernels", "bench")


def files(package: str) -> list[Path]:
    """Returns every Python file of a package."""
    return sorted(path for path in (ROOT / package).rglob("*.py"))


def module_of(path: Path) -> str:
    """Returns `cpr_kernels.mining` for cpr_kernels/mining/__init__.py, `cpr_kernels.ops` for cpr_kernels/ops.py."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for package in PACKAGES for path in files(package)}
MODULES["cpr_kernels._core"] = ROOT / "cpr_kernels" / "_core.pyi"


def imported(path: Path, text: str | None = None) -> Iterator[str]:
    """Yields the modules of ours that a file imports; `from .x import y` is x.y where that is a module, else x."""
    folder = list(path.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(path.read_text() if text is None else text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in PACKAGES)
        elif isinstance(node, ast.ImportFrom):
            base = folder[: len(folder) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            if source.split(".")[0] in PACKAGES:
                for alias in node.names:
                    full = f"{source}.{alias.name}"
                    yield full if full in MODULES else source


def graph(package: str) -> dict[str, set[str]]:
    """Returns {module: the modules of ours that it imports}, itself left out."""
    return {module_of(path): set(imported(path)) - {module_of(path)} for path in files(package)}


def room(module: str, folder: str) -> str:
    """Returns the file or folder directly below `folder` that holds a module; `__init__` for the folder itself."""
    return "__init__" if module == folder else module.removeprefix(f"{folder}.").split(".")[0]


def edges(folder: str) -> set[tuple[str, str]]:
    """Returns (room, imported room) pairs between different rooms of a folder."""
    found = set()
    for module, targets in graph(folder.split(".")[0]).items():
        for target in targets:
            if all(name == folder or name.startswith(f"{folder}.") for name in (module, target)):
                found.add((room(module, folder), room(target, folder)))
    return {(a, b) for a, b in found if a != b}


def circles(package: str) -> list[list[str]]:
    """Returns the groups of modules that import each other, by Tarjan's algorithm."""
    links, found = graph(package), []
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for target in sorted(links.get(module, ())):
            if target not in index:
                visit(target)
                low[module] = min(low[module], low[target])
            elif target in stack:
                low[module] = min(low[module], index[target])
        if low[module] == index[module]:
            group = [stack.pop()]
            while group[-1] != module:
                group.append(stack.pop())
            if len(group) > 1:
                found.append(sorted(group))

    for module in sorted(links):
        if module not in index:
            visit(module)
    return found
