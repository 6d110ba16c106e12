"""Plans a run as a list of phases, each a number of epochs, as a pure function of the config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil

from ... import Schedule
from .. import TrainError
from .config import Optim, TrainConfig
from .methods import growing_topk, method_of

Views = tuple[str, ...]


@dataclass(frozen=True)
class Phase:
    """Describes epochs in which the same views are trained in the same way; the others are frozen.

    The first `fill_steps` steps only fill the queue: mining in a queue that is nearly empty finds nothing
    good. `schedule` None means that nothing is mined, or with `tuned` that a plan is chosen when the queue is
    filled. `supervised`: entries of a clip's class are its positives. `pretrains`: this is the InfoNCE pretraining
    of all views, not a part of a cycle. `topk` is how many this phase's mining, and its baselines, pick.
    """

    name: str
    train: Views
    epochs: int
    fill_steps: int
    schedule: Schedule | None
    topk: int = 5
    supervised: bool = False
    pretrains: bool = False
    tuned: bool = False

    @property
    def mines(self) -> bool:
        """Returns whether positives are mined."""
        return self.tuned or self.schedule is not None

    def steps(self, steps_per_epoch: int) -> int:
        """Returns the number of steps of the phase, filling included."""
        return self.fill_steps + self.epochs * steps_per_epoch


@dataclass(frozen=True)
class Moment:
    """Locates a step: `epoch` counts from 0 in its phase, and is -1 while the queue is filled.

    `progress` is the share of the phase's training steps that are done, `overall` that of the whole run's.
    """

    phase: int
    step_in_phase: int
    epoch: int
    starts_phase: bool
    ends_epoch: bool
    ends_phase: bool
    progress: float
    overall: float


def make_plan(config: TrainConfig) -> list[Phase]:
    """Returns the phases: InfoNCE of all views; then, per cycle, each view in turn, the others frozen (Algorithm 1).

    Raises:
        TrainError: a schedule that the queue is too small for, or nothing to do.
    """
    if config.framework == "iic":
        return _plan_of_iic(config)
    phases = []
    if config.infonce_epochs:
        topk = config.mining.topk
        phases.append(
            Phase("infonce", config.views, config.infonce_epochs, 0, None, topk=topk, pretrains=True)
        )
    fill_steps = ceil(config.queue / config.clips.batch)
    for cycle in range(1, config.cycles + 1 if config.cycle_epochs else 1):
        topk = topk_of_cycle(config, cycle)
        for trained in config.cycle_views or config.views:
            method = method_of(config, trained, topk)
            phases.append(
                Phase(
                    f"cycle{cycle}-{trained}", (trained,), config.cycle_epochs, fill_steps, method.schedule,
                    topk=topk, supervised=method.supervised, tuned=method.tuned,
                )
            )  # fmt: skip
    if not phases:
        raise TrainError("infonce-epochs and cycles are both 0: nothing to do")
    if config.goes_on is not None:  # its queue is full of the run before
        phases[0] = replace(phases[0], fill_steps=0)
    return phases


def _plan_of_iic(config: TrainConfig) -> list[Phase]:
    """Returns the phases of IIC: NCE, then cycles with mined positives; both views train their one encoder in each."""
    phases = []
    if config.infonce_epochs:
        topk = config.mining.topk
        phases.append(Phase("iic", config.views, config.infonce_epochs, 0, None, topk=topk, pretrains=True))
    for cycle in range(1, config.cycles + 1 if config.cycle_epochs else 1):
        topk = topk_of_cycle(config, cycle)
        schedule = method_of(config, config.views[0], topk).schedule
        phases.append(Phase(f"cycle{cycle}", config.views, config.cycle_epochs, 0, schedule, topk=topk))
    if not phases:
        raise TrainError("infonce-epochs and cycles are both 0: nothing to do")
    return phases


def topk_of_cycle(config: TrainConfig, cycle: int) -> int:
    """Returns the positives mined in a cycle, counted from 1.

    That is `topk`, or with `progressive` from 1 in the first cycle to `topk` in the last, evenly.
    """
    mining = config.mining
    if not mining.progressive:
        return mining.topk
    if config.cycles < 2:
        raise TrainError(
            f"mining.progressive: positives grow from cycle to cycle, so it needs 2 cycles or more, got {config.cycles}"
        )
    return growing_topk(mining.topk, cycle - 1, config.cycles)


def locate(plan: list[Phase], steps_per_epoch: int, step: int) -> Moment:
    """Returns the moment of global step `step` in the plan."""
    behind = 0
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
                overall=(behind + max(trained, 0)) / (sum(p.epochs for p in plan) * steps_per_epoch),
            )
        step -= total
        behind += phase.epochs * steps_per_epoch
    raise IndexError("step is after the last phase")


def second_clip_only(
    config: TrainConfig, plan: list[Phase], steps_per_epoch: int, stored: Mapping[str, str], step: int
) -> frozenset[str]:
    """Returns the records of frozen views, of whose videos a step encodes the second clip alone.

    stored: {view: record that it is cut from}. None in step 0, from whose first clips batch norm begins, and none after
    the last one, for which workers may prepare.
    """
    if config.framework == "iic" or config.mining.frozen_query == "online":
        return frozenset()
    if not 0 < step < total_steps(plan, steps_per_epoch):
        return frozenset()
    trained = {stored[view] for view in plan[locate(plan, steps_per_epoch, step).phase].train}
    return frozenset(stored.values()) - trained


def total_steps(plan: list[Phase], steps_per_epoch: int) -> int:
    """Returns the number of steps of the whole run."""
    return sum(phase.steps(steps_per_epoch) for phase in plan)


def learning_rate(optim: Optim, phase: Phase, moment: Moment) -> float:
    """Returns the rate at a training step of a phase: warm-up, then constant, then a tenth."""
    full = optim.lr if phase.pretrains or optim.cycle_lr is None else optim.cycle_lr
    if optim.steps:
        return full * optim.step_factor ** sum(moment.overall >= step for step in optim.steps)
    grown = min(1.0, (moment.step_in_phase - phase.fill_steps + 1) / max(optim.warmup, 1))
    return full * grown * (0.1 if moment.progress >= optim.decay_at else 1.0)
