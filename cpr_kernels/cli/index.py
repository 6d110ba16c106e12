"""`cpr index` keeps embeddings of known clips; `cpr search` asks them by video."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from tyro.conf import Positional, arg

from ..deploy.clip_index import Clip, ClipIndex, exists, extend, prune, restamp, tidy, writing
from ..deploy.model import Model, VideoPrediction
from ..files import refuse_existing
from ..progress import ProgressBar, result, say
from ..reading.seals import file_hash
from .arguments import at_least, parse
from .predict import Artifact, Count, Output, Videos, as_text, format_of, neighbour
from .videos import Results, each, video_files

COLUMNS = ("path", "rank", "known", "start", "end", "score")
Stamp = tuple[int, int, str]  # size, time of change and hash of a file
Stamped = tuple[Path, Stamp, VideoPrediction]  # a file, and what was seen in it


@dataclass(frozen=True, kw_only=True)
class Index:
    """Remember videos by their clips' embeddings, so that `cpr search` and `cpr predict --index` find the known clips
    that a video resembles. INDEX is a folder; videos are added to it, a changed file's clips are replaced, and files
    that it holds unchanged are skipped: run it again whenever there are new ones.

    VIDEO is a file, a folder (searched for videos), or a pattern such as 'clips/**/*.mp4'. The index is replaced whole
    every --save videos: stop it at any moment, and run it again to continue. Of two at once, one waits. It belongs to
    the artifact that made it. Index and archive may be copied together to another place.

    Exit status 0: all remembered. 1: some videos could not be read. 2: nothing could be done.
    """

    artifact: Positional[Artifact]
    """Made by `cpr export`."""
    videos: Positional[Videos]
    """Files, folders or patterns."""
    out: Annotated[Path, arg(metavar="INDEX")]
    """Folder of the index."""
    clips: Count = None
    """Clips kept of each part (default: the artifact's)."""
    save: int = 100
    """Videos between two savings."""
    trust: bool = False
    """Run the artifact's exported program, which can run any code: for files of your own with networks of your own."""
    prune: bool = False
    """First drop the videos of the index whose files are gone, and list them."""
    progress: bool = True
    """Show progress: a bar on a terminal, else a line every 30 seconds."""


@dataclass(frozen=True, kw_only=True)
class Search(Output):
    """Find the known clips that videos resemble: for each file of the index its nearest clip, best first, by cosine of
    the embeddings. A video that the index holds is left out of its own answer.

    VIDEO is a file, a folder (searched for videos), or a pattern such as 'clips/**/*.mp4'.

    Exit status 0: all answered. 1: some videos could not be read. 2: nothing could be done.
    """

    artifact: Positional[Artifact]
    """The one that made the index."""
    index: Positional[Annotated[Path, arg(metavar="INDEX")]]
    """Folder made by `cpr index`."""
    videos: Positional[Videos]
    """Files, folders or patterns."""


def main(argv: Sequence[str]) -> int:
    """Runs `cpr index`.

    Raises:
        ValueError: an error of the user, in one line.
    """
    args: Index = parse(Index, argv, "index")
    at_least(1, clips=args.clips, save=args.save)
    paths = video_files("index", args.videos)
    model = Model(args.artifact, args.trust)
    if exists(args.out):
        with writing(args.out):
            tidy(args.out)
        if args.prune:
            for gone in prune(args.out, model.id):
                say(f"{gone}: gone, dropped from the index")
    todo = _changed(paths, args.out, model.id, args.progress)
    failed, added, held = 0, 0, list[Stamped]()
    stamps: dict[Path, Stamp] = {}

    def look(path: Path) -> VideoPrediction:
        size, changed = _status(path) or (0, 0)  # before it is read: a later change is seen the next time
        stamps[path] = size, changed, _hash(path)
        return model.video(path, args.clips)

    try:
        for path, seen, reason in each("index", todo, look, args.progress):
            failed += reason is not None
            if seen is not None:
                held.append((path, stamps[path], seen))
                added += 1
            if len(held) == args.save:
                saved, held = held, []
                _save(args.out, model.id, saved)
    finally:  # stopped: what was read is kept
        if held:
            _save(args.out, model.id, held)
    if not exists(args.out):
        raise ValueError(f"none of the {failed} videos could be read; no index was made")
    rows = len(ClipIndex(args.out, model.id).clips)
    passed = len(paths) - len(todo)
    result(
        {"index": args.out, "added": added, "unchanged": passed, "failed": failed, "clips": rows},
        f"{args.out}: {added} videos added, {passed} were there unchanged, {failed} could not be read; {rows} clips",
    )
    return 1 if failed else 0


def search(argv: Sequence[str]) -> int:
    """Runs `cpr search`.

    Raises:
        ValueError: an error of the user, in one line.
    """
    args: Search = parse(Search, argv, "search")
    at_least(1, topk=args.topk)
    refuse_existing([args.out], args.force)
    kind = format_of(args)
    paths = video_files("search", args.videos)
    model = Model(args.artifact, args.trust)
    index = ClipIndex(args.index, model.id)
    failed = 0
    with Results(kind, args.out, COLUMNS) as results:
        for path, seen, reason in each("search", paths, model.video, args.progress):
            failed += reason is not None
            if reason is not None:
                if kind == "jsonl":
                    results.add([], "", {"path": str(path), "error": reason})
                continue
            own = str(path.resolve())
            near = [
                one for one in index.nearest_files(seen.embeddings, args.topk + 1) if one.clip.path != own
            ]
            found: list[dict[str, Any]] = [neighbour(one) for one in near[: args.topk]]
            rows = [{"path": str(path), "rank": rank, **one} for rank, one in enumerate(found, start=1)]
            text = "\n".join([str(path), *map(as_text, near[: args.topk])])
            results.add(rows, text, {"path": str(path), "near": found})
    return 1 if failed else 0


def _status(path: Path) -> tuple[int, int] | None:
    """Size and time of change."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _hash(path: Path) -> str:
    """The hash of a file; empty where it cannot be read, which is said when its turn comes."""
    try:
        return file_hash(path)
    except OSError:
        return ""


def _changed(paths: Sequence[Path], folder: Path, model: str, progress: bool) -> list[Path]:
    """The files that an index does not hold as they are: it does where size and time of change are the same, or where
    only the time is another, as after copying, and the content is not.
    """
    clips = ClipIndex(folder, model).clips if exists(folder) else []
    known = {clip.path: clip for clip in clips}
    todo, touched, copied = [], [], dict[str, int]()
    for path in paths:
        clip, status = known.get(str(path.resolve())), _status(path)
        if clip is not None and status is not None and clip.bytes == status[0] and clip.content_sha256:
            touched += [(path, clip, status[1])] if clip.changed_ns != status[1] else []
        elif clip is None or (clip.bytes, clip.changed_ns) != status:
            todo.append(path)
    with ProgressBar("compare", len(touched), unit="video", shown=None if progress else False) as bar:
        for path, clip, changed_ns in touched:
            if _hash(path) == clip.content_sha256:
                copied[clip.path] = changed_ns
            else:
                todo.append(path)
            bar.advance()
    if copied:
        restamp(folder, model, copied)
        say(f"{len(copied):,} files have another time of change and the same content: kept")
    if gone := sum(not Path(path).is_file() for path in known):
        say(f"{gone:,} files of the index are gone; --prune drops them")
    if again := sum(str(path.resolve()) in known for path in todo):
        say(f"{again:,} files have changed since they were indexed: they are read again")
    return todo


def _save(folder: Path, model: str, held: Sequence[Stamped]) -> None:
    clips = [
        Clip(str(path.resolve()), start, end, *stamp)
        for path, stamp, seen in held
        for start, end in seen.times
    ]
    extend(folder, model, clips, torch.cat([seen.embeddings for _, _, seen in held]))
