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
from .s3d import Encoder
from .store import VIEWS

Clips = dict[str, Tensor]  # {view: [2, B, 3, T, H, W]}, the two clips of each video


@dataclass
class StepResult:
    """Losses of the trained views, and {schedule: indices [B, k]} of what was mined."""

    losses: dict[str, Tensor]
    mined: dict[str, Tensor]


class TwoViewModel(nn.Module):
    """Online and momentum encoders of both views, and the queue of past keys; all in `state_dict`."""

    def __init__(self, config: TrainConfig, encoders: dict[str, Encoder]) -> None:
        super().__init__()
        self.config = config
        self.online = nn.ModuleDict(encoders)
        self.momentum = nn.ModuleDict({view: copy.deepcopy(encoder) for view, encoder in encoders.items()})
        self.momentum.requires_grad_(False)
        self.queue = MultiViewQueue(dict.fromkeys(encoders, config.embedding), config.queue)
        self.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def start_phase(self, phase: Phase) -> None:
        """Momentum encoders restart from the online ones; the queue is emptied: its keys came from other
        encoders.
        """
        for view in VIEWS:
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
        for view in VIEWS:
            trained = view in phase.train
            self.online[view].train(trained).requires_grad_(trained)
            self.momentum[view].train(trained)

    @torch.no_grad()
    def keys(self, clips: Clips, phase: Phase) -> dict[str, Tensor]:
        """{view: [B, D]} of the second clips: momentum encoders for trained views, the frozen encoder for
        the other.
        """
        keys = {}
        for view in VIEWS:
            encoder = self.momentum[view] if view in phase.train else self.online[view]
            keys[view] = encoder(channels_last(clips[view][1]))
        return keys

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
        anchors = dict(keys)
        if config.mining.query == "online":
            anchors.update({view: query.detach() for view, query in queries.items()})
        schedules = {**({"mined": phase.schedule} if phase.schedule else {}), **measured}
        mined = mine(anchors, self.queue, schedules, sources)
        nothing = torch.empty(len(sources), 0, dtype=torch.int64, device=sources.device)
        siblings = config.mining.siblings if phase.schedule else config.mining.infonce_siblings
        losses = {
            view: mil_nce(
                query, keys[view], self.queue.views[view], mined.get("mined", nothing),
                config.optim.temperature, query_ids=sources, key_ids=self.queue.ids, use_own=use_own,
                siblings=SIBLINGS[siblings],
            )
            for view, query in queries.items()
        }  # fmt: skip
        torch.stack(list(losses.values())).sum().backward()
        self.queue.enqueue(keys, sources, labels=videos)
        return StepResult({view: loss.detach() for view, loss in losses.items()}, mined)


def channels_last(clip: Tensor) -> Tensor:
    """The memory layout in which 3D convolutions are fastest."""
    return clip.contiguous(memory_format=torch.channels_last_3d)


def new_encoders(config: TrainConfig) -> dict[str, Encoder]:
    """A fresh encoder a view, its weights a function of the seed alone; no global state is changed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return {view: Encoder(config.width, config.embedding) for view in VIEWS}
