"""Reads the annotations of public data sets as lines of a list: Kinetics, Something-Something, mmaction2."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ....video_files import ENDINGS, PassedOver, first_of_each, walk
from ..layouts import split_named

ADDRESS = re.compile(r"[a-zA-Z][\w+.-]+:/{1,3}(?=[^/\\])")
LIST_LINE = re.compile(r"(?P<path>\S.*?)(?:\s+(?P<frames>\d+))?\s+(?P<label>\d+)\s*")
KINETICS = {"youtube_id", "time_start", "time_end"}  # columns of its CSV

Line = dict[str, str]  # {column: text}, columns as in a CSV of `path[,label,split,group,start,end]`


def is_address(text: str) -> bool:
    """Whether a path is an address such as s3://bucket/a.mp4, also as `Path` writes it: s3:/bucket/a.mp4."""
    return ADDRESS.match(text) is not None and not Path(text).exists()


def split_of(table: Path) -> str:
    """The split in a list's name: ``kinetics400_train_list_videos.txt`` trains; empty where there is none."""
    words = re.split(r"[^a-z]+", table.stem.casefold())
    return next((split for word in words if (split := split_named(word))), "")


def files_by_id(root: Path) -> tuple[dict[str, str], PassedOver]:
    """The videos and folders of frames below a folder: {name without ending: path below it}; and those of a name that
    another has.
    """
    kept, repeats = first_of_each(walk(root, frames=True)[0], stem_of)
    return {stem_of(name): name for name in kept}, [
        (again, f"another file of its name is taken: {first}") for again, first in repeats
    ]


def stem_of(name: str) -> str:
    """The name of a video, or of a folder of frames, without folders and without a video's ending."""
    name = name.rpartition("/")[2]
    stem, _, ending = name.rpartition(".")
    return stem if stem and f".{ending.lower()}" in ENDINGS else name


def list_lines(text: str) -> list[Line] | None:
    """The lines ``path label`` or ``folder frames label`` of mmaction2's lists; None of another text."""
    found = [LIST_LINE.fullmatch(line) for line in text.splitlines() if line.strip()]
    if not found or not all(found):
        return None
    return [{"path": match["path"], "label": match["label"]} for match in found if match]


def kinetics_lines(
    lines: Iterable[Mapping[str, str]], files: Mapping[str, str]
) -> tuple[list[Line], PassedOver]:
    """Lines of Kinetics' CSV ``label,youtube_id,time_start,time_end,split``.

    A video is a file called ``<youtube_id>_000010_000020``, cut already, or ``<youtube_id>``, of which a part is taken.
    """
    made: list[Line] = []
    passed_over: PassedOver = []
    for line in lines:
        video, times = line.get("youtube_id", ""), (line.get("time_start", ""), line.get("time_end", ""))
        found = _of_part(files, video, times)
        if found is None:
            passed_over.append((video or "a line", "missing file" if video else "no id"))
        else:
            made.append({**found, "label": line.get("label", ""), "split": line.get("split", "")})
    return made, passed_over


def _of_part(files: Mapping[str, str], video: str, times: tuple[str, str]) -> Line | None:
    """The path, and where the file is not cut already the times, of a part of a video."""
    try:
        cut = files.get("_".join([video, *(f"{int(float(time)):06d}" for time in times)]))
    except (ValueError, OverflowError):
        cut = None
    if cut is not None:
        return {"path": cut, "group": video}
    name = files.get(video) or files.get(f"v_{video}")
    return None if name is None else {"path": name, "start": times[0], "end": times[1]}


def json_lines(body: Any, files: Mapping[str, str], labels: bool) -> tuple[list[Line], PassedOver] | None:
    """Lines of Something-Something's JSON or of Kinetics'; None of another."""
    if isinstance(body, list) and body and all(isinstance(item, dict) and "id" in item for item in body):
        return _something_lines(body, files, labels)
    if isinstance(body, dict) and body and all(
        isinstance(facts, dict) and isinstance(facts.get("annotations"), dict) for facts in body.values()
    ):  # fmt: skip
        return _kinetics_json(body, files)
    return None


def _something_lines(
    body: list[dict[str, Any]], files: Mapping[str, str], labels: bool
) -> tuple[list[Line], PassedOver]:
    """``[{"id", "label", "template"}]``: the class is the template without its brackets."""
    made: list[Line] = []
    passed_over: PassedOver = []
    for item in body:
        video, template = str(item["id"]), item.get("template", "")
        label = re.sub(r"[\[\]]", "", template) if isinstance(template, str) else ""
        if video not in files:
            passed_over.append((video, "missing file"))
        elif labels and not label:
            passed_over.append((video, "no template, so no class; --labels none takes it"))
        else:
            made.append({"path": files[video], "label": label})
    return made, passed_over


def _kinetics_json(
    body: dict[str, dict[str, Any]], files: Mapping[str, str]
) -> tuple[list[Line], PassedOver]:
    """``{id: {"subset", "annotations": {"label", "segment": [start, end]}}}``."""
    lines = []
    for video, facts in body.items():
        note = facts["annotations"]
        start, end = (*(note.get("segment") or ()), "", "")[:2]
        lines.append({
            "youtube_id": video, "time_start": str(start), "time_end": str(end), "label": str(note.get("label", "")),
            "split": str(facts.get("subset", "")),
        })  # fmt: skip
    return kinetics_lines(lines, files)
