"""Makes the explorer of training runs: clip by clip and stage by stage, what their cascades mine.

The page holds a run's memory queue as its last checkpoint has it: every entry is a query, and the cascade runs in the
page, so that any schedule can be tried. Similarities are those of embeddings rounded to 16 bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .... import MiningPlan, Schedule, coclr_schedule, cpr_schedule, oracle_schedule
from ....progress import ProgressBar
from ... import TrainError
from ...data.manifest import Manifest
from ...pretrain.config import TrainConfig
from ...pretrain.mining.tuned import plan_of_state
from ...pretrain.phases import make_plan
from ...pretrain.run_folder import config_of
from ...runtime.checkpoint import load
from ...runtime.files import write_atomically
from ...runtime.run_log import read_lines
from ...views.names import label
from ..thumbnails import Album
from .lists import SAMPLE, Mined, lists_of
from .packed import packed
from .page import VERSION, page
from .tuned_views import tuned_views

FEWEST = 8  # entries; a queue with fewer is refused


def explore(
    runs: Sequence[Path],
    out: Path,
    title: str = "Inside the cascade",
    data: Path | None = None,
    sample: int = SAMPLE,
) -> Path:
    """Writes the page about one run or several; returns its path.

    Args:
        runs: their folders; the page lists clips of the first.
        out: the page.
        title: its title.
        data: where their data set is, if it was moved.
        sample: at most so many entries of the first run are mined for the lists.

    Raises:
        TrainError: a folder without a run, a checkpoint or a queue to look into.
    """
    if not runs:
        raise TrainError("runs: give at least one folder of a run")
    albums: dict[Path, Album] = {}
    held = [_run(Path(run), albums, data, 0 if i else sample) for i, run in enumerate(runs)]
    pages = []
    for album in albums.values():
        with ProgressBar("thumbnails", len(album.place_of), unit="video") as bar:
            pages.append(album.page(bar.advance))
    write_atomically(out, page({"version": VERSION, "title": title, "albums": pages, "runs": held}).encode())
    return out


def _run(run: Path, albums: dict[Path, Album], data: Path | None, sample: int) -> dict[str, Any]:
    """Returns one run as the page reads it, and adds its videos to its data set's album; without a sample, no lists."""
    config = config_of(run, data)
    queue, plan = memory_of(run, config)
    folder = config.data.resolve()
    if folder not in albums:
        albums[folder] = Album(config.data, Manifest.load(config.data))
    album = albums[folder]
    album.add_views(config.views)
    videos = queue["videos"].tolist()
    if max(videos) >= len(album.manifest.videos):
        raise TrainError(
            f"run: {run} was trained on other videos than {config.data} holds now; "
            "restore that data set, or train again"
        )
    last = make_plan(config)[-1]
    tuned = (
        None if plan is None else tuned_views(plan, plan.prepare_keys(queue, queue["sources"]), label=label)
    )
    schedule = (
        (tuned and tuned.schedule) or last.schedule or _default_schedule(config.views, len(videos), last.topk)
    )
    how = schedule if plan is None else plan
    lists = _lists(config.views, queue, how, album.manifest, sample) if sample else []
    epochs = [line for line in read_lines(run / "log.jsonl") if line["kind"] == "epoch" and line["mining"]]
    return {
        "name": run.name if run.name != "run" else run.absolute().parent.name,
        "album": list(albums).index(folder),
        "phase": last.name,
        "kind": "run",
        "entries": len(videos),
        "views": [
            *({"name": view, "label": label(view), **packed(queue[view])} for view in config.views),
            *(tuned.packed({}, 16) if tuned else ()),
        ],
        "plain": len(config.views),
        "videos": album.places(videos),
        "sources": queue["sources"].tolist(),
        "schedule": str(schedule),
        "topk": schedule.topk,
        "schedules": _schedules(config.views, schedule, tuned is not None or last.schedule is not None),
        "lists": lists,
        "note": "Embeddings are rounded to 16 bits.",
        "epochs": [
            {
                "phase": line["phase"],
                "pmr": {way: figures["pmr"] for way, figures in line["mining"].items()},
                "cmr": {way: figures["cmr"] for way, figures in line["mining"].items()},
            }
            for line in epochs
        ],
    }  # fmt: skip


def memory_of(run: Path, config: TrainConfig) -> tuple[dict[str, Tensor], MiningPlan | None]:
    """Returns the filled entries of a run's memory queue, {view: [N, D]}, `videos` [N] and `sources` [N], and its plan.

    The plan is the one that the phase of the checkpoint mines by, where it is tuned.

    Raises:
        TrainError: no checkpoint, or a queue with nearly nothing in it.
    """
    path = run / "checkpoint.pt"
    if not path.is_file():
        raise TrainError(
            f"run: {run} has no checkpoint.pt, so there is no queue to look into; it is written after each epoch of "
            f"`cpr pretrain`, and `cpr pretrain --resume {run}` continues"
        )
    try:
        whole = load(path)
        state, tuned = whole["model"], whole.get("tuned")
        memory = "bank" if "bank.ids" in state else "queue"  # IIC keeps a row for each video
        ids, videos = state[f"{memory}.ids"], state[f"{memory}.labels"]
        filled = ids >= 0
        views = {view: state[f"{memory}.view_{view}"][filled].float() for view in config.views}
        entries = {"videos": videos[filled], "sources": ids[filled]}
        plan = plan_of_state(tuned) if tuned else None
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise TrainError(
            f"run: {path} holds no queue of the run's views ({type(error).__name__}: {error})"
        ) from None
    if int(filled.sum()) < FEWEST:
        raise TrainError(
            f"run: the queue of {run} holds {int(filled.sum())} entries, at least {FEWEST} are needed; train on for an "
            "epoch"
        )
    return {**views, **entries}, plan


def _lists(
    names: Sequence[str],
    queue: Mapping[str, Tensor],
    how: Schedule | MiningPlan,
    manifest: Manifest,
    sample: int,
) -> list[dict[str, Any]]:
    """Returns the lists of a queue's entries, of each video the first entry that a list has.

    A row of zeros lacks a view: the entry takes no part in what that view judges.
    """
    views = {
        name: queue[name].masked_fill((queue[name] == 0).all(dim=1)[:, None], torch.nan) for name in names
    }
    labels = torch.tensor([video.label for video in manifest.videos])[queue["videos"]]
    classes = tuple(manifest.classes)
    lists, _ = lists_of(
        Mined(views, queue["sources"], how, views, labels if classes else None, classes), sample
    )
    videos = queue["videos"].tolist()
    for one in lists:
        first: dict[int, list[Any]] = {}
        for row in one["rows"]:
            first.setdefault(videos[row[0]], row)
        one["rows"] = list(first.values())
    return lists


def _default_schedule(views: Sequence[str], entries: int, topk: int) -> Schedule:
    """Returns the schedule shown for a run that mined nothing: as many stages as the entries allow."""
    if len(views) == 1:
        return coclr_schedule(views[0], min(topk, entries))
    order = tuple(reversed(views))  # with rgb and flow: flow is the first stage
    for stages in (7, 5, 3):
        if entries // 2 ** (stages - 1) >= topk:
            return cpr_schedule(order, entries, stages, 0.5, topk)
    return oracle_schedule(views, min(topk, entries))


def _schedules(views: Sequence[str], schedule: Schedule, trained: bool) -> list[list[str]]:
    """Returns the names and texts of the schedules that the page offers."""
    topk = schedule.topk
    made = [["as trained" if trained else "a cascade", str(schedule)]]
    made += [[f"{label(view)} alone", str(coclr_schedule(view, topk))] for view in views]
    if len(views) > 1:
        made.append(["all views together", str(oracle_schedule(views, topk))])
    return made
