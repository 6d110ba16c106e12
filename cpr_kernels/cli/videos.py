"""What the commands about videos share: which files are meant, how results are printed, what a broken one costs."""

from __future__ import annotations

import csv
import glob
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from ..progress import ProgressBar, say
from ..video import UnreadableVideo

if TYPE_CHECKING:
    from ..deploy.model import Seen

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
    command: str, paths: Sequence[Path], work: Callable[[Path], Seen], progress: bool | None
) -> Iterator[tuple[Path, Any, str | None]]:
    """`(path, seen, None)` of every readable video, `(path, None, reason)` of the others, told on stderr."""
    with ProgressBar(command, len(paths), unit="video", shown=progress) as bar:
        for path in paths:
            reason = None
            try:
                result = work(path)
            except UnreadableVideo as error:
                reason = str(error)
            except ImportError:
                raise  # a missing package fails for every video
            except Exception as error:  # a decoder may raise anything; the others are still read
                reason = f"failed ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
            if reason is None:
                if result.note:
                    say(f"cpr {command}: {path}: {result.note}")
                yield path, result, None
            else:
                say(f"cpr {command}: {path}: {reason}")
                yield path, None, reason
            bar.advance()


class Results:
    """Where rows go as they come: standard output, or FILE.partial, which becomes FILE at the end.

    Also where a run is stopped or fails, FILE holds what was finished; killed outright, FILE.partial does.

    Args:
        kind: "text", "csv" or "jsonl".
        out: the file, or None for standard output.
        columns: of the CSV.
    """

    def __init__(self, kind: str, out: Path | None, columns: Sequence[str]) -> None:
        self.kind, self.out, self.columns = kind, out, list(columns)
        self._begun = False
        self._file: TextIO = sys.stdout
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            self._partial = out.with_name(f"{out.name}.partial")
            self._file = self._partial.open("w", encoding="utf-8", newline="")

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
        # A name that is no UTF-8 is written with \\xff for its other bytes.
        self._file.write(os.fsencode(buffer.getvalue()).decode("utf-8", "backslashreplace"))
        self._file.flush()

    def __enter__(self) -> Results:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.out is None:
            return
        self._file.close()
        if error is None or self._begun:
            self._partial.replace(self.out)
        else:
            self._partial.unlink()
        if error is not None and self._begun:
            say(f"stopped; {self.out} holds what was finished")
