"""The family of settings that tuning compares: the joint score with its steps, and plain schedules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..mining import Schedule, Stage, coclr_schedule, cpr_schedule
from .steps import Expansion, joint_schedule

POWERS = (0.0, 0.25, 0.5, 0.75, 1.0)
HUB = 50  # neighbours that the hub term averages; fewer lose positives
STEPS: tuple[
    tuple[Expansion | None, int | None], ...
] = (  # expansion, and whether the hub term is subtracted
    (None, None),
    (None, HUB),
    (Expansion(5, 3), None),
    (Expansion(5, 3), HUB),
    (Expansion(5, 1), HUB),
    (Expansion(10, 3), HUB),
)
MOST_NEIGHBORS = max(HUB, *(expand.neighbors for expand, _ in STEPS if expand))
CASCADES = (3, 5, 7)


@dataclass(frozen=True)
class Settings:
    """Says how to mine, but for the whiteners' numbers."""

    power: float  # of the whitening, 0 none to 1 full
    expand: Expansion | None
    hub: int | None
    schedule: Schedule

    def __str__(self) -> str:
        """Returns them in short: whitening p, expansion by m neighbours to the power a, hub; plain, the schedule."""
        words = [f"p {self.power:g}"]
        if self.expand is not None:
            words.append(f"m {self.expand.neighbors}, a {self.expand.power:g}")
        if self.hub is not None:
            words.append("hub")
        if self.power or len(words) > 1:
            return ", ".join(words)
        stages = len(self.schedule)
        return schedule_text(self.schedule) if stages == 1 else f"cascade of {stages} stages"


@dataclass(frozen=True)
class Candidate:
    """Holds settings that were tried, and what the views left out say of them."""

    settings: Settings
    agreement: float  # share of the mined pairs that are mutual neighbours in a view left out
    behind: float  # how far below the best agreement, in standard errors of the difference
    chosen: bool = False

    def row(self) -> list[str]:
        """Returns the cells of the table of candidates."""
        tried = self.settings
        expand = "" if tried.expand is None else f"{tried.expand.neighbors}, {tried.expand.power:g}"
        return [
            "*" if self.chosen else "", f"{tried.power:g}", expand, str(tried.hub or ""), f"{self.agreement:.4f}",
            f"{self.behind:.1f}", schedule_text(tried.schedule),
        ]  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Returns the candidate ready for JSON."""
        tried = self.settings
        return {
            "whitening": tried.power,
            "expand": None if tried.expand is None else tried.expand._asdict(),
            "hub": tried.hub,
            "schedule": tried.schedule.to_list(),
            "agreement": self.agreement,
            "behind": self.behind,
            "chosen": self.chosen,
        }

    @classmethod
    def of_dict(cls, found: Mapping[str, Any]) -> Candidate:
        """Makes a candidate of what :meth:`to_dict` returned."""
        expand, hub = found["expand"], found["hub"]
        settings = Settings(
            float(found["whitening"]),
            None if expand is None else Expansion(int(expand["neighbors"]), float(expand["power"])),
            None if hub is None else int(hub),
            Schedule.from_list(found["schedule"]),
        )
        return cls(settings, float(found["agreement"]), float(found["behind"]), bool(found["chosen"]))


COLUMNS = ("", "whitening", "expansion", "hub", "agreement", "behind", "schedule")


def schedule_text(schedule: Schedule) -> str:
    """Returns a schedule as text, a mean of views as their sum: it ranks alike."""
    stages = []
    for stage in schedule:
        equal = len(set(stage.weights.values())) == 1
        stages.append(f"{'+'.join(stage.weights)}:{stage.keep}" if equal else str(stage))
    return ",".join(stages)


def tuned_settings(views: Sequence[str], topk: int) -> list[Settings]:
    """Returns the settings of the joint score, plain first."""
    joint = joint_schedule(tuple(views), topk)
    return [Settings(power, expand, hub, joint) for power in POWERS for expand, hub in STEPS]


def plain_schedules(views: Sequence[str], rows: int, topk: int, sample: int) -> list[Schedule]:
    """Returns single views, and cascades (ratio 0.5, views in order) over `rows` entries that also fit `sample`."""
    schedules = [coclr_schedule(view, topk) for view in views]
    fitting = [stages for stages in CASCADES if sample // 2 ** (stages - 1) >= topk]
    return schedules + [cpr_schedule(views, rows, stages, 0.5, topk) for stages in fitting]


def without_views(schedule: Schedule, left_out: Sequence[str]) -> Schedule | None:
    """Returns the schedule with some views taken out; None where its last stage, which decides, would lose all views.

    Another stage that loses all its views is dropped. Weights of the views that stay are kept.
    """
    stages = []
    for stage in schedule:
        weights = {view: weight for view, weight in stage.weights.items() if view not in left_out}
        if any(weights.values()):
            stages.append(Stage(weights, stage.keep))
        elif stage is schedule[-1]:
            return None
    return Schedule(stages)
