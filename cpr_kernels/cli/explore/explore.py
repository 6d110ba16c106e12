"""`cpr explore`: the page to look inside mining, of training runs or of any table of embeddings."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from ...files import refuse_existing
from ...progress import result
from ..arguments import at_least, parse, positional_as_option
from ..mine.options import Count, Mine, Names, Preset, Text, ViewFiles
from ..tables.pooling import Pool
from .table import Look, rows_of

TITLE = "Inside the cascade"
OF_RUNS = {"data"}
OF_BOTH = {"inputs", "out", "force", "title", "sample"}


@dataclass(frozen=True)
class Explore:
    """Look inside mining: one self-contained HTML page, which needs no server and sends nothing anywhere.

    Pick a query and see its cascade: which entries survive each stage, which view threw out which, the scores or ranks
    in two views with the thresholds drawn, thumbnails that play, wrong ones marked; any other schedule or plan beside
    it. It also lists hubs, entries that are never mined, where views disagree, and labels to check.

    `cpr explore TABLE` reads what `cpr mine` reads; `cpr explore RUN [RUN ...]` shows runs of `cpr pretrain`.
    """

    inputs: Annotated[list[Path], arg(metavar="TABLE|RUN...", help_behavior_hint="")] = field(
        default_factory=list
    )
    """A file or folder of embeddings as for `cpr mine`, or folders of runs with a checkpoint."""
    out: Path = field(default=Path("explore.html"))
    """The page to write."""
    force: bool = False
    """Replace --out if it is there."""
    title: str = TITLE
    view: ViewFiles = ()
    """A view from its own file or folder; repeatable."""
    views: Names = None
    """Arrays of TABLE to use (default: all [N, D] float arrays)."""
    ids: Names = None
    """As for `cpr mine`: rows of one source never mine each other."""
    labels: Names = None
    """Array or file of classes (default: labels, y, ...; none: no classes)."""
    names: Text = None
    """Column of the rows' names (default: a column called name, title, file, ...; none)."""
    text: Text = None
    """Column of what the rows say, shown where there are no pictures (default: text, caption, ...; none)."""
    pictures: Text = None
    """Column of paths of images or videos, shown as thumbnails (default: a column of such paths; none)."""
    root: Path | None = None
    """Folder that these paths are in (default: that of TABLE)."""
    pool: Pool = "mean"
    """What becomes of arrays [N, T, D], and of one array [T, D] a video: the mean or the maximum over T."""
    normalize: bool = True
    """L2-normalise each row."""
    center: bool = False
    """First subtract each view's mean."""
    schedule: Text = None
    """Stages view:keep, as for `cpr mine`; in the page any other can be typed."""
    preset: Preset = None
    """cpr, coclr or oracle, as for `cpr mine`."""
    order: Names = None
    """Views in the order of the stages."""
    stages: Count = None
    """Stages of --preset cpr."""
    ratio: Text = None
    """Share that each stage of --preset cpr keeps."""
    topk: Count = None
    """Entries kept at the end (default: 5)."""
    plan: list[Path] = field(default_factory=list)
    """One or two plans of `cpr tune`: the page mines with the first, and compares it with the second."""
    sample: int = 20_000
    """Queries mined for the lists, spread evenly over the rows."""
    data: Path | None = None
    """Where the runs' data set is, if it was moved."""


def main(argv: Sequence[str]) -> int:
    """Runs `cpr explore`; prints the page's path and returns 0.

    Raises:
        ValueError: an error of the user, in one line.
    """
    args: Explore = parse(Explore, positional_as_option(list(argv), "--inputs"), "explore")
    refuse_existing([args.out], args.force)
    at_least(1, sample=args.sample)
    runs = [path for path in args.inputs if (path / "config.json").is_file()]
    if runs or (len(args.inputs) > 1 and not args.view):
        of_tables = {one.name for one in fields(Explore)} - OF_RUNS - OF_BOTH
        _refuse(args, of_tables, "is for tables, and these are runs")
        from ...train.pages.explorer.runs import explore

        page = explore(args.inputs, args.out, args.title, args.data, args.sample)
    else:
        _refuse(args, OF_RUNS, "is for runs, and this is a table (a run has a config.json)")
        page = write_table(_mine_options(args), _look(args), args.out, args.title)
    result({"page": page}, str(page))
    return 0


def write_table(args: Mine, look: Look, out: Path, title: str = TITLE) -> Path:
    """Writes the page of a table that the options of `cpr mine` name."""
    from ...train.pages.explorer.table import write_explorer

    return write_explorer(rows_of(args, look), out, title, look.sample)


def _refuse(args: Explore, names: Set[str], why: str) -> None:
    """Raises ValueError for an option among `names` that was given."""
    plain = Explore()
    for one in fields(Explore):
        if one.name in names and getattr(args, one.name) != getattr(plain, one.name):
            raise ValueError(f"--{one.name}: {why}")


def _mine_options(args: Explore) -> Mine:
    if len(args.inputs) > 1:
        raise ValueError("give one TABLE; further views are --view NAME=FILE")
    shared = {one.name for one in fields(Mine)} & {one.name for one in fields(Explore)}
    values = {name: getattr(args, name) for name in shared - {"plan", "out", "sample"}}
    return Mine(input=args.inputs[0] if args.inputs else None, **values)


def _look(args: Explore) -> Look:
    return Look(args.names, args.text, args.pictures, args.root, tuple(args.plan), args.sample)
