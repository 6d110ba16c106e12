"""What the terminal shows of long work: one style of progress, messages and tables, all on standard error."""

from __future__ import annotations

import json as _json
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TextIO, TypeVar

from tqdm import tqdm

LINE_EVERY_S = 30.0  # of a log file: a line at least this often
LINE = "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"

T = TypeVar("T")


class _Output:
    """What the running command prints."""

    quiet = False  # neither progress nor messages
    json = False  # the result as JSON


def set_output(quiet: bool, json: bool) -> None:
    """Sets whether the running command prints progress and messages, and its result as text or as JSON."""
    _Output.quiet, _Output.json = quiet, json


def is_quiet() -> bool:
    """Returns whether the running command prints errors only."""
    return _Output.quiet


def is_json() -> bool:
    """Returns whether the running command prints its result as JSON."""
    return _Output.json


def result(data: Any, text: str = "", file: TextIO | None = None) -> None:
    """Prints a command's result: as JSON, as text where there is one, or when quiet not at all; on standard output, or
    to `file`.
    """
    if _Output.json:
        print(_json.dumps(data, indent=1, default=str), file=file)
    elif text and not _Output.quiet:
        print(text, file=file)


class ProgressBar:
    """Shows how far a job is: a bar on a terminal, elsewhere a line every 30 seconds, however long a step takes.

    Args:
        description: what is done.
        total: how many steps there are.
        done: steps that an earlier run has done.
        unit: what a step is, for the rate.
        shown: True shows a bar, False nothing; None shows a bar on a terminal and lines elsewhere.
        kept: whether a bar stays on the terminal at the end.

    Example:
        >>> with ProgressBar("encode", total=100, unit="video") as bar:
        ...     bar.advance(status="loss 0.3")
    """

    def __init__(
        self, description: str, total: int, *, done: int = 0, unit: str = "step", shown: bool | None = None,
        kept: bool = True,
    ) -> None:  # fmt: skip
        terminal = sys.stderr.isatty()
        shown = False if _Output.quiet else shown
        self.lines = shown is None and not terminal
        self.bar = tqdm(
            total=total, initial=done, desc=description, unit=f" {unit}", file=sys.stderr, dynamic_ncols=True,
            disable=not (shown or (shown is None and terminal)), leave=kept,
        )  # fmt: skip
        self.description, self.total, self.unit = description, total, f" {unit}"
        self.done, self.first, self.status = done, done, ""
        self.began = self.line_at = time.monotonic()
        self._ended, self._printing = threading.Event(), threading.Lock()
        self._clock = threading.Thread(target=self._keep_time, daemon=True)

    def advance(self, steps: int = 1, status: str = "") -> None:
        """Counts finished steps; `status` is free text after the rate."""
        self.done, self.status = self.done + steps, status
        if status:
            self.bar.set_postfix_str(status, refresh=False)
        self.bar.update(steps)
        if self.lines:
            self._line_if_due()

    def _keep_time(self) -> None:
        """Prints lines while a step takes longer than from one to the next."""
        while not self._ended.wait(max(0.01, self.line_at + LINE_EVERY_S - time.monotonic())):
            self._line_if_due()

    def _line_if_due(self) -> None:
        with self._printing:
            if time.monotonic() - self.line_at >= LINE_EVERY_S:
                self._line()

    def _line(self) -> None:
        self.line_at = time.monotonic()
        print(
            tqdm.format_meter(
                self.done, self.total, self.line_at - self.began, initial=self.first, prefix=self.description,
                unit=self.unit, postfix=self.status, bar_format=LINE,
            ),
            file=sys.stderr, flush=True,
        )  # fmt: skip

    def __enter__(self) -> ProgressBar:
        if self.lines:
            self._clock.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.close()
        if self.lines:
            self._ended.set()
            self._clock.join()
        if self.lines and self.line_at > self.began:  # long enough for lines: say how it ended
            self._line()


def track(items: Sequence[T], description: str, unit: str = "step") -> Iterator[T]:
    """Yields the items, with a progress bar."""
    with ProgressBar(description, len(items), unit=unit) as bar:
        for item in items:
            yield item
            bar.advance()


@contextmanager
def waiting(description: str, shown: bool | None = None) -> Iterator[None]:
    """Shows that a step is at work, of which it is not known how far it is: lines every 30 seconds, or a bar."""
    with ProgressBar(description, 1, unit="part", shown=shown, kept=False) as bar:
        yield
        bar.advance()


def say(text: str, error: bool = False) -> None:
    """Prints a message on standard error, above a bar that is shown; when quiet, only an error."""
    if _Output.quiet and not error:
        return
    tqdm.write(text, file=sys.stderr)
    sys.stderr.flush()


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table on standard error: numbers stand right, text stands left."""
    numeric = [i > 0 and column != "reason" for i, column in enumerate(columns)]
    widths = [max(len(row[i]) for row in (columns, *rows)) for i in range(len(columns))]
    lines = [
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric)
        )
        for row in (columns, *rows)
    ]
    rule = "  ".join("-" * width for width in widths)
    say("\n".join([title, lines[0].rstrip(), rule, *(line.rstrip() for line in lines[1:])]))
