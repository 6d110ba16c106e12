"""Runs `cpr completion SHELL`: prints a script that completes commands and options."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union

import tyro
from tyro.conf import Positional

from cpr_command import COMMANDS

from ..progress import is_json, result
from .arguments import Collected, collecting, parse


@dataclass(frozen=True)
class Completion:
    """Print a script that completes the commands of `cpr` and their options, for a shell to read.

    Commands whose extra is not installed are completed without their options.
    """

    shell: Positional[Literal["bash", "zsh", "fish"]]
    """Which shell."""


@dataclass(frozen=True)
class Bare:
    """Stands for a command whose options cannot be read here."""


def main(argv: Sequence[str]) -> int:
    """Runs `cpr completion`."""
    args: Completion = parse(Completion, argv, "completion")
    found = script(args.shell)
    if is_json():
        result({"shell": args.shell, "script": found})
    else:
        print(found, end="")  # also when quiet: it is what a shell reads
    return 0


def script(shell: str) -> str:
    """Returns the completion script of all commands for a shell."""
    kinds = [
        Annotated[settings_of(name), tyro.conf.subcommand(name, description=command.does)]
        for name, command in COMMANDS.items()
    ]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        any_of: Any = Union[tuple(kinds)]  # noqa: UP007 (of a list that is made here)
        tyro.cli(any_of, args=["--tyro-print-completion", shell], prog="cpr")
    return printed.getvalue()


def settings_of(name: str) -> Any:
    """Returns the dataclass of a command's settings, without running it."""
    if name == "completion":
        return Completion
    found: list[Any] = []
    try:
        module = importlib.import_module(f"cpr_kernels.cli.{COMMANDS[name].module}")
        with collecting(lambda kind, _: found.append(kind)), contextlib.suppress(Collected):
            getattr(module, COMMANDS[name].function)([])
    except ImportError:
        return Bare
    assert dataclasses.is_dataclass(found[0])
    return found[0]
