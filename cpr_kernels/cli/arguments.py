"""Turns command lines into the dataclasses that hold a command's settings."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import os
import re
import shutil
import sys
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any

import tyro

from cpr_command import COMMANDS

from ..progress import set_output

RULE = re.compile("[-─╭╮╰╯+]{4,}")  # of the frame around a message, also where it is drawn in ASCII
MEANT = re.compile(r"Perhaps you meant:\W*(?P<option>--[\w.-]+)")
BOX = re.compile(  # a group of options, in a frame, and as drawn without one
    r"^╭─ (?P<framed>\S+) options ─+╮\n(?:│.*\n)+╰─+╯\n|"
    r"^ (?P<plain>\S+) options *\n -+ *\n(?:.*\n)*?(?= \S+ options *\n|\Z)",
    re.MULTILINE,
)
COMMON = "--quiet prints errors only, --json the result as JSON."
WIDEST = 120  # columns of help: more would be set in two, which cannot be left out one by one

Parsed = Callable[[Any, dict[str, Any]], None]
_collectors: list[Parsed] = []


class _Text(io.StringIO):
    """Takes what is printed in place of standard output, in whose encoding frames are drawn."""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """That of standard output."""
        return sys.__stdout__.encoding if sys.__stdout__ else "utf-8"


class Collected(Exception):
    """Ends a command whose settings are looked at and not run."""


@contextlib.contextmanager
def collecting(found: Parsed) -> Iterator[None]:
    """Hands the dataclass and defaults of every command that is started inside to `found`, in place of running it."""
    _collectors.append(found)
    try:
        yield
    finally:
        _collectors.pop()


def parse(
    kind: Any,
    argv: Sequence[str],
    name: str,
    defaults: dict[str, Any] | None = None,
    more: str = "",
    advanced: Sequence[str] = (),
) -> Any:
    """Returns an instance of a dataclass made from arguments; `--help` prints its docstring and leaves by SystemExit.

    Help begins with the command's examples. `--quiet` and `--json` are taken from the arguments, except where the
    dataclass has them itself, and given to `progress.set_output`.

    Args:
        kind: the dataclass.
        argv: the arguments.
        name: the command's.
        defaults: replace the dataclass's own.
        more: printed below its docstring.
        advanced: groups of options, such as ``optim``, that only `--help-all` prints.

    Raises:
        ValueError: arguments that do not fit, in one line that names the option.
    """
    if _collectors:
        _collectors[-1](kind, defaults or {})
        raise Collected
    argv = common_options(argv, {field.name for field in dataclasses.fields(kind)})
    examples = "".join(f"    {example}\n" for example in COMMANDS[name].examples) if name in COMMANDS else ""
    description = f"{examples}\n{inspect.cleandoc(kind.__doc__)}\n\n{more}".strip("\n")
    description += f"\n\n{COMMON}"
    required = {
        f.name: tyro.MISSING
        for f in dataclasses.fields(kind)
        if f.default is f.default_factory is dataclasses.MISSING
    }
    extra = {"default": kind(**{**required, **defaults})} if defaults else {}
    everything = "--help-all" in argv
    words = ["--help" if word == "--help-all" else word for word in argv]
    printed, shown = _Text(), io.StringIO()
    taken = contextlib.redirect_stdout(printed) if advanced else contextlib.nullcontext()
    try:
        with contextlib.redirect_stderr(shown), taken, _narrow(bool(advanced)):
            return tyro.cli(kind, args=words, prog=f"cpr {name}", description=description, **extra)
    except SystemExit as stop:
        if not stop.code:
            print(_without(printed.getvalue(), () if everything else advanced, name), end="")
            raise
        raise ValueError(_sentence(shown.getvalue(), name)) from None


def common_options(argv: Sequence[str], own: Container[str] = ()) -> list[str]:
    """Returns the arguments without `--quiet` and `--json`, which set what is printed; an option in `own` stays."""
    taken = {word for word in ("quiet", "json") if word not in own and f"--{word}" in argv}
    set_output(quiet="quiet" in taken, json="json" in taken)
    return [word for word in argv if word.removeprefix("--") not in taken or not word.startswith("--")]


@contextlib.contextmanager
def _narrow(wanted: bool) -> Iterator[None]:
    """Keeps help in one column of boxes."""
    before = os.environ.get("COLUMNS")
    if wanted:
        os.environ["COLUMNS"] = str(min(WIDEST, shutil.get_terminal_size().columns))
    try:
        yield
    finally:
        if wanted:
            os.environ.pop("COLUMNS")
            os.environ.update({"COLUMNS": before} if before is not None else {})


def _without(text: str, advanced: Sequence[str], name: str) -> str:
    """Help without the boxes of some groups of options."""
    left: list[str] = []

    def kept(box: re.Match[str]) -> str:
        title = box["framed"] or box["plain"]
        if title not in advanced:
            return box[0]
        left.append(title)
        return ""

    text = BOX.sub(kept, text)
    return text + (f"More options, of {', '.join(left)}: cpr {name} --help-all\n" if left else "")


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
