"""Which mining a method's name means, for each head's view."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ... import Schedule, coclr_schedule, cpr_schedule, oracle_schedule, parse_schedule
from .. import TrainError
from ..pretrain.methods import FROZEN, TRAINED, growing_topk, with_view_names
from .config import AdaptConfig

CASCADES = {"cpr3": 3, "cpr5": 5, "cpr7": 7}
METHODS = ("infonce", "coclr", *CASCADES, "joint", "auto", "ubernce")


@dataclass(frozen=True)
class Positives:
    """Says how positives are found: by a schedule a view, by a tuned plan, by labels, or (nothing set) not at all."""

    schedules: dict[str, Schedule] = field(default_factory=dict)
    tuned: bool = False
    supervised: bool = False

    @property
    def mines(self) -> bool:
        """Returns whether entries of the queue are chosen."""
        return bool(self.schedules) or self.tuned


def positives_of(config: AdaptConfig, views: Sequence[str], num_keys: int, topk: int) -> Positives:
    """Returns how the config's method finds `topk` positives among `num_keys` entries, for heads of these views.

    Raises:
        TrainError: an unknown method, a schedule that cannot be, or one view where two are needed.
    """
    method = config.method
    if method in ("infonce", "ubernce"):
        return Positives(supervised=method == "ubernce")
    if len(views) < 2:
        raise TrainError(
            f"method: {method} compares views, and there is one, {views[0]!r}; add a view, or use infonce"
        )
    if method == "auto":
        return Positives(tuned=True)
    try:
        made = _schedule(config, num_keys, topk).with_topk(topk)
        if unknown := [name for name in made.views if name not in (FROZEN, TRAINED, *views)]:
            raise ValueError(f"no view {unknown[0]!r}; there is {', '.join((*views, FROZEN, TRAINED))}")
        others = {view: tuple(other for other in views if other != view) for view in views}
        return Positives({view: with_view_names(made, others[view], view) for view in views})
    except ValueError as error:
        raise TrainError(f"method: {error}") from None


def _schedule(config: AdaptConfig, num_keys: int, topk: int) -> Schedule:
    """Returns the schedule over `frozen` and `trained`."""
    if config.method in CASCADES:
        return cpr_schedule((FROZEN, TRAINED), num_keys, CASCADES[config.method], config.ratio, topk)
    if config.method == "coclr":
        return coclr_schedule(FROZEN, topk)
    if config.method == "joint":
        return oracle_schedule((FROZEN, TRAINED), topk)
    if ":" not in config.method:
        raise ValueError(
            f"must be one of {', '.join(METHODS)}, or a schedule such as frozen:0.5,trained:5; got {config.method!r}"
        )
    return parse_schedule(config.method, num_keys)


def topk_of_epoch(config: AdaptConfig, epoch: int) -> int:
    """Returns how many positives are mined in an epoch after the warm-up, counted from 0."""
    if not config.progressive or config.epochs < 2:
        return config.topk
    return growing_topk(config.topk, epoch, config.epochs)
