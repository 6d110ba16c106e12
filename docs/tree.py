"""Writes the README's tree: every folder with the question that its ``__init__.py`` opens with.

``python docs/tree.py`` rewrites the block below the title "Where things are".
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TITLE = "## Where things are"
# folders of the package in the order of a call, then of a training; a folder that is not listed is an error
TRAIN = ("runtime", "data", "encoders", "views", "batches", "pretrain", "evaluate", "adapt", "pages")
ORDER = (
    *(
        "dispatch",
        "mining",
        "losses",
        "memory",
        "metrics",
        "networks",
        "tuning",
        "deploy",
        "cli",
        "train",
    ),
    *(f"train/{name}" for name in TRAIN),
)
INNER = (
    "mining/faiss",
    "reading",
    "cli/tables",
    "cli/mine",
    "cli/explore",
    "train/data/kinds",
    "train/pages/explorer",
    "train/pages/report",
    "train/pretrain/mining",
)  # not shown: one page is short
OTHERS = {
    "cpr_command": "the table of commands behind `cpr`, read without importing torch",
    "csrc": "kernels, without torch, for CPU and CUDA",
    "bench": "speed, memory and studies: `python -m bench --help`",
    "python_tests": "one table of cases that every backend runs; folders as in the package",
    "examples": "the ops in other people's code, one page each",
    "docs": "these pages; `make docs` builds the site",
}


def question(folder: Path) -> str:
    """Returns the first sentence of a folder's docstring."""
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    return re.split(r"(?<=[?.])\s", text.splitlines()[0])[0].rstrip(".")


def render() -> str:
    """Returns the tree.

    Raises:
        ValueError: a folder of the package is neither in `ORDER` nor in `INNER`, or one of these is no folder.
    """
    package = ROOT / "cpr_kernels"
    found = {init.parent.relative_to(package).as_posix() for init in package.rglob("__init__.py")} - {"."}
    known = {*ORDER, *INNER}
    if found != known:
        raise ValueError(f"ORDER and INNER in {Path(__file__).name}: {sorted(found ^ known)} is not in both")
    lines = [("cpr_kernels/", "the library")]
    for name in ORDER:
        lines.append((f"{'  ' * (name.count('/') + 1)}{name.split('/')[-1]}/", question(package / name)))
    lines += [(f"{name}/", about) for name, about in OTHERS.items()]
    return "\n".join(f"{name:<16}{about}" for name, about in lines)


def main() -> None:
    """Rewrites the README."""
    page = ROOT / "README.md"
    before, _, rest = page.read_text(encoding="utf-8").partition(TITLE)
    after = rest.split("```", 2)[2]
    page.write_text(f"{before}{TITLE}\n\n```\n{render()}\n```{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
