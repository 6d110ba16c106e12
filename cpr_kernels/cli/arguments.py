"""What the trainer's commands share: arguments from dataclasses, and what becomes of errors."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Callable
from typing import Any

from ..train import Interrupted, TrainError

STOPPED = 130  # the exit status of a program ended by Ctrl-C


def by_place(argv: list[str], option: str) -> list[str]:
    """`RUN ... --more` as `--option RUN ... --more`: leading words are the values of an option."""
    return [option, *argv] if argv and not argv[0].startswith("-") else argv


def parse(
    kind: Any, argv: list[str], name: str, defaults: dict[str, Any] | None = None, more: str = ""
) -> Any:
    """An instance of a dataclass from arguments; `--help` and wrong arguments leave by SystemExit, as in
    argparse.
    """
    try:
        import tyro
    except ImportError:
        raise SystemExit(
            f"cpr {name}: needs the trainer's packages: pip install 'cpr_kernels[train]'"
        ) from None
    description = f"{inspect.cleandoc(kind.__doc__)}\n\n{more}".strip()
    required = {
        f.name: tyro.MISSING
        for f in dataclasses.fields(kind)
        if f.default is f.default_factory is dataclasses.MISSING
    }
    default = kind(**{**required, **defaults}) if defaults else None
    extra = {} if default is None else {"default": default}
    return tyro.cli(kind, args=argv, prog=f"cpr {name}", description=description, **extra)


def taken(argv: list[str], option: str) -> tuple[str | None, list[str]]:
    """The value of an option, and the arguments without it."""
    for i, argument in enumerate(argv):
        if argument == option and i + 1 < len(argv):
            return argv[i + 1], [*argv[:i], *argv[i + 2 :]]
        if argument.startswith(option + "="):
            return argument.split("=", 1)[1], [*argv[:i], *argv[i + 1 :]]
    return None, argv


def guarded(work: Callable[[], None]) -> int:
    """Runs a command. Errors that the user can mend go up as `TrainError`; a stop by a signal is status
    130.
    """
    try:
        work()
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("cpr_kernels"):
            raise
        raise TrainError(f"{error.name} is not installed; pip install 'cpr_kernels[train]'") from error
    except TrainError as error:
        if not isinstance(error, Interrupted):
            raise
        print(error, file=sys.stderr)
        return STOPPED
    return 0
