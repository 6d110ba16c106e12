"""`cpr predict`: classes of videos, and with an index the known clips nearest to them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from tyro.conf import Positional, arg

from ..deploy.adapter import is_adapter
from ..deploy.clip_index import ClipIndex, Neighbor
from ..deploy.model import Model, VideoPrediction
from ..files import refuse_existing
from ..progress import result
from .adapted import adapted_table
from .arguments import at_least, parse
from .videos import Results, each, video_files

Artifact: TypeAlias = Annotated[Path, arg(metavar="ARTIFACT")]
Videos: TypeAlias = Annotated[tuple[str, ...], arg(metavar="VIDEO [VIDEO ...]", help_behavior_hint="")]
Folder: TypeAlias = Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="")]
OutFile: TypeAlias = Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")]
Count: TypeAlias = Annotated[int | None, arg(metavar="N", help_behavior_hint="")]

COLUMNS = ("path", "rank", "class", "probability", "near", "start", "end", "score")


@dataclass(frozen=True, kw_only=True)
class Output:
    """What commands about videos print, and where."""

    topk: int = 5
    """Classes and neighbours printed for each video."""
    format: Literal["text", "csv", "jsonl"] = "text"
    """How they are written."""
    out: OutFile = None
    """Write there; where the command is stopped, the file holds what was finished."""
    trust: bool = False
    """Run the artifact's exported program, which can run any code: for files of your own with networks of your own."""
    force: bool = False
    """Replace --out if it is there."""
    json: bool = False
    """The same as --format jsonl."""
    progress: bool = True
    """Show progress: a bar on a terminal, else a line every 30 seconds."""


def format_of(output: Output) -> Literal["text", "csv", "jsonl"]:
    """Returns the format that the options name."""
    if output.json and output.format == "csv":
        raise ValueError("--json: does not go with --format csv")
    return "jsonl" if output.json else output.format


@dataclass(frozen=True, kw_only=True)
class Predict(Output):
    """Print what is in videos: class names with probabilities, averaged over evenly spaced clips, and with --index the
    nearest known clips. ARTIFACT is a file made by `cpr export`; nothing else of the training is needed.

    VIDEO is a file, a folder (searched for videos), or a pattern such as 'clips/**/*.mp4'. A broken video costs a line
    on stderr and the exit status, not the run. Of a file made by `cpr adapt`, VIDEO is a table of embeddings, and
    --out FILE.npz gets the adapted ones, with the table's other columns.

    Exit status 0: all predicted. 1: some videos could not be read. 2: nothing could be done.
    """

    artifact: Positional[Artifact]
    """Made by `cpr export`."""
    videos: Positional[Videos]
    """Files, folders or patterns."""
    index: Folder = None
    """Made by `cpr index`, with the same artifact."""
    clips: Count = None
    """Clips read from each part (default: the artifact's)."""


def main(argv: Sequence[str]) -> int:
    """Runs `cpr predict`.

    Raises:
        ValueError: an error of the user, in one line.
    """
    args: Predict = parse(Predict, argv, "predict")
    at_least(1, topk=args.topk, clips=args.clips)
    refuse_existing([args.out], args.force)
    if is_adapter(args.artifact):
        return _adapt(args)
    paths = video_files("predict", args.videos)
    model = Model(args.artifact, args.trust)
    index = None if args.index is None else ClipIndex(args.index, model.id)
    if not model.classes and index is None:
        raise ValueError(
            f"{args.artifact} is an encoder and knows no classes; give --index, or export a classifier of cpr finetune"
        )
    failed = 0
    kind = format_of(args)
    with Results(kind, args.out, COLUMNS) as results:
        for path, seen, reason in each(
            "predict", paths, lambda path: model.video(path, args.clips), args.progress
        ):
            failed += reason is not None
            if reason is None:
                near = [] if index is None else index.nearest_files(seen.embeddings, args.topk)
                results.add(*format_prediction(path, seen, model.classes, near, args.topk))
            elif kind == "jsonl":
                results.add([], "", {"path": str(path), "error": reason})
    return 1 if failed else 0


def _adapt(args: Predict) -> int:
    """Writes a table of embeddings, mapped by an artifact of `cpr adapt`."""
    if len(args.videos) != 1 or args.index is not None:
        raise ValueError(
            f"{args.artifact} was made by cpr adapt: give it one table of embeddings, and --out FILE.npz"
        )
    rows = adapted_table(args.artifact, Path(args.videos[0]), args.out)
    if format_of(args) == "jsonl":
        print(json.dumps({"rows": rows, "out": str(args.out)}))
    else:
        result({}, f"{args.out}: {rows:,} rows")
    return 0


def format_prediction(
    path: Path, seen: VideoPrediction, classes: Sequence[str], near: Sequence[Neighbor], topk: int
) -> tuple[list[dict[str, Any]], str, dict[str, Any]]:
    """A video's CSV rows, text and JSON object."""
    ranked: list[tuple[str, float]] = []
    if seen.probabilities is not None:
        best = seen.probabilities.topk(min(topk, len(classes)))
        ranked = [(classes[i], float(p)) for i, p in zip(best.indices.tolist(), best.values.tolist())]
    rows = []
    for rank in range(max(len(ranked), len(near))):
        row: dict[str, Any] = {"path": str(path), "rank": rank + 1}
        if rank < len(ranked):
            row |= {"class": ranked[rank][0], "probability": f"{ranked[rank][1]:.6f}"}
        if rank < len(near):
            row |= {**neighbour(near[rank]), "near": near[rank].clip.path}
            row.pop("known")
        rows.append(row)
    lines = [str(path)]
    lines += [f"  {100 * share:5.1f} %  {name}" for name, share in ranked]
    lines += [as_text(one) for one in near]
    nested: dict[str, Any] = {"path": str(path), "clips": len(seen.times)}
    if ranked:
        nested["classes"] = [{"class": name, "probability": round(share, 6)} for name, share in ranked]
    if near:
        nested["near"] = [neighbour(one) for one in near]
    return rows, "\n".join(lines), nested


def neighbour(near: Neighbor) -> dict[str, Any]:
    """A known clip as plain values."""
    clip = near.clip
    return {
        "known": clip.path, "start": round(clip.start, 3), "end": round(clip.end, 3), "score": round(near.score, 4),
    }  # fmt: skip


def as_text(near: Neighbor) -> str:
    """A known clip as a line."""
    return f"  {near.score:7.3f}  {near.clip.path}  {near.clip.start:.1f} to {near.clip.end:.1f} s"
