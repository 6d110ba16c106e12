"""What is learnt, and by which loss? An encoder a view, their momentum copies, one queue, one step."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .. import MultiViewQueue, Schedule, ema_update_, mil_nce
from .config import SIBLINGS, TrainConfig
from .plan import Phase
from .quality import mine
from .views import chosen

Clips = dict[str, Tensor]  # {view: [2, B, ...]}, the two clips of each video, as `View.augmented` gives them

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}  # by dimensions


@dataclass
class StepResult:
    """Losses of the trained views, and {schedule: indices [B, k]} of what was mined."""

    losses: dict[str, Tensor]
    mined: dict[str, Tensor]


class MultiViewModel(nn.Module):
    """Online and momentum encoders of every view, and the queue of past keys; all in `state_dict`.

    encoders: {view: encoder}. classes: [videos] int64, the class of each, read by supervised phases only.
    """

    classes: Tensor

    def __init__(self, config: TrainConfig, encoders: dict[str, nn.Module], classes: Tensor) -> None:
        super().__init__()
        self.config = config
        self.online = nn.ModuleDict(encoders)
        self.momentum = nn.ModuleDict({view: copy.deepcopy(encoder) for view, encoder in encoders.items()})
        self.momentum.requires_grad_(False)
        self.queue = MultiViewQueue(dict.fromkeys(encoders, config.embedding), config.queue)
        self.register_buffer("classes", classes, persistent=False)
        for parameter in self.parameters():
            if parameter.dim() in CHANNELS_LAST:
                parameter.data = parameter.data.to(memory_format=CHANNELS_LAST[parameter.dim()])

    def start_phase(self, phase: Phase) -> None:
        """Momentum encoders restart from the online ones; the queue is emptied: its keys came from other
        encoders.
        """
        for view in self.online:
            self.momentum[view].load_state_dict(self.online[view].state_dict())
        self.queue.ids.fill_(-1)
        self.queue.labels.fill_(-1)
        self.queue.pointer.zero_()
        self.queue.count.zero_()
        self.set_modes(phase)

    def set_modes(self, phase: Phase) -> None:
        """Trained views in training mode; a frozen view only encodes, with its running batch-norm
        statistics.
        """
        for view in self.online:
            trained = view in phase.train
            self.online[view].train(trained).requires_grad_(trained)
            self.momentum[view].train(trained)

    @torch.no_grad()
    def keys(self, clips: Clips, phase: Phase) -> dict[str, Tensor]:
        """{view: [B, D]} of the second clips: momentum encoders for trained views, the frozen encoders for
        the others.
        """
        keys = {}
        for view in self.online:
            encoder = self.momentum[view] if view in phase.train else self.online[view]
            keys[view] = encoder(channels_last(clips[view][1]))
        return keys

    @torch.no_grad()
    def anchors(
        self, clips: Clips, keys: dict[str, Tensor], queries: dict[str, Tensor], phase: Phase
    ) -> dict[str, Tensor]:
        """{view: [B, D]}: what stands for each clip while mining, as `mining.query` and `frozen_query` say."""
        anchors, mining = dict(keys), self.config.mining
        if mining.query == "online":
            anchors.update({view: query.detach() for view, query in queries.items()})
        if mining.frozen_query == "online" and phase.schedule:
            frozen = [view for view in self.online if view not in phase.train]
            anchors.update({view: self.online[view](channels_last(clips[view][0])) for view in frozen})
        return anchors

    def fill_step(self, clips: Clips, sources: Tensor, videos: Tensor, phase: Phase) -> None:
        """Only adds this batch's keys to the queue."""
        self.queue.enqueue(self.keys(clips, phase), sources, labels=videos)

    def train_step(
        self, clips: Clips, sources: Tensor, videos: Tensor, phase: Phase, measured: dict[str, Schedule],
        use_own: Tensor | None,
    ) -> StepResult:  # fmt: skip
        """Losses of a batch with their gradients, and what was mined; then its keys enter the queue.

        sources, videos: [B] int64; entries with a clip's source are its siblings. `measured` are further
        schedules to mine with, for the figures. `use_own` [B] bool: see `mil_nce`.
        """
        config = self.config
        for view in phase.train:
            ema_update_(self.online[view], self.momentum[view], config.optim.momentum)
        keys = self.keys(clips, phase)
        queries = {view: self.online[view](channels_last(clips[view][0])) for view in phase.train}
        anchors = self.anchors(clips, keys, queries, phase)
        schedules = {**({"mined": phase.schedule} if phase.schedule else {}), **measured}
        mined = mine(anchors, self.queue, schedules, sources)
        nothing = torch.empty(len(sources), 0, dtype=torch.int64, device=sources.device)
        siblings, query_ids, key_ids = self._relations(sources, videos, phase)
        losses = {
            view: mil_nce(
                query, keys[view], self.queue.views[view], mined.get("mined", nothing),
                config.optim.temperature, query_ids=query_ids, key_ids=key_ids, use_own=use_own,
                siblings=SIBLINGS[siblings],
            )
            for view, query in queries.items()
        }  # fmt: skip
        torch.stack(list(losses.values())).sum().backward()
        self.queue.enqueue(keys, sources, labels=videos)
        return StepResult({view: loss.detach() for view, loss in losses.items()}, mined)

    def _relations(self, sources: Tensor, videos: Tensor, phase: Phase) -> tuple[str, Tensor, Tensor]:
        """The loss's rule for entries with a clip's id, and the ids [B] and [N]: sources, or classes where
        labels are the positives.
        """
        if phase.supervised:
            held = self.queue.labels  # the video of each entry
            return "positive", self.classes[videos], torch.where(held >= 0, self.classes[held], -1)
        mining = self.config.mining
        rule = mining.siblings if phase.schedule else mining.infonce_siblings
        return rule, sources, self.queue.ids


def channels_last(tensor: Tensor) -> Tensor:
    """The memory layout in which convolutions over 4 or 5 dimensions are fastest; others stay."""
    return tensor.contiguous(memory_format=CHANNELS_LAST.get(tensor.dim(), torch.contiguous_format))


def new_encoders(config: TrainConfig) -> dict[str, nn.Module]:
    """A fresh encoder a view, its weights a function of the seed alone; no global state is changed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return {name: view.encoder(config) for name, view in chosen(config.views).items()}
