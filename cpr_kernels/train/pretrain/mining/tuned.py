"""Mines by a plan that each phase tunes on its own queue, without labels, and fits anew as the encoders move."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .... import Miner, MiningPlan, tune_schedule
from ....progress import say
from ....tuning import Whitener
from ... import TrainError
from ...runtime import ranks
from ..config import TrainConfig
from ..phases import Phase
from ..video_queue import VideoQueue


class TunedMining:
    """Holds the plan that a phase mines by, and what it keeps for each key; empty in phases that are not tuned.

    The plan is chosen before a phase's first training step, on the filled queue, and its whiteners and keys are formed
    anew every `mining.refit` steps. All of it is in `state_dict`, so that a resumed run continues bit for bit. Ranks
    take the first one's plan and numbers.

    Attributes:
        miner: the :class:`Miner` on the queue, or None.
    """

    def __init__(self, config: TrainConfig, queue: VideoQueue) -> None:
        self.queue, self.seed = queue, config.seed
        self.every = config.mining.refit or ceil(config.queue / config.clips.batch)
        self.weighted = config.mining.weights == "score"
        self.miner: Miner | None = None

    @property
    def plan(self) -> MiningPlan | None:
        """Returns the plan, with its whiteners as last fitted."""
        return None if self.miner is None else self.miner.plan

    def clear(self) -> None:
        """Forgets the plan: the queue is emptied, and its next keys come from other encoders."""
        self.miner = None

    def prepare(self, phase: Phase, step: int, file: Path) -> None:
        """Prepares training step `step` of a tuned phase, counted from 0: chooses the plan, or fits it anew.

        Args:
            phase: what is trained.
            step: the first one chooses the plan.
            file: where the chosen plan is written.

        Raises:
            TrainError: entries that nothing can be chosen by or fitted to, such as a view that is the same in all.
        """
        try:
            if step == 0:
                self._begin(phase, file)
            elif step % self.every == 0 and self.miner is not None:
                self.miner.refit()
                ranks.buffers_of_first_rank(self.miner)
        except ValueError as error:
            raise TrainError(f"mining.method auto: {error}") from None

    def _begin(self, phase: Phase, file: Path) -> None:
        views = {view: rows.float() for view, rows in self.queue.views.items()}
        plan = ranks.of_first_rank(
            lambda: tune_schedule(views, self.queue.ids, topk=phase.topk, seed=self.seed).to("cpu")
        )
        self.miner = Miner(plan, self.queue)
        ranks.buffers_of_first_rank(self.miner)
        if not ranks.rank():
            file.parent.mkdir(parents=True, exist_ok=True)
            plan.save(file)
            say(f"{phase.name}: {plan.summary()}".replace("\n", "; "))

    def mine(self, anchors: Mapping[str, Tensor], sources: Tensor) -> tuple[dict[str, Tensor], Tensor | None]:
        """Returns {"mined": entries [B, k]} of mining queries {view: [B, D]}, and weights; nothing without a plan.

        Weights are None where all count alike.
        """
        if self.miner is None:
            return {}, None
        mined = self.miner(anchors, sources)
        return {"mined": mined.indices}, score_weights(mined.scores) if self.weighted else None

    def enqueue(self, keys: Mapping[str, Tensor], sources: Tensor, videos: Tensor) -> None:
        """Adds keys {view: [B, D]} to the queue, with what the plan keeps for each.

        That comes from mining the keys themselves, which the mining queries need not be.
        """
        if self.miner is None:
            self.queue.enqueue_clips(keys, sources, videos)
        else:
            self.miner.enqueue(self.miner(keys, sources), sources, labels=videos)

    def state_dict(self) -> dict[str, Any]:
        """Returns the plan and what is kept per key, as tensors and plain values; empty without a plan."""
        if self.miner is None:
            return {}
        plan = self.miner.plan
        whiten = {view: white._asdict() for view, white in plan.whiten.items()}
        return {"plan": plan.to_dict(), "whiten": whiten, "store": self.miner.store.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Loads what :meth:`state_dict` returned; the queue must hold its entries already."""
        self.clear()
        if state:
            self.miner = Miner(plan_of_state(state), self.queue)
            self.miner.store.load_state_dict(state["store"])


def score_weights(scores: Tensor) -> Tensor:
    """Returns how sure each mined pair is, [B, k] float32: the share of all pairs whose score is not above its own.

    From above 0 to 1 at the best; 0 for padding, whose score is -inf. No scale of the scores matters.
    """
    ordered, held = scores.flatten().sort().values, scores > -torch.inf
    place = torch.searchsorted(ordered, scores, right=True) - (~held).sum()
    return torch.where(held, place / held.sum(), 0.0)


def plan_of_state(state: Mapping[str, Any]) -> MiningPlan:
    """Returns the plan of a state that :meth:`TunedMining.state_dict` made."""
    whiten = {view: Whitener(**white) for view, white in state["whiten"].items()}
    return MiningPlan.from_dict(state["plan"], whiten)
