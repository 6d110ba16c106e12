"""What the terminal shows: one style of progress bar and table for all commands."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text


class _Status(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(str(task.fields.get("status", "")))


def console() -> Console:
    """Standard error, so that standard output stays for results."""
    return Console(file=sys.stderr, highlight=False, soft_wrap=True)


def progress_bar(shown: bool = True) -> Progress:
    """A bar with count, time spent and time left; `status` of a task is free text at its end."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        _Status(),
        console=console(),
        disable=not shown,
    )


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table: the first column is text, the others stand right."""
    shown = Table(title=title, title_justify="left", title_style="bold")
    for i, column in enumerate(columns):
        shown.add_column(column, justify="left" if i == 0 or column == "reason" else "right", overflow="fold")
    for row in rows:
        shown.add_row(*row)
    console().print(shown)
