"""Prints what the package and the named extras of pyproject.toml need: it is installed while the core compiles."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    from pip._vendor import tomli as tomllib


def needs(project: dict[str, Any], extra: str) -> Iterator[str]:
    """Yields the requirements of an extra, those of the extras that it names in its place."""
    for text in project["optional-dependencies"][extra]:
        own = re.fullmatch(rf"{project['name']}\[(.*)\]", text)
        if own is None:
            yield text
        else:
            for name in own.group(1).split(","):
                yield from needs(project, name)


def main(extras: list[str]) -> None:
    """Prints a requirement a line."""
    path = Path(__file__).parents[2] / "pyproject.toml"
    project = tomllib.loads(path.read_text())["project"]
    print(*project["dependencies"], *(text for extra in extras for text in needs(project, extra)), sep="\n")


if __name__ == "__main__":
    main(sys.argv[1:])
