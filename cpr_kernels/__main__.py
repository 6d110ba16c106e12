"""The console script `cpr`: positives from your own embeddings, and the reference trainer."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence

Command = Callable[[list[str]], int]

COMMANDS = {
    "mine": "positives from your own embeddings (.npz, .npy, .safetensors)",
    "prepare": "a folder of videos becomes stored RGB frames and TV-L1 flow",
    "pretrain": "learn features: InfoNCE per view, then CPR co-training",
    "evaluate": "test-to-train retrieval R@k of a run",
    "finetune": "a classifier on top of learnt features, tested on whole videos",
    "report": "one HTML page of a run: PMR, CMR, R@k, a gallery of mined positives",
    "update": "go on with new videos, the old ones in play, and measure what is forgotten",
    "export": "one file that holds a trained model and works without the trainer",
    "predict": "classes of videos with such a file, and the known clips nearest to them",
    "index": "remember videos by their embeddings; add to it at any time",
    "search": "the known clips that a video is like",
    "explore": "one HTML page to look inside the mining, clip by clip and stage by stage",
    "demo": "all of it on generated clips, or on your own videos, in minutes",
    "doctor": "what was built, what can run here and why not the rest, and a self-test",
}

# commands that stand without the trainer, and where they are
LIBRARY = {
    "mine": ("cpr_kernels.cli.mine.mine", "main"),
    "predict": ("cpr_kernels.cli.predict", "main"),
    "index": ("cpr_kernels.cli.index", "main"),
    "search": ("cpr_kernels.cli.index", "search"),
    "doctor": ("cpr_kernels.cli.doctor", "main"),
}

USAGE = """\
usage: cpr COMMAND ...

Cascade positive mining for multi-view contrastive learning.

{commands}

{ways}
`cpr COMMAND --help` explains one; `cpr --version`; `cpr --traceback COMMAND ...` shows where an error arose.
"""
WAYS = """\
The shortest way in:   cpr mine features.npz --out mined.npz
The whole way:         cpr prepare, then pretrain, evaluate, report; or cpr demo --out runs/demo
"""


def usage() -> str:
    """What `cpr --help` prints."""
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {does}" for name, does in COMMANDS.items())
    return USAGE.format(commands=commands, ways=WAYS)


class MissingExtra(ImportError):
    """A command whose extra is not installed."""


def _load(name: str) -> tuple[Command, tuple[type[Exception], ...]]:
    """The function behind a command, and the exceptions that mean an error of the user."""
    if name in LIBRARY:
        module, function = LIBRARY[name]
        return getattr(importlib.import_module(module), function), (ValueError, OSError, ImportError)
    try:
        train = importlib.import_module("cpr_kernels.train")
        commands: dict[str, Command] = importlib.import_module("cpr_kernels.cli.train").COMMANDS
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "cpr_kernels":
            raise
        raise MissingExtra(f"needs {error.name}: pip install 'cpr_kernels[train]'") from error
    return commands[name], (train.TrainError, ValueError, OSError)


def _run(name: str, argv: list[str]) -> int:
    """Runs a command; an error of the user becomes one line and status 2."""
    expected: tuple[type[Exception], ...] = (MissingExtra,)
    try:
        command, expected = _load(name)
        return command(argv)
    except BrokenPipeError:  # the reader of our output (head, less) has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except expected as error:
        sentence = " ".join(str(error).split()) or type(error).__name__
        print(f"cpr {name}: {sentence}", file=sys.stderr)
        return 2


def main(argv: Sequence[str] | None = None) -> int:
    """The console script: 0 done, 1 failed, 2 an error of the user, 130 interrupted.

    Args:
        argv: arguments after the program's name; default: the process's.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    traceback = words[:1] == ["--traceback"]
    words = words[traceback:]
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage(), end="")
        return 0 if words else 2
    if words[0] in ("-V", "--version"):
        from . import __version__

        print(f"cpr_kernels {__version__}")
        return 0
    name, rest = words[0], words[1:]
    if name not in COMMANDS:
        print(f"cpr: no command {name!r}; expected one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    try:
        return _load(name)[0](rest) if traceback else _run(name, rest)
    except KeyboardInterrupt:
        print(f"cpr {name}: interrupted", file=sys.stderr)
        return 130
    except SystemExit as stop:  # a parser has printed its help or its error
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
        return stop.code if isinstance(stop.code, int) else 2 * (stop.code is not None)


if __name__ == "__main__":
    sys.exit(main())
