"""What the commands about videos share: which files are meant, how results are printed, what a broken one costs."""

from __future__ import annotations

import csv
import glob
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from ..progress import ProgressBar, is_quiet, say
from ..video import UnreadableVideo
from ..video_files import ENDINGS, PassedOver, by_reason, first_of_each, walk, why_not

if TYPE_CHECKING:
    from ..deploy.model import VideoPrediction

WHICH = "files, folders (searched for videos), or patterns such as 'clips/**/*.mp4'"


def video_files(command: str, given: Sequence[str]) -> list[Path]:
    """Returns the files meant by words on the command line, each once, in the order given.

    How many files were passed over, and why, is printed on stderr. A file that is named is taken whatever its ending;
    folders and patterns are searched by ending.

    Raises:
        ValueError: a folder or pattern without a video, or nothing at all.
    """
    found: list[Path] = []
    for word in given:
        path = Path(word)
        if path.is_dir():
            names, passed_over = walk(path)
            inside = [path / name for name in names]
            what = "this folder holds no video"
        elif path.exists() or not glob.has_magic(word):
            inside, passed_over = [path], []  # a missing file is said when its turn comes
        else:
            inside, passed_over = _fitting(word)
            what = "no file fits this pattern" if not passed_over else "no video fits this pattern"
        if not inside:
            why = f"; passed over: {by_reason(passed_over)}" if passed_over else ""
            raise ValueError(f"{word}: {what}{why} (videos end in {' '.join(sorted(ENDINGS))})")
        if passed_over:
            say(f"cpr {command}: {word}: passed over: {by_reason(passed_over)}")
        found += inside
    if not found:
        raise ValueError("give at least one video: " + WHICH)
    kept, repeats = first_of_each(found, lambda path: path.resolve())
    for again, first in repeats:
        if again != first:
            say(f"cpr {command}: {again}: passed over: same file as {first}")
    return kept


def _fitting(pattern: str) -> tuple[list[Path], PassedOver]:
    """The files that fit a pattern; where the pattern leaves the ending open, those whose ending is a video's."""
    paths = sorted(path for path in map(Path, glob.glob(pattern, recursive=True)) if path.is_file())  # noqa: PTH207
    ending = Path(pattern).suffix
    if ending and not glob.has_magic(ending):
        return [path for path in paths if not path.name.startswith(".")], []
    reasons = [(path, why_not(path.name)) for path in paths]
    return (
        [path for path, reason in reasons if reason is None],
        [(str(path), reason) for path, reason in reasons if reason is not None],
    )


def each(
    command: str, paths: Sequence[Path], work: Callable[[Path], VideoPrediction], progress: bool
) -> Iterator[tuple[Path, Any, str | None]]:
    """Yields (path, result, None) of a readable video, (path, None, reason) of another, and prints the reason."""
    with ProgressBar(command, len(paths), unit="video", shown=None if progress else False) as bar:
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
                say(f"cpr {command}: {path}: {reason}", error=True)
                yield path, None, reason
            bar.advance()


class Results:
    """Where rows go as they come: standard output, or FILE.partial, which becomes FILE at the end.

    Also where a run is stopped or fails, FILE holds what was finished; killed outright, FILE.partial does. A quiet
    command prints no text, but CSV and JSON.

    Args:
        kind: "text", "csv" or "jsonl".
        out: the file, or None for standard output.
        columns: of the CSV.
    """

    def __init__(self, kind: str, out: Path | None, columns: Sequence[str]) -> None:
        self.kind, self.out, self.columns = kind, out, list(columns)
        self._begun = False
        self._whole = 0  # bytes of the rows that are whole
        self._file: TextIO = sys.stdout
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            self._partial = out.with_name(f"{out.name}.partial")
            self._file = self._partial.open("w", encoding="utf-8", newline="")

    def add(self, rows: Sequence[dict[str, Any]], text: str, nested: dict[str, Any]) -> None:
        """One video: its CSV rows, its text, its JSON object."""
        if self.kind == "text" and self.out is None and is_quiet():
            return
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
        try:
            self._file.write(os.fsencode(buffer.getvalue()).decode("utf-8", "backslashreplace"))
            self._file.flush()
        except OSError as error:
            if self.out is None:
                raise
            raise OSError(error.errno, error.strerror, str(self.out)) from error
        if self.out is not None:
            self._whole = os.fstat(self._file.fileno()).st_size

    def __enter__(self) -> Results:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.out is None:
            return
        with suppress(OSError):  # each row was flushed; what a full disk has cut off is no whole row
            self._file.close()
        if error is not None:
            os.truncate(self._partial, self._whole)
        if error is None or self._whole:
            self._partial.replace(self.out)
        else:
            self._partial.unlink()
        if error is not None and self._whole:
            say(f"stopped; {self.out} holds what was finished")
