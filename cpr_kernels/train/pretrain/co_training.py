"""Trains one encoder per view by MIL-NCE on mined positives: momentum copies, one queue, one step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ... import MiningPlan, Schedule, cascade_topk, ema_update_, mil_nce
from ...networks.inputs import CHANNELS_LAST, channels_last
from ...progress import say
from .. import TrainError
from ..encoders.forward import calibrate_, embeddings_of
from ..encoders.weights import load_encoder
from ..runtime.ranks import averaged, buffers_of_first_rank, rank, shuffled, unsynchronised
from ..views import chosen
from .config import SIBLINGS, TrainConfig
from .mining.tuned import TunedMining
from .phases import Phase
from .video_queue import VideoQueue


@dataclass(frozen=True)
class Inputs:
    """Holds a batch, augmented, or this rank's share of it.

    clips: {view: [2, B, ...]}, the two clips of each video, as `View.augmented` gives them, or [1, B, ...], the second
    one, of a view of which the phase needs no more. sources, videos: [B]
    int64; entries of the queue with a clip's source are its siblings. seed: the same on all ranks, another each step.
    """

    clips: dict[str, Tensor]
    sources: Tensor
    videos: Tensor
    seed: int = 0

    def split(self, parts: int) -> list[Inputs]:
        """Splits the batch into `parts` parts of about one size, in order."""
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
    """Holds the losses of the trained views, and {schedule: indices [B, k]} of what was mined."""

    losses: dict[str, Tensor]
    mined: dict[str, Tensor]


class MultiViewModel(nn.Module):
    """Holds online and momentum encoders of every view, and the queue of past keys; all in `state_dict`.

    encoders: {view: encoder}. classes: [videos] int64, the class of each, read by supervised phases only. Every video
    has every view; `missing_views.MissingViewsModel` trains on videos that lack some.
    """

    classes: Tensor

    def __init__(self, config: TrainConfig, encoders: dict[str, nn.Module], classes: Tensor) -> None:
        super().__init__()
        self.config = config
        self.online = nn.ModuleDict(encoders)
        self.momentum = nn.ModuleDict({view: copy.deepcopy(encoder) for view, encoder in encoders.items()})
        self.momentum.requires_grad_(False)
        self.parallel: dict[str, nn.Module] = {}  # the trained encoders, averaging gradients over ranks
        sizes: dict[str, Any] = {view: encoder.embedding for view, encoder in encoders.items()}
        self.queue = VideoQueue(sizes, config.queue)
        self.tuned = TunedMining(config, self.queue)  # for the phases that choose how to mine
        self.register_buffer("classes", classes, persistent=False)
        for parameter in self.parameters():
            if parameter.dim() in CHANNELS_LAST:
                parameter.data = parameter.data.to(memory_format=CHANNELS_LAST[parameter.dim()])
        if config.compile:
            for encoder in (*self.online.values(), *self.momentum.values()):
                encoder.compile()

    def start_phase(self, phase: Phase) -> None:
        """Copies the online encoders to the momentum encoders and empties the queue.

        The queue's keys came from other encoders.
        """
        buffers_of_first_rank(self.online)
        for view in self.online:
            self.momentum[view].load_state_dict(self.online[view].state_dict())
        self.queue.reset()
        self.tuned.clear()
        self.set_modes(phase)

    def calibrate(self, inputs: Inputs) -> None:
        """Sets initial batch-norm statistics of untrained encoders from a first batch; see `calibrate_`."""
        for view, encoder in self.online.items():
            clips = self.first_clips(inputs, view)
            if len(clips):
                calibrate_(encoder, channels_last(clips))
        buffers_of_first_rank(self.online)

    def first_clips(self, inputs: Inputs, view: str) -> Tensor:
        """Returns the first clip of the batch [B, ...] of every video that has the view."""
        return inputs.clips[view][0]

    @property
    def held_videos(self) -> Tensor:
        """Returns the video of each entry that mining chooses from, [N] int64, -1 for an empty slot."""
        return self.queue.videos

    @property
    def entries(self) -> tuple[dict[str, Tensor], Tensor]:
        """Returns what mining chooses from: {view: [N, D]}, and the source of each entry [N]."""
        return self.queue.views, self.queue.ids

    def shared_state(self) -> dict[str, nn.Module]:
        """Returns the modules that must be equal on all ranks, by name."""
        parts: dict[str, nn.Module] = {"online encoders": self.online, "momentum encoders": self.momentum}
        parts["queue"] = self.queue if self.tuned.miner is None else self.tuned.miner
        return parts

    def mines_by(self, phase: Phase) -> Schedule | MiningPlan | None:
        """Returns what positives are mined by in a phase."""
        return self.tuned.plan or phase.schedule

    def set_modes(self, phase: Phase) -> None:
        """Sets trained views to training mode; a frozen view only encodes, with its running batch-norm statistics."""
        for view in self.online:
            trained = view in phase.train
            self.online[view].train(trained).requires_grad_(trained)
            self.momentum[view].train(trained)
        self.parallel = {view: averaged(self.online[view]) for view in phase.train}

    def trained_parameters(self, phase: Phase) -> list[nn.Parameter]:
        """Returns the parameters that the optimiser changes in a phase."""
        return [p for view in phase.train for p in self.online[view].parameters()]

    def is_full(self, seen: int, phase: int) -> bool:
        """Returns whether the queue is full after `seen` clips of a phase."""
        return seen >= self.config.queue

    def encode(self, inputs: Inputs, view: str, clip: int, encode: Callable[[Tensor], Tensor]) -> Tensor:
        """Returns the embeddings [B, D] of the first (0) or second (-1) clips in a view."""
        return encode(inputs.clips[view][clip])

    @torch.no_grad()
    def keys(self, inputs: Inputs, phase: Phase) -> dict[str, Tensor]:
        """Returns {view: [B, D]} of the second clips, by momentum encoders, or of frozen views by their encoders."""
        keys = {}
        for view in self.online:
            if view in phase.train:
                encode = partial(embeddings_of, self.momentum[view], amp=self.config.amp)
                keys[view] = self.encode(inputs, view, -1, partial(shuffled, encode, seed=inputs.seed))
            else:
                keys[view] = self.encode(inputs, view, -1, self._frozen(view))
        return keys

    def _frozen(self, view: str) -> Callable[[Tensor], Tensor]:
        return partial(embeddings_of, self.online[view], amp=self.config.amp)

    @torch.no_grad()
    def anchors(
        self, inputs: Inputs, keys: dict[str, Tensor], queries: dict[str, Tensor], phase: Phase
    ) -> dict[str, Tensor]:
        """Returns {view: [B, D]}: the embeddings used as mining queries, as `mining.query` and `frozen_query` say."""
        anchors, mining = dict(keys), self.config.mining
        if mining.query == "online":
            anchors.update({view: query.detach() for view, query in queries.items()})
        if mining.frozen_query == "online" and phase.mines:
            frozen = [view for view in self.online if view not in phase.train]
            anchors.update({view: self.encode(inputs, view, 0, self._frozen(view)) for view in frozen})
        return anchors

    def fill_step(self, inputs: Inputs, phase: Phase) -> None:
        """Adds this batch's keys to the queue, without training."""
        self.queue.enqueue_clips(self.keys(inputs, phase), inputs.sources, inputs.videos)

    def train_step(
        self, inputs: Inputs, phase: Phase, measured: dict[str, Schedule], use_own: Tensor | None
    ) -> StepResult:
        """Computes the losses of a batch and their gradients, mines, and then adds the batch's keys to the queue.

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
                result, keys = self._part_step(part, phase, measured, own, inputs.videos)
            results.append(result)
            all_keys.append(keys)
        whole = {view: torch.cat([keys[view] for keys in all_keys]) for view in self.online}
        self.tuned.enqueue(whole, inputs.sources, inputs.videos)
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
        batch: Tensor,
    ) -> tuple[StepResult, dict[str, Tensor]]:
        """Computes the losses of a part and their gradients; returns what was mined, and the keys.

        Losses are shares of the mean over the `batch` of videos.
        """
        keys = self.keys(inputs, phase)
        queries = {
            view: self.encode(
                inputs, view, 0, partial(embeddings_of, self.parallel[view], amp=self.config.amp)
            )
            for view in phase.train
        }
        anchors = self.anchors(inputs, keys, queries, phase)
        schedules = {**({"mined": phase.schedule} if phase.schedule else {}), **measured}
        mined, weights = self.mine(inputs, anchors, schedules, phase)
        nothing = torch.empty(len(inputs.sources), 0, dtype=torch.int64, device=inputs.sources.device)
        siblings, query_ids, key_ids = self._relations(inputs, phase)
        losses = {}
        for view, query in queries.items():
            each = mil_nce(
                query, keys[view], self.queue.views[view], mined.get("mined", nothing),
                self.config.optim.temperature, query_ids=query_ids,
                key_ids=self.loss_ids(view, key_ids), use_own=use_own,
                siblings=SIBLINGS[siblings], reduction="none", positive_weights=weights,
            )  # fmt: skip
            losses[view] = self.mean(view, each, inputs, batch)
        torch.stack(list(losses.values())).sum().backward()
        return StepResult({view: loss.detach() for view, loss in losses.items()}, mined), keys

    @torch.no_grad()
    def mine(
        self, inputs: Inputs, anchors: dict[str, Tensor], schedules: dict[str, Schedule], phase: Phase
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """Returns {schedule: entries [B, k]}, the positives of each clip by every schedule, and by a tuned plan.

        Beside them the weights [B, k] of the plan's in the loss; None where all count alike.
        """
        mined, weights = self.tuned.mine(anchors, inputs.sources)
        ids = self.queue.ids
        return mined | {
            name: cascade_topk(anchors, self.queue.views, schedule, query_ids=inputs.sources, key_ids=ids)[0]
            for name, schedule in schedules.items()
        }, weights

    def loss_ids(self, view: str, ids: Tensor) -> Tensor:
        """Returns the ids [N] of the queue's entries for the loss of a view; -1 leaves an entry out."""
        return ids

    def mean(self, view: str, losses: Tensor, inputs: Inputs, batch: Tensor) -> Tensor:
        """Returns the losses [B] of a part of the `batch` of videos as its share of the batch's mean."""
        return losses.sum() / len(batch)

    def _relations(self, inputs: Inputs, phase: Phase) -> tuple[str, Tensor, Tensor]:
        """Returns the loss's rule for entries with a clip's id, and the ids [B] and [N].

        They are sources, or classes where labels are the positives.
        """
        if phase.supervised:
            held = self.queue.videos
            return "positive", self.classes[inputs.videos], torch.where(held >= 0, self.classes[held], -1)
        mining = self.config.mining
        rule = mining.siblings if phase.mines else mining.infonce_siblings
        return rule, inputs.sources, self.queue.ids


def new_encoders(config: TrainConfig) -> dict[str, nn.Module]:
    """Returns a new encoder per view, its weights a function of the seed only; no global state is changed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        kind = (config.backbone, config.width, config.embedding)
        return {name: view.encoder(*kind) for name, view in chosen(config.views).items()}


def initial_encoders(config: TrainConfig) -> dict[str, nn.Module]:
    """Returns the encoders that a run starts from: new ones, or those that `init` names.

    Raises:
        TrainError: a file whose encoder is of another architecture, width or embedding.
    """
    encoders = new_encoders(config)
    for view, path in config.init.items():
        loaded = load_encoder(path, say=say if rank() == 0 else None)
        got, wanted = (
            [getattr(encoder, name) for name in ("architecture", "width", "embedding")]
            for encoder in (loaded, encoders[view])
        )
        if got != wanted:
            raise TrainError(
                f"init: {path} is a {got[0]} of width {got[1]} and embedding {got[2]}, the run's {view} encoder "
                f"a {wanted[0]} of {wanted[1]} and {wanted[2]}; set --backbone, --width and --embedding to match"
            )
        encoders[view] = loaded
    return encoders
