"""Turns command lines into the dataclasses that hold a command's settings."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import re
from collections.abc import Sequence
from typing import Any

import tyro

RULE = re.compile("[-─╭╮╰╯+]{4,}")  # of the frame around a message, also where it is drawn in ASCII
MEANT = re.compile(r"Perhaps you meant:\W*(?P<option>--[\w.-]+)")


def parse(
    kind: Any, argv: Sequence[str], name: str, defaults: dict[str, Any] | None = None, more: str = ""
) -> Any:
    """Returns an instance of a dataclass made from arguments; `--help` prints its docstring and leaves by SystemExit.

    `defaults` replace the dataclass's own, `more` is printed below its docstring.

    Raises:
        ValueError: arguments that do not fit, in one line that names the option.
    """
    description = f"{inspect.cleandoc(kind.__doc__)}\n\n{more}".strip()
    required = {
        f.name: tyro.MISSING
        for f in dataclasses.fields(kind)
        if f.default is f.default_factory is dataclasses.MISSING
    }
    extra = {"default": kind(**{**required, **defaults})} if defaults else {}
    shown = io.StringIO()
    try:
        with contextlib.redirect_stderr(shown):
            return tyro.cli(kind, args=list(argv), prog=f"cpr {name}", description=description, **extra)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ValueError(_sentence(shown.getvalue(), name)) from None


def _sentence(shown: str, name: str) -> str:
    """Returns the first part of the parser's framed message as one line."""
    lines = [line.strip(" │") for line in shown.splitlines() if not line.startswith("╭")]
    body = " ".join(line for line in lines if line)
    parts = RULE.split(body)
    message = parts[0 if "╭" in shown else 1]  # drawn in ASCII, the first part is the title
    first = " ".join(message.partition("Got errors:")[0].split())
    meant = MEANT.search(body)
    hint = f"; did you mean {meant['option']}?" if meant else ""
    return f"{first}{hint} (see cpr {name} --help)"


def positional_as_option(argv: list[str], option: str) -> list[str]:
    """Returns `RUN ... --more` as `--option RUN ... --more`: leading words become the values of an option."""
    return [option, *argv] if argv and not argv[0].startswith("-") else argv


def pop_option(argv: list[str], option: str) -> tuple[str | None, list[str]]:
    """Returns the value of an option, and the arguments without it."""
    for i, argument in enumerate(argv):
        if argument == option and i + 1 < len(argv):
            return argv[i + 1], [*argv[:i], *argv[i + 2 :]]
        if argument.startswith(option + "="):
            return argument.split("=", 1)[1], [*argv[:i], *argv[i + 1 :]]
    return None, argv


def at_least(least: int, **values: int | None) -> None:
    """Raises ValueError for the first count below `least`."""
    for name, value in values.items():
        if value is not None and value < least:
            raise ValueError(f"--{name}: must be >= {least}, got {value}")
