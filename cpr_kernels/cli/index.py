"""`cpr index` keeps embeddings of known clips; `cpr search` asks them by video."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..deploy.clip_index import Clip, ClipIndex, exists, extend
from ..deploy.model import Model, VideoPrediction
from .predict import as_text, at_least_one, neighbour, output_options, progress_option
from .videos import WHICH, Results, each, video_files

INDEX_HELP = f"""\
Remember videos by their clips' embeddings, so that `cpr search` and `cpr predict --index` can say which known
clips a video is like. INDEX is a folder; videos are added to it, a changed file's clips are replaced, and files
that are in it unchanged are passed over: run it again whenever there are new ones.

VIDEO: {WHICH}.
The index is replaced whole every --save videos: stop it at any moment, and run it again to go on. Two at once
take turns. It belongs to the artifact that made it.

  cpr index model.cpr archive/ --out known
  cpr search model.cpr known holiday.mp4

Exit status 0: all remembered. 1: some videos could not be read. 2: nothing could be done.
"""
SEARCH_HELP = f"""\
Say which known clips videos are like: for each file of the index its nearest clip, best first, by cosine of the
embeddings. The file that is asked for is left out of its own answer.

VIDEO: {WHICH}.

  cpr search model.cpr known holiday.mp4 --topk 10
  cpr search model.cpr known clips/ --format csv --out near.csv

Exit status 0: all answered. 1: some videos could not be read. 2: nothing could be done.
"""
COLUMNS = ("path", "rank", "known", "start", "end", "score")


def main(argv: Sequence[str]) -> int:
    """Runs `cpr index`.

    Raises:
        ValueError: an error of the user, in one line.
    """
    p = _parser("index", INDEX_HELP)
    p.add_argument("artifact", type=Path, metavar="ARTIFACT", help="made by cpr export")
    p.add_argument("videos", nargs="+", metavar="VIDEO")
    p.add_argument("--out", type=Path, required=True, metavar="INDEX", help="folder of the index")
    p.add_argument("--clips", type=int, metavar="M", help="clips kept of each part (default: the artifact's)")
    p.add_argument(
        "--save", type=int, default=100, metavar="N", help="videos between two savings (%(default)s)"
    )
    progress_option(p)
    args = p.parse_args(list(argv))
    at_least_one(clips=args.clips, save=args.save)
    paths = video_files(args.videos)
    model = Model(args.artifact)
    known = _known(args.out, model.id)
    todo = [path for path in paths if known.get(str(path.resolve())) != _stamp(path)]
    failed, added, held = 0, 0, list[tuple[Path, VideoPrediction]]()
    for path, seen, reason in each("index", todo, lambda path: model.video(path, args.clips), args.progress):
        failed += reason is not None
        if seen is not None:
            held.append((path, seen))
            added += 1
        if len(held) == args.save:
            _save(args.out, model.id, held)
            held = []
    if held:
        _save(args.out, model.id, held)
    if not exists(args.out):
        raise ValueError(f"none of the {failed} videos could be read; no index was made")
    rows = len(ClipIndex(args.out, model.id).clips)
    passed = len(paths) - len(todo)
    print(
        f"{args.out}: {added} videos added, {passed} were there unchanged, {failed} could not be read; {rows} clips"
    )
    return 1 if failed else 0


def search(argv: Sequence[str]) -> int:
    """Runs `cpr search`.

    Raises:
        ValueError: an error of the user, in one line.
    """
    p = _parser("search", SEARCH_HELP)
    p.add_argument("artifact", type=Path, metavar="ARTIFACT", help="the one that made the index")
    p.add_argument("index", type=Path, metavar="INDEX", help="folder made by cpr index")
    p.add_argument("videos", nargs="+", metavar="VIDEO")
    output_options(p)
    args = p.parse_args(list(argv))
    at_least_one(topk=args.topk)
    paths = video_files(args.videos)
    model = Model(args.artifact)
    index = ClipIndex(args.index, model.id)
    results = Results(args.format, args.out, COLUMNS)
    failed = 0
    for path, seen, reason in each("search", paths, model.video, args.progress):
        failed += reason is not None
        if reason is not None:
            if args.format == "jsonl":
                results.add([], "", {"path": str(path), "error": reason})
            continue
        own = str(path.resolve())
        near = [one for one in index.nearest_files(seen.embeddings, args.topk + 1) if one.clip.path != own]
        found: list[dict[str, Any]] = [neighbour(one) for one in near[: args.topk]]
        rows = [{"path": str(path), "rank": rank, **one} for rank, one in enumerate(found, start=1)]
        text = "\n".join([str(path), *map(as_text, near[: args.topk])])
        results.add(rows, text, {"path": str(path), "near": found})
    results.close()
    return 1 if failed else 0


def _parser(name: str, text: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        f"cpr {name}",
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def _stamp(path: Path) -> tuple[int, int] | None:
    """Size and time of change: what tells a changed file from an unchanged one."""
    if not path.is_file():
        return None
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _known(folder: Path, model: str) -> dict[str, tuple[int, int]]:
    """The files of an index, as they were."""
    if not exists(folder):
        return {}
    return {clip.path: (clip.bytes, clip.changed_ns) for clip in ClipIndex(folder, model).clips}


def _save(folder: Path, model: str, held: Sequence[tuple[Path, VideoPrediction]]) -> None:
    clips = []
    for path, seen in held:
        stamp = _stamp(path) or (0, 0)
        clips += [Clip(str(path.resolve()), start, end, *stamp) for start, end in seen.times]
    extend(folder, model, clips, torch.cat([seen.embeddings for _, seen in held]))
