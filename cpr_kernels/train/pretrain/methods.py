"""Chooses where a clip's positives come from: one function per method, from the trained view to how it is mined.

To add one: a function here, its line in `METHODS`, its name in `config.Method`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ... import Schedule, Stage, cpr_schedule, parse_schedule
from .. import TrainError
from .config import TrainConfig

FROZEN, TRAINED = "frozen", "trained"  # in a schedule's text: the frozen views together, and the trained one


@dataclass(frozen=True)
class Positives:
    """Says how a phase finds positives: by a mining schedule, by labels (`supervised`), or not at all.

    `tuned`: by a plan that is chosen on the filled queue.
    """

    schedule: Schedule | None = None
    supervised: bool = False
    tuned: bool = False


def infonce(config: TrainConfig, trained: str, topk: int) -> Positives:
    """Mines nothing: the clip itself is its only positive (MoCo), with the budget of the cycles spent on InfoNCE."""
    return Positives()


def ubernce(config: TrainConfig, trained: str, topk: int) -> Positives:
    """Takes every entry of the clip's class, labels as ids: the upper bound of mining (Han et al. 2020).

    The loss is eq. 2's, the log of a sum over positives; the published UberNCE takes the mean of their logs.
    """
    return Positives(supervised=True)


def coclr(config: TrainConfig, trained: str, topk: int) -> Positives:
    """Mines in one stage, by the frozen views' sum: with two views CoCLR (Han et al. 2020), with more the oracle.

    With one view there is no frozen view, and this is InfoNCE.
    """
    frozen = frozen_views(config, trained)
    return Positives(Schedule([Stage(dict.fromkeys(frozen, 1.0), topk)]) if frozen else None)


def cpr(config: TrainConfig, trained: str, topk: int) -> Positives:
    """Mines by the cascade (Wu et al. 2022): frozen and trained view in turn. Several frozen views are summed."""
    frozen, mining = frozen_views(config, trained), config.mining
    if not frozen:
        return Positives()
    made = cpr_schedule((FROZEN, TRAINED), config.queue, mining.stages, mining.ratio, topk)
    return Positives(with_view_names(made, frozen, trained))


def custom(config: TrainConfig, trained: str, topk: int) -> Positives:
    """Mines by `mining.schedule` as written; `frozen` and `trained` name the views of the phase."""
    made = parse_schedule(config.mining.schedule, num_keys=config.queue).with_topk(topk)
    if unknown := [name for name in made.views if name not in (FROZEN, TRAINED, *config.views)]:
        raise ValueError(
            f"schedule: no view {unknown[0]!r} in this run; it has {', '.join(config.views)}, {FROZEN} and {TRAINED}"
        )
    return Positives(with_view_names(made, frozen_views(config, trained), trained))


def auto(config: TrainConfig, trained: str, topk: int) -> Positives:
    """Mines by a plan that the views choose on the filled queue of each phase, without labels: `tune_schedule`."""
    return Positives(tuned=True)


METHODS: dict[str, Callable[[TrainConfig, str, int], Positives]] = {
    "infonce": infonce, "ubernce": ubernce, "coclr": coclr, "cpr": cpr, "custom": custom,
    "auto": auto,
}  # fmt: skip


def method_of(config: TrainConfig, trained: str, topk: int) -> Positives:
    """Returns how positives for the trained view are found.

    Raises:
        TrainError: a schedule that cannot be, with the reason.
    """
    try:
        return METHODS[config.mining.method](config, trained, topk)
    except ValueError as error:
        raise TrainError(f"mining: {error}") from None


def frozen_views(config: TrainConfig, trained: str) -> tuple[str, ...]:
    """Returns all views but the trained one, in order."""
    return tuple(view for view in config.views if view != trained)


def with_view_names(schedule: Schedule, frozen: tuple[str, ...], trained: str) -> Schedule:
    """Replaces `frozen` and `trained` by the views that they name."""
    stages = []
    for stage in schedule:
        weights: dict[str, float] = {}
        for name, weight in stage.weights.items():
            stands_for = {FROZEN: frozen, TRAINED: (trained,)}.get(name, (name,))
            for view in stands_for:
                weights[view] = weights.get(view, 0.0) + weight
        if not weights:
            raise ValueError(f"schedule: stage {stage} weighs the frozen views, and there are none")
        stages.append(Stage(weights, stage.keep))
    return Schedule(stages)


def growing_topk(topk: int, turn: int, turns: int) -> int:
    """Returns the positives mined in a turn of two or more, counted from 0: from 1 to `topk`, evenly."""
    return round(1 + (topk - 1) * turn / (turns - 1))
