"""Trains heads: a step augments a batch twice, mines its momentum embeddings in the queue, and minimises MIL-NCE."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ... import (
    MiningPlan,
    MultiViewQueue,
    cascade_topk,
    ema_update_,
    mil_nce,
    tune_schedule,
)
from ...metrics import true_positives
from ...networks.heads import Heads, new_heads
from ...tuning import Miner
from .. import TrainError
from .config import AdaptConfig
from .positives import Positives, positives_of, topk_of_epoch
from .table import Table

QUEUE = 4096  # the largest by default
EPOCH_ROWS = 16384  # of a larger table, an epoch is so many rows drawn at random
SIBLINGS_LEFT_OUT = 2
SIBLINGS_POSITIVE = 1
DECAY_AT, DECAY = 0.8, 0.1


class Epoch(NamedTuple):
    """Holds the figures of an epoch."""

    loss: float  # mean over steps and views
    pmr: (
        float | None
    )  # share of the mined rows that have their query's label; None where nothing is mined or known


class HeadTrainer:
    """Trains one head a view on a table: InfoNCE for `warm_up` epochs, then the method for `epochs`.

    All state is in :meth:`state_dict` between epochs: a trainer that loads it continues bit for bit, and one of
    another method branches off from it with the same batches and the same noise.

    Args:
        table: the rows to train on. Labels measure what is mined; only the method `ubernce` trains by them.
        config: the settings.
        plan: of the method `auto`, where it was tuned before; None tunes it when the warm-up is over.

    Attributes:
        heads: the online heads.
        plan: of the method `auto`.
        epoch: how many are done, the warm-up's among them.
    """

    def __init__(self, table: Table, config: AdaptConfig, plan: MiningPlan | None = None) -> None:
        config.check()
        self.config, self.table, self.plan, self.epoch = config, table, plan, 0
        self.heads = new_heads(config.head, table.means(), config.hidden, config.embedding, config.seed)
        self.momentum = copy.deepcopy(self.heads).requires_grad_(False)
        sizes = {view: head.embedding for view, head in self.heads.heads.items()}
        self.queue = MultiViewQueue(sizes, config.queue or default_queue(len(table)))
        if self.queue.size >= len(table):
            raise TrainError(
                f"queue: {self.queue.size} entries, but there are {len(table)} rows to train on; use a smaller one"
            )
        positives_of(config, self.heads.views, self.queue.size, config.topk)  # raises for what cannot work
        if config.method == "ubernce" and (table.labels is None or bool((table.labels < 0).any())):
            raise TrainError("method: ubernce trains by labels, and some row has none")
        self.optimizer = torch.optim.Adam(self.heads.parameters(), lr=config.lr)
        self.generator = torch.Generator().manual_seed(config.seed)
        with torch.no_grad():
            self.rows = {
                view: _clips(head.unit(table.views[view])) for view, head in self.heads.heads.items()
            }

    @property
    def epochs(self) -> int:
        """Returns how many epochs there are in all."""
        return self.config.warm_up + self.config.epochs

    def run_epoch(self) -> Epoch:
        """Trains for the next epoch: on all rows, or `EPOCH_ROWS` of them; a last part of a batch is left out."""
        config, number = self.config, self.epoch - self.config.warm_up
        positives = Positives()
        if number >= 0:
            positives = positives_of(config, self.heads.views, self.queue.size, topk_of_epoch(config, number))
        miner = self._miner(topk_of_epoch(config, number)) if positives.tuned else None
        own = _generator(config.seed, self.epoch) if positives.mines and config.drop_own_positive else None
        rate = config.lr * (DECAY if self.epoch >= DECAY_AT * self.epochs else 1.0)
        self.optimizer.param_groups[0]["lr"] = rate
        total, steps, right = torch.zeros(()), 0, torch.zeros(2)
        order = torch.randperm(len(self.table), generator=self.generator)[:EPOCH_ROWS]
        size = min(config.batch, len(order))
        for batch in order[: len(order) // size * size].split(size):
            loss, counted = self._step(batch, positives, miner, own)
            total, right, steps = total + loss, right + counted, steps + 1
        self.epoch += 1
        return Epoch(float(total / steps), float(right[0] / right[1]) if right[1] else None)

    def _step(
        self, batch: Tensor, positives: Positives, miner: Miner | None, own: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """Trains on a batch [B] of rows; returns the mean loss over the views, and what `_counted` returns.

        own: draws which rows are left without their own positive; None leaves all with it.
        """
        ids = self.table.sources[batch]
        labels = None if self.table.labels is None else self.table.labels[batch]
        ema_update_(self.heads, self.momentum, self.config.momentum)
        queries = self._embedded(self.heads, batch)
        with torch.no_grad():
            keys = self._embedded(self.momentum, batch)
        online = self.config.query == "online"
        anchors = {view: query.detach() for view, query in queries.items()} if online else keys
        found = miner(anchors, ids) if miner is not None else None
        mined = self._mined(anchors, ids, positives) if found is None else dict.fromkeys(keys, found.indices)
        use_own = None
        if own is not None:
            use_own = torch.rand(len(batch), generator=own) >= self.config.drop_own_positive
        relation: dict[str, Any] = {
            "query_ids": ids,
            "key_ids": self.queue.ids,
            "siblings": SIBLINGS_LEFT_OUT,
        }
        if positives.supervised:
            key_labels = torch.where(self.queue.ids >= 0, self.queue.labels, -1)
            relation = {"query_ids": labels, "key_ids": key_labels, "siblings": SIBLINGS_POSITIVE}
        losses = [
            mil_nce(
                query,
                keys[view],
                self.queue.views[view],
                mined.get(view),
                self.config.temperature,
                use_own=use_own,
                **relation,
            )
            for view, query in queries.items()
        ]
        loss = torch.stack(losses).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        right = self._counted(labels, mined)
        if found is not None and miner is not None:
            miner.enqueue(miner(keys, ids) if online else found, ids, labels)
        else:
            self.queue.enqueue(keys, ids, labels)
        return loss.detach(), right

    def _counted(self, labels: Tensor | None, mined: Mapping[str, Tensor]) -> Tensor:
        """Returns [2]: mined entries that have their query's label, and all that are mined by queries with a label."""
        right = torch.zeros(2)
        if labels is not None:
            for indices in mined.values():
                right[0] += true_positives(indices, labels, self.queue.labels).sum()
                right[1] += ((indices >= 0) & (labels >= 0)[:, None]).sum()
        return right

    def _embedded(self, heads: Heads, batch: Tensor) -> dict[str, Tensor]:
        return {
            view: head.embed(self._augmented(self.rows[view], batch)) for view, head in heads.heads.items()
        }

    def _augmented(self, rows: Tensor, batch: Tensor) -> Tensor:
        """Returns [B, D]: a random clip of each row [N, C, D], some numbers dropped, with noise."""
        clips, size = rows.shape[1:]
        clip = (
            torch.randint(clips, (len(batch),), generator=self.generator)
            if clips > 1
            else torch.zeros_like(batch)
        )
        unit = rows[batch, clip]
        if self.config.dropout:
            kept = torch.rand(unit.shape, generator=self.generator) >= self.config.dropout
            unit = unit * kept / (1 - self.config.dropout)
        if self.config.noise:
            unit = unit + self.config.noise / size**0.5 * torch.randn(unit.shape, generator=self.generator)
        return unit

    def _mined(self, anchors: Mapping[str, Tensor], ids: Tensor, positives: Positives) -> dict[str, Tensor]:
        """Returns ``{view: entries [B, k]}`` that the schedules mine for mining queries {view: [B, D]}; views of one
        schedule share them.
        """
        found: dict[Any, Tensor] = {}
        for schedule in positives.schedules.values():
            if schedule not in found:
                found[schedule], _ = cascade_topk(
                    anchors, self.queue.views, schedule, query_ids=ids, key_ids=self.queue.ids
                )
        return {view: found[schedule] for view, schedule in positives.schedules.items()}

    def _miner(self, topk: int) -> Miner:
        """Returns the plan over the queue, whiteners fitted to the entries; tunes it on them where there is none."""
        self._fill()
        if self.plan is None:
            self.plan = tune_schedule(
                self.queue.views, self.queue.ids, topk=self.config.topk, seed=self.config.seed
            )
        return Miner(with_topk(self.plan.refitted(self.queue.views), topk), self.queue)

    @torch.no_grad()
    def _fill(self) -> None:
        """Fills the queue with rows drawn at random, where the warm-up was too short for it."""
        if self.queue.is_full:
            return
        rows = torch.randperm(len(self.table), generator=self.generator)[: self.queue.size]
        labels = None if self.table.labels is None else self.table.labels[rows]
        self.queue.enqueue(self._embedded(self.momentum, rows), self.table.sources[rows], labels)

    def state_dict(self) -> dict[str, Any]:
        """Returns all that later epochs depend on, but for the plan: the tensors themselves, no copies."""
        return {
            "epoch": self.epoch,
            "heads": self.heads.state_dict(),
            "momentum": self.momentum.state_dict(),
            "queue": self.queue.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from a copy of what :meth:`state_dict` returned."""
        state = copy.deepcopy(dict(state))
        self.epoch = state["epoch"]
        for name in ("heads", "momentum", "queue", "optimizer"):
            getattr(self, name).load_state_dict(state[name])
        self.generator.set_state(state["generator"])


def _generator(seed: int, epoch: int) -> torch.Generator:
    """Returns the generator of an epoch's own draws, so that batches and noise stay those of other settings."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0]))


def default_queue(rows: int) -> int:
    """Returns the largest power of two that is at most half of the rows, and at most `QUEUE`."""
    return min(QUEUE, 1 << max(0, (rows // 2).bit_length() - 1))


def with_topk(plan: MiningPlan, topk: int) -> MiningPlan:
    """Returns a plan that mines `topk` positives."""
    return replace(plan, schedule=plan.schedule.with_topk(topk))


def _clips(rows: Tensor) -> Tensor:
    """Returns rows [N, D] as [N, 1, D]."""
    return rows[:, None] if rows.dim() == 2 else rows
