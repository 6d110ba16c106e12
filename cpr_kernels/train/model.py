"""What is learnt, and by which loss? An encoder a view, their momentum copies, one queue, one step."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from .. import MultiViewQueue, Schedule, ema_update_, mil_nce
from .compute import autocast
from .config import SIBLINGS, TrainConfig
from .norms import calibrate_
from .parallel import averaged, buffers_of_first_rank, shuffled, unsynchronised
from .plan import Phase
from .quality import mine
from .views import chosen

Clips = dict[str, Tensor]

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}  # by dimensions


@dataclass(frozen=True)
class Inputs:
    """A batch, augmented, or this rank's share of it.

    clips: {view: [2, B, ...]}, the two clips of each video, as `View.augmented` gives them. sources, videos: [B]
    int64; entries of the queue with a clip's source are its siblings. seed: the same on all ranks, another each step.
    """

    clips: Clips
    sources: Tensor
    videos: Tensor
    seed: int = 0

    def split(self, parts: int) -> list[Inputs]:
        """So many parts of about one size, in order."""
        rows = torch.arange(len(self.sources)).tensor_split(min(parts, len(self.sources)))
        if len(rows) == 1:
            return [self]
        return [
            Inputs(
                {view: clips[:, some[0] : some[-1] + 1] for view, clips in self.clips.items()},
                self.sources[some[0] : some[-1] + 1], self.videos[some[0] : some[-1] + 1], self.seed + number,
            )
            for number, some in enumerate(rows)
        ]  # fmt: skip


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
        self.parallel: dict[str, nn.Module] = {}  # the trained encoders, averaging gradients over ranks
        self.queue = MultiViewQueue(dict.fromkeys(encoders, config.embedding), config.queue)
        self.register_buffer("classes", classes, persistent=False)
        for parameter in self.parameters():
            if parameter.dim() in CHANNELS_LAST:
                parameter.data = parameter.data.to(memory_format=CHANNELS_LAST[parameter.dim()])
        if config.compile:
            for encoder in (*self.online.values(), *self.momentum.values()):
                encoder.compile()

    def start_phase(self, phase: Phase) -> None:
        """Momentum encoders restart from the online ones; the queue is emptied: its keys came from other
        encoders.
        """
        buffers_of_first_rank(self.online)
        for view in self.online:
            self.momentum[view].load_state_dict(self.online[view].state_dict())
        self.queue.ids.fill_(-1)
        self.queue.labels.fill_(-1)
        self.queue.pointer.zero_()
        self.queue.count.zero_()
        self.set_modes(phase)

    def calibrate(self, inputs: Inputs) -> None:
        """Gives encoders that have seen nothing the batch-norm statistics of a first batch; see `calibrate_`."""
        for view, encoder in self.online.items():
            calibrate_(encoder, channels_last(inputs.clips[view][0]))

    def set_modes(self, phase: Phase) -> None:
        """Trained views in training mode; a frozen view only encodes, with its running batch-norm
        statistics.
        """
        for view in self.online:
            trained = view in phase.train
            self.online[view].train(trained).requires_grad_(trained)
            self.momentum[view].train(trained)
        self.parallel = {view: averaged(self.online[view]) for view in phase.train}

    def encode(self, encoder: nn.Module, clips: Tensor) -> Tensor:
        """L2-normalised embeddings [B, D], float32 whatever the convolutions run in."""
        amp = self.config.amp
        with autocast(clips.device, amp):
            embeddings: Tensor = encoder(channels_last(clips))
        return embeddings if amp == "off" else functional.normalize(embeddings.float(), dim=1)

    @torch.no_grad()
    def keys(self, inputs: Inputs, phase: Phase) -> dict[str, Tensor]:
        """{view: [B, D]} of the second clips: momentum encoders for trained views, the frozen encoders for
        the others.
        """
        keys = {}
        for view in self.online:
            clips = inputs.clips[view][1]
            if view in phase.train:
                keys[view] = shuffled(partial(self.encode, self.momentum[view]), clips, inputs.seed)
            else:
                keys[view] = self.encode(self.online[view], clips)
        return keys

    @torch.no_grad()
    def anchors(
        self, inputs: Inputs, keys: dict[str, Tensor], queries: dict[str, Tensor], phase: Phase
    ) -> dict[str, Tensor]:
        """{view: [B, D]}: what stands for each clip while mining, as `mining.query` and `frozen_query` say."""
        anchors, mining = dict(keys), self.config.mining
        if mining.query == "online":
            anchors.update({view: query.detach() for view, query in queries.items()})
        if mining.frozen_query == "online" and phase.schedule:
            frozen = [view for view in self.online if view not in phase.train]
            anchors.update({view: self.encode(self.online[view], inputs.clips[view][0]) for view in frozen})
        return anchors

    def fill_step(self, inputs: Inputs, phase: Phase) -> None:
        """Only adds this batch's keys to the queue."""
        self.queue.enqueue(self.keys(inputs, phase), inputs.sources, labels=inputs.videos)

    def train_step(
        self, inputs: Inputs, phase: Phase, measured: dict[str, Schedule], use_own: Tensor | None
    ) -> StepResult:
        """Losses of a batch with their gradients, and what was mined; then its keys enter the queue.

        `measured` are further schedules to mine with, for the figures. `use_own` [B] bool: see `mil_nce`. With
        `optim.accumulate` the batch goes through the encoders in that many parts; all see the same queue.
        """
        for view in phase.train:
            ema_update_(self.online[view], self.momentum[view], self.config.optim.momentum)
        parts = inputs.split(self.config.optim.accumulate)
        results, all_keys, row = [], [], 0
        for number, part in enumerate(parts):
            own = None if use_own is None else use_own[row : row + len(part.sources)]
            row += len(part.sources)
            waiting = list(self.parallel.values()) if number < len(parts) - 1 else []
            with unsynchronised(waiting):
                result, keys = self._part_step(
                    part, phase, measured, own, len(part.sources) / len(inputs.sources)
                )
            results.append(result)
            all_keys.append(keys)
        whole = {view: torch.cat([keys[view] for keys in all_keys]) for view in self.online}
        self.queue.enqueue(whole, inputs.sources, labels=inputs.videos)
        return StepResult(
            {view: torch.stack([result.losses[view] for result in results]).sum() for view in phase.train},
            {name: torch.cat([result.mined[name] for result in results]) for name in results[0].mined},
        )

    def _part_step(
        self,
        inputs: Inputs,
        phase: Phase,
        measured: dict[str, Schedule],
        use_own: Tensor | None,
        share: float,
    ) -> tuple[StepResult, dict[str, Tensor]]:
        """Losses, times the part's share of the batch, and their gradients; what was mined; the keys."""
        keys = self.keys(inputs, phase)
        queries = {view: self.encode(self.parallel[view], inputs.clips[view][0]) for view in phase.train}
        anchors = self.anchors(inputs, keys, queries, phase)
        schedules = {**({"mined": phase.schedule} if phase.schedule else {}), **measured}
        mined = mine(anchors, self.queue, schedules, inputs.sources)
        nothing = torch.empty(len(inputs.sources), 0, dtype=torch.int64, device=inputs.sources.device)
        siblings, query_ids, key_ids = self._relations(inputs, phase)
        losses = {
            view: share * mil_nce(
                query, keys[view], self.queue.views[view], mined.get("mined", nothing),
                self.config.optim.temperature, query_ids=query_ids, key_ids=key_ids, use_own=use_own,
                siblings=SIBLINGS[siblings],
            )
            for view, query in queries.items()
        }  # fmt: skip
        torch.stack(list(losses.values())).sum().backward()
        return StepResult({view: loss.detach() for view, loss in losses.items()}, mined), keys

    def _relations(self, inputs: Inputs, phase: Phase) -> tuple[str, Tensor, Tensor]:
        """The loss's rule for entries with a clip's id, and the ids [B] and [N]: sources, or classes where
        labels are the positives.
        """
        if phase.supervised:
            held = self.queue.labels  # the video of each entry
            return "positive", self.classes[inputs.videos], torch.where(held >= 0, self.classes[held], -1)
        mining = self.config.mining
        rule = mining.siblings if phase.schedule else mining.infonce_siblings
        return rule, inputs.sources, self.queue.ids


def channels_last(tensor: Tensor) -> Tensor:
    """The memory layout in which convolutions over 4 or 5 dimensions are fastest; others stay."""
    return tensor.contiguous(memory_format=CHANNELS_LAST.get(tensor.dim(), torch.contiguous_format))


def new_encoders(config: TrainConfig) -> dict[str, nn.Module]:
    """A fresh encoder a view, its weights a function of the seed alone; no global state is changed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return {name: view.encoder(config) for name, view in chosen(config.views).items()}
