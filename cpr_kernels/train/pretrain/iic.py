"""Trains IIC, and CPR on it: one encoder for both views, a memory bank of all training videos."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ... import MemoryBank, Schedule, cascade_topk
from ...networks.inputs import CHANNELS_LAST, channels_last
from ..encoders.forward import calibrate_, embeddings_of
from .co_training import Inputs, StepResult
from .config import TrainConfig
from .iic_loss import drawn_nce, intra_negatives
from .phases import Phase

BROKEN = "broken"  # the bank's column of intra-negatives


class BankModel(nn.Module):
    """Holds the encoder of IIC and its memory bank, with a row for each training video; all in `state_dict`.

    Both views go through the same encoder, clip by clip at the same times. A clip's positive is its video's row in the
    other view; its negatives are drawn rows, the first view's clips with their motion broken, and the bank of those.
    Until its row is written, the video's own embedding of the step replaces it. Mining reads the rows of both views;
    what it finds are further positives (MIL-NCE).

    videos: [M] int64, the training videos, in the order of the rows; total: how many videos there are in all.
    """

    row_of: Tensor
    tuned = None  # a bank's phases mine by schedules only

    def __init__(self, config: TrainConfig, encoder: nn.Module, videos: Tensor, total: int) -> None:
        super().__init__()
        self.config = config
        self.online = nn.ModuleDict(dict.fromkeys(config.views, encoder))
        self.momentum = nn.ModuleDict()
        size = int(encoder.embedding)  # type: ignore[arg-type]
        self.bank = MemoryBank(
            dict.fromkeys((*config.views, BROKEN), size), len(videos), momentum=config.iic.bank_momentum
        )
        row_of = torch.full((total,), -1, dtype=torch.int64)
        row_of[videos] = torch.arange(len(videos))
        self.register_buffer("row_of", row_of, persistent=False)
        for parameter in encoder.parameters():
            if parameter.dim() in CHANNELS_LAST:
                parameter.data = parameter.data.to(memory_format=CHANNELS_LAST[parameter.dim()])
        if config.compile:
            encoder.compile()

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Reads checkpoints that call the bank `queue`, as version 0.1 wrote them."""
        for name in [name for name in state_dict if name.startswith(f"{prefix}queue.")]:
            state_dict[f"{prefix}bank.{name.removeprefix(f'{prefix}queue.')}"] = state_dict.pop(name)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    @property
    def held_videos(self) -> Tensor:
        """Returns the video of each row that is written, [M] int64, -1 for the others."""
        return self.bank.labels

    @property
    def entries(self) -> tuple[dict[str, Tensor], Tensor]:
        """Returns what mining chooses from: {view: [M, D]}, and the source of each row [M]."""
        return {view: self.bank.views[view] for view in self.config.views}, self.bank.ids

    def shared_state(self) -> dict[str, nn.Module]:
        """Returns the modules that must be equal on all ranks, by name."""
        return {"online encoders": self.online, "bank": self.bank}

    @property
    def encoder(self) -> nn.Module:
        """Returns the encoder of both views."""
        return self.online[self.config.views[0]]

    def mines_by(self, phase: Phase) -> Schedule | None:
        """Returns the schedule that positives are mined by in a phase."""
        return phase.schedule

    def start_phase(self, phase: Phase) -> None:
        """Sets the modes; encoder and bank stay as they are."""
        self.set_modes(phase)

    def calibrate(self, inputs: Inputs) -> None:
        """Sets initial batch-norm statistics of an untrained encoder from a first batch; see `calibrate_`."""
        calibrate_(self.encoder, channels_last(inputs.clips[self.config.views[0]][0]))

    def set_modes(self, phase: Phase) -> None:
        """Sets the encoder to training mode, in every phase."""
        self.online.train().requires_grad_(True)

    def trained_parameters(self, phase: Phase) -> list[nn.Parameter]:
        """Returns the parameters that the optimiser changes."""
        return list(self.encoder.parameters())

    def is_full(self, seen: int, phase: int) -> bool:
        """Returns whether every row is written after `seen` clips of a phase."""
        return phase > 0 or seen >= self.bank.rows

    def fill_step(self, inputs: Inputs, phase: Phase) -> None:
        """Raises `NotImplementedError`: the bank fills while training."""
        raise NotImplementedError

    def train_step(
        self, inputs: Inputs, phase: Phase, measured: dict[str, Schedule], use_own: Tensor | None
    ) -> StepResult:
        """Computes the losses of a batch and their gradients, mines, and then writes its embeddings to the bank."""
        config, bank = self.config, self.bank
        first, second = config.views
        generator = torch.Generator().manual_seed(inputs.seed)
        rows = self.row_of[inputs.videos]
        clips = {view: inputs.clips[view][0] for view in config.views}
        made = {view: embeddings_of(self.encoder, clips[view], config.amp) for view in config.views}
        with torch.no_grad():
            if config.iic.broken != "none":
                still = intra_negatives(clips[first], config.iic.broken, generator)
                made[BROKEN] = embeddings_of(self.encoder, still, config.amp)
            else:
                made[BROKEN] = torch.zeros_like(made[first])
        fresh = (bank.ids[rows] < 0)[:, None]
        own = {view: torch.where(fresh, made[view].detach(), held[rows]) for view, held in bank.views.items()}
        mined = self._mine(made if config.mining.query == "online" else own, inputs.sources, phase, measured)
        drawn = bank.draw(rows, config.iic.negatives, generator)
        losses = {
            view: drawn_nce(
                made[view], own[other], bank.views[other], drawn, config.optim.temperature,
                mined=mined.get("mined"), left_out=self._left_out(inputs.sources),
                broken=None if config.iic.broken == "none" else (own[BROKEN], bank.views[BROKEN]),
            ).mean()
            for view, other in ((first, second), (second, first))
        }  # fmt: skip
        torch.stack(list(losses.values())).sum().backward()
        bank.update(rows, made, inputs.sources, labels=inputs.videos)
        return StepResult({view: loss.detach() for view, loss in losses.items()}, mined)

    @torch.no_grad()
    def _mine(
        self, anchors: dict[str, Tensor], sources: Tensor, phase: Phase, measured: dict[str, Schedule]
    ) -> dict[str, Tensor]:
        """Returns {name: rows [B, k]} of the phase's schedule and of those that it is compared with."""
        schedules = {**({"mined": phase.schedule} if phase.schedule else {}), **measured}
        queries = {view: anchors[view].detach() for view in self.config.views}
        keys, ids = self.entries
        return {
            name: cascade_topk(queries, keys, schedule, query_ids=sources, key_ids=ids)[0]
            for name, schedule in schedules.items()
        }

    def _left_out(self, sources: Tensor) -> Tensor:
        """Returns [B, M] bool: rows that were never written, and siblings where they are to be ignored."""
        empty = (self.bank.ids < 0).expand(len(sources), -1)
        if self.config.mining.siblings == "ignore":
            return empty | (self.bank.ids[None, :] == sources[:, None])
        return empty
