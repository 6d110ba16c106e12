"""Turns command lines into the dataclasses that hold a command's settings."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any


def positional_as_option(argv: list[str], option: str) -> list[str]:
    """Returns `RUN ... --more` as `--option RUN ... --more`: leading words become the values of an option."""
    return [option, *argv] if argv and not argv[0].startswith("-") else argv


def parse(
    kind: Any, argv: list[str], name: str, defaults: dict[str, Any] | None = None, more: str = ""
) -> Any:
    """Returns an instance of a dataclass made from arguments.

    `--help` and wrong arguments leave by SystemExit, as in argparse. `defaults` replace the dataclass's own, `more` is
    printed below its docstring.
    """
    import tyro

    description = f"{inspect.cleandoc(kind.__doc__)}\n\n{more}".strip()
    required = {
        f.name: tyro.MISSING
        for f in dataclasses.fields(kind)
        if f.default is f.default_factory is dataclasses.MISSING
    }
    default = kind(**{**required, **defaults}) if defaults else None
    extra = {} if default is None else {"default": default}
    return tyro.cli(kind, args=argv, prog=f"cpr {name}", description=description, **extra)


def pop_option(argv: list[str], option: str) -> tuple[str | None, list[str]]:
    """Returns the value of an option, and the arguments without it."""
    for i, argument in enumerate(argv):
        if argument == option and i + 1 < len(argv):
            return argv[i + 1], [*argv[:i], *argv[i + 2 :]]
        if argument.startswith(option + "="):
            return argument.split("=", 1)[1], [*argv[:i], *argv[i + 1 :]]
    return None, argv
