"""Reads a table as `cpr mine` does, and which of its columns are names, texts and paths of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from ..mine.classes import labels_of
from ..mine.codes import as_given
from ..mine.embeddings import Preparing, mean_row, prepare
from ..mine.inputs import Side, find_columns, find_names, open_sides, plain_columns, printable
from ..mine.options import Mine, schedule_of
from ..mine.planned import load_plan, raw_rows

if TYPE_CHECKING:
    from ...train.pages.explorer.table import Rows

NAMES = (
    "names",
    "name",
    "titles",
    "title",
    "filename",
    "filenames",
    "file",
    "files",
    "paths",
    "path",
    "clip",
    "video",
)
TEXTS = ("text", "texts", "caption", "captions", "sentence", "sentences", "document", "documents")
FEWEST, MOST_PLANS = 3, 2


class Look(NamedTuple):
    """Says what the page shows of a table beside its views."""

    names: str | None = None
    text: str | None = None
    pictures: str | None = None
    root: Path | None = None
    plans: tuple[Path, ...] = ()
    sample: int = 20_000


def rows_of(args: Mine, look: Look) -> Rows:
    """Returns the table that the options of `cpr mine` name, ready for the page.

    Raises:
        ValueError: files, columns or plans that do not fit.
    """
    from ...train.pages.explorer.table import Rows

    entries, queries = open_sides(args)
    if queries is not None:
        raise ValueError("--report: the page shows each row as a query among the others; leave --queries out")
    if entries.rows < FEWEST:
        raise ValueError(f"the table holds {entries.rows} rows, and at least {FEWEST} are needed")
    if len(look.plans) > MOST_PLANS:
        raise ValueError(f"--plan: at most {MOST_PLANS} plans, got {len(look.plans)}")
    ids, labels = (find_names(kind, entries, None, args) for kind in ("ids", "labels"))
    named = labels_of(entries, labels)
    arrays = {name: column.load() for name, column in entries.views.items()}
    views = {
        name: prepare(
            array,
            Preparing(mean_row(array) if args.center else None, args.normalize, torch.float32, args.scratch),
        ).rows
        for name, array in arrays.items()
    }
    plans = {path.stem: load_plan(replace(args, plan=path), list(views)) for path in look.plans}
    used = {view for plan in plans.values() for view in plan.whiten}
    files = _files(entries, look, args)
    return Rows(
        name=args.input.name if args.input else "+".join(views),
        views=views,
        raw={name: raw_rows(arrays[name], args.scratch) for name in views if name in used},
        ids=torch.arange(entries.rows) if ids.codes is None else ids.codes.of_keys,
        schedule=schedule_of(args, list(views), entries.rows)
        if not plans
        else next(iter(plans.values())).schedule,
        plans=plans,
        labels=None if named is None else named.of_keys,
        classes=() if named is None else _class_names(named.names),
        names=_words(entries, look.names, NAMES, "--names"),
        texts=_words(entries, look.text, TEXTS, "--text"),
        files=files,
    )


def _class_names(names: Sequence[object]) -> tuple[str, ...]:
    """Returns the classes in words; numbers become "class 3"."""
    texts = [str(name) for name in names]
    return tuple(f"class {text}" if text.lstrip("-").isdigit() else text for text in texts)


def _words(entries: Side, named: str | None, guesses: tuple[str, ...], flag: str) -> list[str] | None:
    """Returns a column as text: the one that is named, or the first string column among the guesses."""
    if named is not None:
        found = find_columns(entries.columns, named, entries.rows, flag)
    else:
        plain = plain_columns(entries)
        found = [plain[name] for name in guesses if name in plain and plain[name].dtype == "str"]
    return [printable(str(value)) for value in as_given(found[0])] if found else None


def _files(entries: Side, look: Look, args: Mine) -> list[Path] | None:
    """Returns the files of the column of pictures: the one that is named, or the first that holds such paths.

    Raises:
        ValueError: a column was named and its first file is not there.
    """
    from ...train.pages.explorer.pictures import is_picture

    root = look.root or (args.input.parent if args.input else Path())
    if look.pictures is not None:
        found = find_columns(entries.columns, look.pictures, entries.rows, "--pictures")
    else:
        texts = [column for column in plain_columns(entries).values() if column.dtype == "str"]
        found = [
            one for one in texts if is_picture(first := str(as_given(one)[0])) and (root / first).is_file()
        ][:1]
    if not found:
        return None
    paths = [root / str(value) for value in np.asarray(as_given(found[0]))]
    if look.pictures is not None and not any(path.is_file() for path in paths):
        raise ValueError(
            f"--pictures: {paths[0]} is not there, nor is another file of the column {look.pictures!r}; "
            "--root names the folder that the paths are in"
        )
    return paths
