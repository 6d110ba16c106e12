"""`cpr predict`: classes of videos, and with an index the known clips nearest to them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..deploy.clip_index import ClipIndex, Neighbor
from ..deploy.model import Model, VideoPrediction
from .videos import WHICH, Results, each, video_files

HELP = f"""\
Say what is in videos: class names with probabilities, averaged over evenly spaced clips, and with --index the
nearest known clips. ARTIFACT is a file made by `cpr export`; nothing else of the training is needed.

VIDEO: {WHICH}.
A broken video costs a line on stderr and the exit status, not the run.

  cpr predict model.cpr holiday.mp4
  cpr predict model.cpr clips/ --format csv --out classes.csv
  cpr predict model.cpr 'clips/**/*.avi' --index known/ --format jsonl

Exit status 0: all predicted. 1: some videos could not be read. 2: nothing could be done.
"""
COLUMNS = ("path", "rank", "class", "probability", "near", "start", "end", "score")


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    p = argparse.ArgumentParser(
        "cpr predict",
        description=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    p.add_argument("artifact", type=Path, metavar="ARTIFACT", help="made by cpr export")
    p.add_argument("videos", nargs="+", metavar="VIDEO")
    p.add_argument("--index", type=Path, metavar="FOLDER", help="made by cpr index, with the same artifact")
    output_options(p)
    p.add_argument(
        "--clips", type=int, metavar="M", help="clips looked at in each part (default: the artifact's)"
    )
    return p


def output_options(p: argparse.ArgumentParser) -> None:
    """How much is told, and how."""
    p.add_argument(
        "--topk", type=int, default=5, metavar="K", help="classes and neighbours told (%(default)s)"
    )
    p.add_argument("--format", choices=("text", "csv", "jsonl"), default="text", help="(%(default)s)")
    p.add_argument("--out", type=Path, metavar="FILE", help="write there, whole or not at all")
    progress_option(p)


def progress_option(p: argparse.ArgumentParser) -> None:
    """--progress and --no-progress."""
    p.add_argument(
        "--progress",
        action=argparse.BooleanOptionalAction,
        help="progress bar (default: when stderr is a terminal)",
    )


def at_least_one(**values: int | None) -> None:
    """Raises `ValueError` for the first count below 1."""
    for name, value in values.items():
        if value is not None and value < 1:
            raise ValueError(f"--{name}: must be at least 1, got {value}")


def main(argv: Sequence[str]) -> int:
    """Runs `cpr predict`.

    Raises:
        ValueError: an error of the user, in one line.
    """
    args = parser().parse_args(list(argv))
    at_least_one(topk=args.topk, clips=args.clips)
    paths = video_files(args.videos)
    model = Model(args.artifact)
    index = None if args.index is None else ClipIndex(args.index, model.id)
    if not model.classes and index is None:
        raise ValueError(
            f"{args.artifact} is an encoder and knows no classes; give --index, or export a classifier of cpr finetune"
        )
    results = Results(args.format, args.out, COLUMNS)
    failed = 0
    for path, seen, reason in each(
        "predict", paths, lambda path: model.video(path, args.clips), args.progress
    ):
        failed += reason is not None
        if reason is not None:
            if args.format == "jsonl":
                results.add([], "", {"path": str(path), "error": reason})
            continue
        near = [] if index is None else index.nearest_files(seen.embeddings, args.topk)
        results.add(*told(path, seen, model.classes, near, args.topk))
    results.close()
    return 1 if failed else 0


def told(
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
