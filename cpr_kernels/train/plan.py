"""What happens at step n? The run as a list of phases, each a number of epochs, as a pure function of the
config.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from .. import Schedule, coclr_schedule, cpr_schedule
from . import TrainError
from .config import TrainConfig
from .store import VIEWS

Views = tuple[str, ...]


@dataclass(frozen=True)
class Phase:
    """Some epochs in which the same views are trained in the same way.

    The first `fill_steps` steps only fill the queue: mining in a queue that is nearly empty finds nothing
    good. `schedule` None means InfoNCE, no mining. Views not in `train` are frozen.
    """

    name: str
    train: Views
    epochs: int
    fill_steps: int
    schedule: Schedule | None

    @property
    def pretrains(self) -> bool:
        """Whether this is the InfoNCE pretraining of all views, not a part of a cycle."""
        return len(self.train) > 1

    def steps(self, steps_per_epoch: int) -> int:
        """All steps of the phase, filling included."""
        return self.fill_steps + self.epochs * steps_per_epoch


@dataclass(frozen=True)
class Moment:
    """Where a step lies. `epoch` counts from 0 in its phase, and is -1 while the queue is filled.

    `progress` is the share of the phase's training steps that lie behind.
    """

    phase: int
    step_in_phase: int
    epoch: int
    starts_phase: bool
    ends_epoch: bool
    ends_phase: bool
    progress: float


def make_plan(config: TrainConfig) -> list[Phase]:
    """InfoNCE of both views; then, cycle by cycle, RGB with flow frozen and flow with RGB frozen (Algorithm
    1).

    The frozen view judges the first and the last stage.

    Raises:
        TrainError: a schedule that the queue is too small for, or nothing to do.
    """
    phases = []
    if config.infonce_epochs:
        phases.append(Phase("infonce", VIEWS, config.infonce_epochs, 0, None))
    fill_steps = ceil(config.queue / config.clips.batch)
    for cycle in range(1, config.cycles + 1 if config.cycle_epochs else 1):
        for trained in VIEWS:
            schedule = mining_schedule(config, trained)
            name = f"cycle{cycle}-{trained}"
            phases.append(Phase(name, (trained,), config.cycle_epochs, fill_steps, schedule))
    if not phases:
        raise TrainError("infonce-epochs and cycles are both 0: nothing to do")
    return phases


def mining_schedule(config: TrainConfig, trained: str) -> Schedule | None:
    """How positives for the trained view are mined; None for method infonce."""
    mining, frozen = config.mining, other(trained)
    if mining.method == "infonce":
        return None
    if mining.method == "coclr":
        return coclr_schedule(frozen, topk=mining.topk)
    try:
        return cpr_schedule((frozen, trained), config.queue, mining.stages, mining.ratio, mining.topk)
    except ValueError as error:
        raise TrainError(f"mining: {error}") from None


def other(view: str) -> str:
    """The view that is not this one."""
    return VIEWS[1 - VIEWS.index(view)]


def locate(plan: list[Phase], steps_per_epoch: int, step: int) -> Moment:
    """Where global step `step` lies in the plan."""
    for number, phase in enumerate(plan):
        total = phase.steps(steps_per_epoch)
        if step < total:
            trained = step - phase.fill_steps
            return Moment(
                phase=number,
                step_in_phase=step,
                epoch=trained // steps_per_epoch if trained >= 0 else -1,
                starts_phase=step == 0,
                ends_epoch=trained >= 0 and (trained + 1) % steps_per_epoch == 0,
                ends_phase=step == total - 1,
                progress=max(trained, 0) / (phase.epochs * steps_per_epoch),
            )
        step -= total
    raise IndexError("step lies behind the last phase")


def total_steps(plan: list[Phase], steps_per_epoch: int) -> int:
    """Steps of the whole run."""
    return sum(phase.steps(steps_per_epoch) for phase in plan)
