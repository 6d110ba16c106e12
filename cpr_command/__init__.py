"""What does the console script `cpr` run? A table of commands, read without importing torch.

This package is beside cpr_kernels and not in it: importing cpr_kernels imports torch, which takes seconds, and `cpr
--help`, `--version` and a mistyped command need none of it.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

STOPPED = 130  # the exit status of a program that Ctrl-C ended


class Command(NamedTuple):
    """Names the module and function of a command, says in a line what it does, shows how, and names its extra."""

    module: str  # below cpr_kernels.cli
    function: str
    does: str
    examples: tuple[str, ...]  # what help begins with
    extra: str = ""


COMMANDS = {
    "mine": Command(
        "mine.mine", "main", "positives from your own embeddings (.npz, .h5, .pt, .parquet, .csv, ...)",
        (
            "cpr mine clips.npz --views flow,rgb --stages 5 --topk 5 --ids video --labels label --out mined.csv",
            "cpr mine --view flow=i3d_flow/ --view rgb=i3d_rgb/ --out mined.parquet",
            "cpr mine clips.npz --ids video --plan plan.json --out mined.npz",
            "cpr mine --view flow=flow.npy --view rgb=rgb.npy --query-view flow=qf.npy --query-view rgb=qr.npy "
            "--schedule flow:0.1,rgb:200,flow+rgb:10 --chunk 4096 --out mined.npz",
        ),
    ),
    "tune": Command(
        "tune", "main", "chooses how to mine such a table, without labels",
        (
            "cpr tune clips.npz --ids video --out plan.json",
            "cpr tune --view flow=flow.npy --view rgb=rgb.npy --labels label.npy --out plan.json",
        ),
    ),
    "adapt": Command(
        "adapt", "main", "better embeddings: heads trained on such a table, without labels",
        (
            "cpr adapt clips.npz --ids video --out model",
            "cpr adapt --view flow=flow.npy --view rgb=rgb.npy --method cpr7 --out model",
            "cpr adapt clips.npz --ids video --out model --resume",
        ), "tables",
    ),
    "prepare": Command(
        "train", "prepare", "a folder of videos becomes stored RGB frames and TV-L1 flow",
        (
            "cpr prepare --videos videos/ --out data/mine",
            "cpr prepare --videos list.csv --out data/mine --fps 15 --flow fast",
        ), "train",
    ),
    "pretrain": Command(
        "train", "pretrain", "learn features: InfoNCE per view, then CPR co-training",
        (
            "cpr pretrain --data data/mine --out runs/mine",
            "cpr pretrain --preset small --data data/mine --out runs/mine --logger wandb",
            "cpr pretrain --resume runs/mine",
        ), "train",
    ),
    "evaluate": Command(
        "train", "evaluate", "test-to-train retrieval R@k of a run",
        ("cpr evaluate runs/mine", "cpr evaluate runs/mine --data data/other --json"), "train",
    ),
    "finetune": Command(
        "train", "finetune", "a classifier on learnt features, tested on whole videos",
        (
            "cpr finetune --run runs/mine --data data/mine --view flow --out runs/mine-flow",
            "cpr finetune --run runs/mine --data data/mine --out runs/mine-rgb --fuse runs/mine-flow",
        ), "train",
    ),
    "report": Command(
        "train", "report", "one HTML page of a run: PMR, CMR, R@k, mined positives",
        ("cpr report runs/mine", "cpr report runs/mine runs/other --out both.html"), "train",
    ),
    "update": Command(
        "train", "update", "train further with new videos and measure what is forgotten",
        ("cpr update runs/mine --videos new/ --out runs/mine2",), "train",
    ),
    "export": Command(
        "train", "export", "one file that holds a trained model and works without the trainer",
        ("cpr export runs/mine-rgb --out model.cpr",), "train",
    ),
    "predict": Command(
        "predict", "main", "classes of videos with such a file, and the known clips nearest",
        (
            "cpr predict model.cpr holiday.mp4",
            "cpr predict model.cpr clips/ --format csv --out classes.csv",
            "cpr predict model.cpr 'clips/**/*.avi' --index known/ --format jsonl",
        ), "deploy",
    ),
    "index": Command(
        "index", "main", "remember videos by their embeddings; add to it at any time",
        ("cpr index model.cpr archive/ --out known", "cpr index model.cpr archive/ --out known --prune"), "deploy",
    ),
    "search": Command(
        "index", "search", "the known clips that a video is like",
        (
            "cpr search model.cpr known holiday.mp4 --topk 10",
            "cpr search model.cpr known clips/ --format csv --out near.csv",
        ), "deploy",
    ),
    "explore": Command(
        "explore.explore", "main", "one HTML page to look inside mining, of your own embeddings or of runs",
        (
            "cpr explore clips.npz --ids video --out inside.html",
            "cpr explore clips.csv --pictures path --plan plan.json",
            "cpr explore runs/mine --out inside.html",
        ), "train",
    ),
    "demo": Command(
        "train", "demo", "all of it on generated clips, or on your own videos, in minutes",
        ("cpr demo", "cpr demo --videos videos/ --out runs/mine"), "train",
    ),
    "doctor": Command(
        "doctor", "main", "what was built, what can run here and why not the rest, a self-test",
        ("cpr doctor", "cpr doctor --json --no-test", "cpr doctor runs/ --fix"),
    ),
    "completion": Command(
        "completion", "main", "completion of commands and options for bash, zsh or fish",
        (
            "cpr completion bash > ~/.local/share/bash-completion/completions/cpr",
            "cpr completion zsh > ~/.zfunc/_cpr",
            "cpr completion fish > ~/.config/fish/completions/cpr.fish",
        ),
    ),
}  # fmt: skip

USAGE = """\
usage: cpr COMMAND ...

From a table of embeddings:  cpr mine features.npz --out mined.npz
From videos:                 cpr prepare, then pretrain, evaluate, report; or cpr demo --out runs/demo

Cascade positive mining for multi-view contrastive learning.

{commands}

`cpr COMMAND --help` explains one; `cpr --version`; `cpr --traceback COMMAND ...` shows where an error arose.
All take `--quiet` (errors only) and `--json` (the result). Files are replaced only with `--force`, folders continued.
"""


def usage() -> str:
    """Returns what `cpr --help` prints."""
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {command.does}" for name, command in COMMANDS.items())
    return USAGE.format(commands=commands)


def _call(name: str, argv: list[str]) -> int:
    command = COMMANDS[name]
    module = importlib.import_module(f"cpr_kernels.cli.{command.module}")
    function: Callable[[list[str]], int] = getattr(module, command.function)
    try:
        return function(argv)
    finally:  # --quiet and --json are of this command, not of what the process does next
        from cpr_kernels.progress import set_output

        set_output(quiet=False, json=False)


def _run(name: str, argv: list[str]) -> int:
    """Runs a command; turns an error of the user into one line and status 2."""
    from cpr_kernels.errors import Interrupted, TrainError

    try:
        return _call(name, argv)
    except BrokenPipeError:  # the reader of our output (head, less) has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        return STOPPED
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "cpr_kernels":
            raise
        extra = COMMANDS[name].extra
        remedy = f": pip install 'cpr_kernels[{extra}]'" if extra else f" ({error})"
        print(f"cpr {name}: needs {error.name}{remedy}", file=sys.stderr)
        return 2
    except (TrainError, ValueError, OSError, ImportError) as error:
        print(f"cpr {name}: {_sentence(error)}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not _lacks_memory(error):
            raise
        print(f"cpr {name}: needs more memory than is free ({_sentence(error)[:200]})", file=sys.stderr)
        return 2


def _sentence(error: BaseException) -> str:
    """Returns an error in one line; of the system's, the file and the cause."""
    if isinstance(error, OSError) and error.strerror:
        named = f"{error.filename}: " if error.filename is not None else ""
        return f"{named}{error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def _lacks_memory(error: BaseException) -> bool:
    """Whether NumPy, torch, OpenCV or FAISS could not allocate; they have no common kind of error."""
    words = ("out of memory", "can't allocate", "cannot allocate", "bad_alloc", "insufficient memory")
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in words)


def _unknown(name: str) -> str:
    import difflib

    near = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"cpr: no command {name!r}; {hint}expected one of {', '.join(COMMANDS)}"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the console script: 0 done, 1 failed, 2 an error of the user, 130 interrupted.

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
        from importlib.metadata import version

        print(f"cpr_kernels {version('cpr_kernels')}")
        return 0
    name, rest = words[0], words[1:]
    if name not in COMMANDS:
        print(_unknown(name), file=sys.stderr)
        return 2
    try:
        return _call(name, rest) if traceback else _run(name, rest)
    except KeyboardInterrupt:
        print(f"cpr {name}: interrupted", file=sys.stderr)
        return STOPPED
    except SystemExit as stop:  # a parser has printed its help or its error
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
        return stop.code if isinstance(stop.code, int) else 2 * (stop.code is not None)
