"""Reads a folder of one `.npy` or `.npz` a video; subfolders are classes, or views where all hold the same names."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np

from ...progress import say
from ...video_files import PassedOver, by_reason
from .column import Column, Unfit, of_array, reading
from .formats import open_file
from .pooling import Pool, names_of, stacked

ENDINGS = (".npy", ".npz")


def folder(root: Path, name: str, pool: Pool) -> list[Column]:
    """Returns the views of a folder, its column `video` and, where videos are in folders, `label`.

    Raises:
        Unfit: no such file, or files whose arrays do not fit together.
    """
    files = _files(root)
    tops = _by_top(files)
    views = tops if _are_views(tops) else {name: files}
    if views is not tops and (note := _nearly_views(tops)):
        say(f"{root}: {note}")
    columns: list[Column] = []
    for view, inside in views.items():
        columns += _view_columns(root, view, inside, pool, len(views) > 1)
    return columns + names_of(list(next(iter(views.values()))), str(root))


def _files(root: Path) -> dict[str, Path]:
    """The files below a folder by their path without ending, sorted; others are counted on standard error."""
    found: dict[str, Path] = {}
    passed_over: PassedOver = []
    for path in sorted(root.rglob("*")):
        below = path.relative_to(root)
        if path.is_dir() or any(part.startswith(".") for part in below.parts):
            continue
        if path.suffix.lower() not in ENDINGS:
            passed_over.append((str(below), f"ending {path.suffix}" if path.suffix else "no ending"))
            continue
        key = below.with_suffix("").as_posix()
        if key in found:
            raise Unfit(f"{root}: {key} is there as {found[key].suffix} and as {path.suffix}")
        found[key] = path
    if not found:
        why = f" (passed over: {by_reason(passed_over)})" if passed_over else ""
        raise Unfit(f"{root}: this folder holds no .npy or .npz, one a video{why}")
    if passed_over:
        say(f"{root}: passed over: {by_reason(passed_over)}")
    return found


def _by_top(files: dict[str, Path]) -> dict[str, dict[str, Path]]:
    """Files by the first folder of their path, and their path below it; empty where some are in none."""
    tops: dict[str, dict[str, Path]] = defaultdict(dict)
    for key, path in files.items():
        top, slash, rest = key.partition("/")
        if not slash:
            return {}
        tops[top][rest] = path
    return dict(tops)


def _are_views(tops: dict[str, dict[str, Path]]) -> bool:
    """Whether folders hold the same names: the same videos, seen in different ways."""
    names = [set(inside) for inside in tops.values()]
    return len(names) > 1 and all(other == names[0] for other in names)


def _nearly_views(tops: dict[str, dict[str, Path]]) -> str:
    """What is to be said of folders that share most of their names: views of which one lacks a video are taken for
    classes.
    """
    names = [set(inside) for inside in tops.values()]
    every = set[str]().union(*names)
    common = every.intersection(*names)
    if len(names) < 2 or 2 * len(common) < len(every):
        return ""
    lone = min(every - common)
    holds = next(top for top, inside in tops.items() if lone in inside)
    return (
        f"folders {', '.join(list(tops)[:4])} hold nearly the same names and are taken for classes; where they are "
        f"views, all must hold the same ones: {lone} of {holds} is not in every one"
    )


def _view_columns(root: Path, view: str, files: dict[str, Path], pool: Pool, several: bool) -> list[Column]:
    """The arrays of files, each stacked over the files: that of `.npy` is called `view`, those of `.npz` by name, below
    the name of their view where there are `several`.
    """
    arrays: dict[str, dict[str, Column]] = defaultdict(dict)
    for video, path in files.items():
        for column in open_file(path, view):
            below = several and path.suffix.lower() == ".npz"
            arrays[f"{view}/{column.name}" if below else column.name][video] = column
    columns = []
    for name, parts in arrays.items():
        if len(parts) < len(files):
            lacks = next(video for video in files if video not in parts)
            raise Unfit(f"{root}: {lacks} has no array {name!r}, which {next(iter(parts))} has")
        with reading(root):
            plain = all(column.shape in ((), (1,)) for column in parts.values())
            columns.append(_values(name, root, parts) if plain else stacked(name, str(root), parts, pool))
    return columns


def _values(name: str, root: Path, parts: dict[str, Column]) -> Column:
    """One number or string a video: [N]."""
    for video, column in parts.items():
        if not (column.is_number or column.dtype in ("str", "bool")):
            raise Unfit(f"{root}: {name!r} of {video} is {column.dtype}; expected a number or a string")
    values = [np.asarray(column.load()).reshape(()).item() for column in parts.values()]
    return of_array(name, str(root), np.array(values))
