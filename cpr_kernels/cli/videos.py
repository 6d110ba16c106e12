"""What the commands about videos share: which files are meant, how results are printed, what a broken one costs."""

from __future__ import annotations

import csv
import glob
import io
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..files import replacing
from ..progress import ProgressBar, say
from ..video import UnreadableVideo

ENDINGS = {
    ".mp4", ".avi", ".mkv", ".mov", ".webm", ".mpg", ".mpeg", ".m4v", ".wmv", ".flv", ".ts", ".3gp", ".ogv",
}  # fmt: skip
WHICH = "files, folders (searched for videos), or patterns such as 'clips/**/*.mp4'"


def video_files(given: Sequence[str]) -> list[Path]:
    """The files meant by words on the command line, each once, in the order given.

    Raises:
        ValueError: a folder or pattern without a video, or nothing at all.
    """
    found: dict[Path, None] = {}
    for word in given:
        path = Path(word)
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in ENDINGS and p.is_file())
            if not inside:
                raise ValueError(f"{word}: this folder holds no video ({', '.join(sorted(ENDINGS))})")
        elif path.exists() or not glob.has_magic(word):
            inside = [path]  # a missing file is told when its turn comes
        else:
            inside = sorted(p for p in map(Path, glob.glob(word, recursive=True)) if p.is_file())  # noqa: PTH207
            if not inside:
                raise ValueError(f"{word}: no file fits this pattern")
        found.update(dict.fromkeys(inside))
    if not found:
        raise ValueError("give at least one video: " + WHICH)
    return list(found)


def each(
    command: str, paths: Sequence[Path], work: Callable[[Path], Any], progress: bool | None
) -> Iterator[tuple[Path, Any, str | None]]:
    """`(path, result, None)` of every readable video, `(path, None, reason)` of the others, told on stderr."""
    with ProgressBar(command, len(paths), unit="video", shown=progress) as bar:
        for path in paths:
            try:
                result = work(path)
            except UnreadableVideo as reason:
                say(f"cpr {command}: {path}: {reason}")
                yield path, None, str(reason)
            else:
                yield path, result, None
            bar.advance()


class Results:
    """Where rows go: standard output as they come, or a file that is written whole at the end.

    Args:
        kind: "text", "csv" or "jsonl".
        out: the file, or None for standard output.
        columns: of the CSV.
    """

    def __init__(self, kind: str, out: Path | None, columns: Sequence[str]) -> None:
        self.kind, self.out, self.columns = kind, out, list(columns)
        self.held = io.StringIO()
        self._begun = False

    def add(self, rows: Sequence[dict[str, Any]], text: str, nested: dict[str, Any]) -> None:
        """One video: its CSV rows, its text, its JSON object."""
        buffer = io.StringIO()
        if self.kind == "text":
            buffer.write(text + "\n")
        elif self.kind == "jsonl":
            buffer.write(json.dumps(nested) + "\n")
        else:
            writer = csv.DictWriter(buffer, self.columns, lineterminator="\n")
            if not self._begun:
                writer.writeheader()
            writer.writerows(rows)
        self._begun = True
        if self.out is None:
            print(buffer.getvalue(), end="", flush=True)
        else:
            self.held.write(buffer.getvalue())

    def close(self) -> None:
        """Writes the file."""
        if self.out is not None:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            with replacing([self.out]) as [part]:
                part.write_text(self.held.getvalue())
