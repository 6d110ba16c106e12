"""Reads damaged files and sorts what happens: right, refused in one line, or wrong."""

from __future__ import annotations

import contextlib
import io
import random
import shutil
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cpr_kernels.errors import TrainError

from .mutations import BYTES, changed_json

REFUSALS = (
    ValueError,
    TrainError,
    OSError,
    ImportError,
)  # what the command line turns into one line and status 2
SLOWEST = 60.0  # seconds; a reader that needs more has no bound


@dataclass(frozen=True)
class Target:
    """A kind of file: how it is made, what is damaged, how it is read, and what may come out.

    make: writes whole files into a folder. damaged: those that are damaged, in turn. read: reads them. right: whether a
    value that was read is right, given the value of the whole files. json: of a file, how JSON in it is changed in
    place: a function of body and change that gives the new body, hashes made right, so that only the schema can refuse.
    """

    name: str
    make: Callable[[Path], None]
    damaged: tuple[str, ...]
    read: Callable[[Path], Any]
    right: Callable[[Any, Any, Path], bool] = lambda whole, got, folder: bool(whole == got)
    json: dict[str, Callable[[bytes, Callable[[Any], Any]], bytes]] = field(default_factory=dict)


@dataclass
class Counts:
    """What came of the cases of one kind of file."""

    refused: int = 0
    right: int = 0
    wrong: int = 0
    reports: list[str] = field(default_factory=list)
    sentences: Counter[str] = field(default_factory=Counter)

    @property
    def tried(self) -> int:
        return self.refused + self.right + self.wrong


def fuzz(target: Target, seed: int, cases: int, until: float = float("inf")) -> Counts:
    """Damages `cases` times, or until a time; case i of a seed is always the same."""
    counts = Counts()
    with tempfile.TemporaryDirectory() as made:
        whole_folder = Path(made) / "whole"
        whole_folder.mkdir()
        target.make(whole_folder)
        bodies = {name: (whole_folder / name).read_bytes() for name in target.damaged}
        with quiet():
            whole = target.read(whole_folder)
        folder = Path(made) / "case"
        shutil.copytree(whole_folder, folder)
        for case in range(cases):
            if time.monotonic() > until:
                break
            name, body = damaged(target, bodies, seed, case)
            (folder / name).write_bytes(body)
            _judge(target, whole, folder, f"{target.name} seed {seed} case {case} ({name})", counts)
            (folder / name).write_bytes(bodies[name])
    return counts


def damaged(target: Target, bodies: dict[str, bytes], seed: int, case: int) -> tuple[str, bytes]:
    """Returns the file of a case, and its damaged body."""
    rng = random.Random(f"{target.name} {seed} {case}")
    name = rng.choice(target.damaged)
    if name in target.json and rng.random() < 0.5:
        return name, target.json[name](bodies[name], lambda body: changed_json(body, rng))
    return name, rng.choice(BYTES)(bodies[name], rng)


def _judge(target: Target, whole: Any, folder: Path, label: str, counts: Counts) -> None:
    began = time.monotonic()
    try:
        with quiet():
            got = target.read(folder)
            good = target.right(whole, got, folder)
    except REFUSALS as error:
        sentence = " ".join(str(error).split())
        counts.refused += bool(sentence)
        counts.wrong += not sentence
        counts.sentences[sentence[:60]] += 1
        if not sentence:
            counts.reports.append(f"{label}: an empty refusal, {type(error).__name__}")
    except Exception as error:
        counts.wrong += 1
        counts.reports.append(f"{label}: {type(error).__name__}: {error}\n{traceback.format_exc()[-1500:]}")
    else:
        counts.right += good
        counts.wrong += not good
        if not good:
            counts.reports.append(f"{label}: another value was read, without a word")
    if (took := time.monotonic() - began) > SLOWEST:
        counts.reports.append(f"{label}: took {took:.0f} s")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps notes on old files off the screen."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
