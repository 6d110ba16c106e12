"""Names runs, mining methods and ways of mining on the page, and says how each is drawn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ....plot_style import METHODS, Mark, mark_of
from ...pretrain.config import TrainConfig
from ...views.names import label, name_of_all_views

SUMS = ("both", "all")  # ways that take all views together


def title_of(run: Path) -> str:
    """Returns a run's name: its folder's, or that of the folder around one called `run`."""
    return " ".join((run.name if run.name != "run" else run.resolve().parent.name).replace("_", " ").split())


def method_name(config: TrainConfig) -> str:
    """Returns the name of a run's mining method, in words."""
    mining = config.mining
    if mining.method == "cpr":
        name = f"cascade, {mining.stages} stages"
    else:
        named = {
            "custom": f"schedule {mining.schedule}",
            "auto": "plan tuned on the queue",
            "infonce": "InfoNCE",
        }
        name = named.get(mining.method, mining.method)
    return f"{name}, top 1 to {mining.topk}" if mining.progressive else name


def method_key(config: TrainConfig) -> str:
    """Returns the key of a run's mining method in the table of marks."""
    mining = config.mining
    if mining.method != "cpr":
        return mining.method
    key = f"cpr-{mining.stages}" + "-progressive" * mining.progressive
    return key if key in METHODS else "cpr"


def way_names(config: TrainConfig) -> dict[str, str]:
    """Returns {way of mining: its name on the page}, in the order of the page: the run's own first, the sum last."""
    singles = {view: f"{label(view)} alone" for view in reversed(config.views)}
    several = (
        {name_of_all_views(config.views): f"sum of {name_of_all_views(config.views)}"}
        if len(config.views) > 1
        else {}
    )
    return {"mined": method_name(config), **singles, **several}


def way_marks(config: TrainConfig) -> dict[str, Mark]:
    """Returns {way of mining: how it is drawn}; the run's own in its method's colour, solid."""
    own = replace(mark_of(method_key(config)), dash=(), marker="o")
    return {
        way: own if way == "mined" else mark_of(way, number) for number, way in enumerate(way_names(config))
    }


def view_name(view: str) -> str:
    """Returns a view's name in a sentence or at the head of a figure."""
    return {"both": "both views together", "all": "all views together"}.get(view, label(view))
