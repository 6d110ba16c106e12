"""Makes the explorer of a table of embeddings: every row is a query among the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .... import MiningPlan, Schedule, cascade_topk, coclr_schedule, cpr_schedule, oracle_schedule
from ....progress import ProgressBar, say
from ...runtime.files import write_atomically
from .lists import Mined, Table, lists_of, spread
from .packed import fitting, packed, unpacked
from .page import VERSION, page
from .pictures import Pictures, pictures
from .tuned_views import Tuned, tuned_views

CHECKED = 256  # queries mined on the page's integers too, to say how near they are
LETTERS, LETTERS_BESIDE = 240, 80  # of a text in the page, and of one beside a picture


@dataclass(frozen=True)
class Rows:
    """Holds a table of embeddings as it is mined, and what is known of its rows.

    Attributes:
        name: the table's.
        views: ``{view: [N, D]}`` float32 as they are compared; a NaN row lacks the view.
        raw: ``{view: [N, D]}`` as plans take them.
        ids: [N] int64 source of each row: rows of one source never mine each other; -1 is never mined.
        schedule: how they are mined, where no plan is given.
        plans: ``{name: plan}``, at most two; the first one mines.
        labels: [N] int64 class of each row, -1 where unknown, or None.
        classes: the names of the classes.
        names: the rows' names, or None.
        texts: what the rows say, or None.
        files: files of images or videos of the rows, or None.
    """

    name: str
    views: Mapping[str, Tensor]
    raw: Mapping[str, Tensor]
    ids: Tensor
    schedule: Schedule
    plans: Mapping[str, MiningPlan] = field(default_factory=dict)
    labels: Tensor | None = None
    classes: Sequence[str] = ()
    names: Sequence[str] | None = None
    texts: Sequence[str] | None = None
    files: Sequence[Path] | None = None


def write_explorer(rows: Rows, out: Path, title: str, sample: int) -> Path:
    """Writes the page about a table; returns its path.

    Args:
        rows: the table.
        out: the page.
        title: its title.
        sample: at most so many queries are mined for the lists.
    """
    how: Schedule | MiningPlan = next(iter(rows.plans.values()), rows.schedule)
    shown = _pictures(rows)
    lists, table = lists_of(
        Mined(rows.views, rows.ids, how, rows.raw, rows.labels, tuple(rows.classes)), sample
    )
    tuned = {
        name: tuned_views(plan, plan.prepare_keys(rows.raw, rows.ids), number)
        for number, (name, plan) in enumerate(rows.plans.items(), start=1)
    }
    held = _held(rows, tuned)
    held |= {"lists": lists, "note": _note(rows, held, how, table, tuned)}
    body = {"version": VERSION, "title": title, "albums": [_album(rows, shown)], "runs": [held]}
    write_atomically(out, page(body).encode())
    return out


def _held(rows: Rows, tuned: Mapping[str, Tuned]) -> dict[str, Any]:
    """Returns the table as the page reads it."""
    count = len(rows.ids)
    everything = dict(rows.views)
    for one in tuned.values():
        everything |= {name: view for name, view in one.views.items() if name != one.hub}
    short, bits = fitting(everything)
    plain = [{"name": name, "label": name, **packed(short[name], bits)} for name in rows.views]
    schedule = next((one.schedule for one in tuned.values()), rows.schedule)
    own = torch.equal(rows.ids, torch.arange(count))
    return {
        "name": rows.name,
        "kind": "table",
        "album": 0,
        "entries": count,
        "views": [*plain, *(view for one in tuned.values() for view in one.packed(short, bits))],
        "plain": len(plain),
        "videos": None,  # row i is video i of the album
        "sources": None if own else rows.ids.tolist(),
        "schedule": str(schedule),
        "topk": schedule.topk,
        "schedules": [[f"plan {name}", str(one.schedule)] for name, one in tuned.items()]
        + [[name, str(one)] for name, one in _schedules(rows).items()],
        "epochs": [],
    }


def _schedules(rows: Rows) -> dict[str, Schedule]:
    """Returns the schedules that the page offers by name."""
    views, count, topk = tuple(rows.views), len(rows.ids), min(rows.schedule.topk, len(rows.ids))
    made = {"this schedule": rows.schedule} if not rows.plans else {}
    order = sorted(views, key=lambda view: view != "flow")
    if len(views) > 1:
        for stages in (7, 5, 3):
            if count // 2 ** (stages - 1) >= topk:
                made[f"cascade of {stages} stages"] = cpr_schedule(order, count, stages, 0.5, topk)
    made |= {f"{view} alone": coclr_schedule(view, topk) for view in views}
    if len(views) > 1:
        made["all views together"] = oracle_schedule(views, topk)
    return {
        name: one
        for name, one in made.items()
        if name == "this schedule" or one != rows.schedule or rows.plans
    }


def _album(rows: Rows, shown: Pictures | None) -> dict[str, Any]:
    """Returns the classes, and for each row its name, class, text and thumbnail, where it has them."""
    count = len(rows.ids)
    labels = [-1] * count if rows.labels is None else rows.labels.tolist()
    videos: list[dict[str, Any]] = [{"class": one} for one in labels]
    most = LETTERS_BESIDE if shown else LETTERS
    texts = None if rows.texts is None else [text[:most] for text in rows.texts]
    columns: tuple[tuple[str, Sequence[str | int | None] | None], ...] = (
        ("id", rows.names), ("text", texts), ("strip", shown and shown.strips), ("cell", shown and shown.cells)
    )  # fmt: skip
    for name, values in columns:
        for video, value in zip(videos, values or ()):
            if value not in ("", None):
                video[name] = value
    held = {
        "classes": list(rows.classes),
        "frames": shown.frames if shown else 1,
        "flow": False,
        "videos": videos,
    }
    return held | ({"sheets": shown.sheets} if shown and shown.sheets else {})


def _pictures(rows: Rows) -> Pictures | None:
    if rows.files is None:
        return None
    with ProgressBar("thumbnails", len(rows.files), unit="file") as bar:
        shown = pictures(rows.files, bar.advance)
    if len(shown.unread) == len(rows.files):
        raise ValueError(
            f"--pictures: none of {len(rows.files):,} files can be read; the first: {shown.unread[0]}"
        )
    if shown.unread:
        say(
            f"pictures: {len(shown.unread):,} of {len(rows.files):,} files cannot be read, such as {shown.unread[0]}"
        )
    return shown


def _note(
    rows: Rows, held: Mapping[str, Any], how: Schedule | MiningPlan, table: Table, tuned: Mapping[str, Tuned]
) -> str:
    """Returns how near the page's integers are to the embeddings, in a sentence."""
    at = spread(len(table.queries), CHECKED)
    queries, expected = table.queries[at], table.indices[at]
    views = {view["name"]: unpacked(view).float() for view in held["views"]}
    schedule = next((one.schedule for one in tuned.values()), rows.schedule)
    used = {view: views[view] for view in schedule.views}
    asked = {view: used[view][queries] for view in used}
    for one in tuned.values():
        if one.hub in asked:
            asked[one.hub] = torch.ones_like(asked[one.hub])
    found, _ = cascade_topk(asked, used, schedule, query_ids=rows.ids[queries], key_ids=rows.ids)
    same = ((found[:, :, None] == expected[:, None, :]).any(dim=2) & (found >= 0)).sum() / (
        expected >= 0
    ).sum()
    bits = held["views"][0]["bits"]
    shortened = [
        f"{view['label']} to {view['size']} of {rows.views[view['name']].shape[1]} axes"
        for view in held["views"][: len(rows.views)]
        if view["size"] < rows.views[view["name"]].shape[1]
    ]
    short = f" and shortened ({', '.join(shortened)})" if shortened else ""
    return (
        f"Approximate: the embeddings are rounded to {bits} bits{short}. Of what {len(queries):,} rows mine by "
        f"{'the plan' if isinstance(how, MiningPlan) else 'this schedule'}, {float(same):.1%} is mined from the "
        "rounded ones too."
    )
