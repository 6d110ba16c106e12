"""A mining plan inside a training loop: what each key needs is formed once, when it enters the memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from ..memory.bank import MemoryBank, last_of_each
from ..memory.queue import MultiViewQueue, gathered
from ..mining import cascade_topk
from .checks import check_features
from .plan import MiningPlan, PlanKeys
from .steps import Neighbors, expanded, hub_count, hub_terms, joint_schedule, less_hubs
from .whitening import Whitener

WHITENED, EXPANDED, HUB = "whitened", "expanded", "hub"


class Mined(NamedTuple):
    """Holds a mined batch: its positives, and what its rows need as keys."""

    indices: Tensor  # [B, topk] int64, padded with -1
    scores: Tensor  # [B, topk] float32, padded with -inf
    features: dict[str, Tensor]  # {view: [B, D]} as given
    kept: dict[str, Tensor]  # rows of the miner's store


class Miner(nn.Module):
    """Mines by a plan among the entries of a :class:`MultiViewQueue` or :class:`MemoryBank`, at two calls of the op.

    Each key's whitened and expanded rows and its hub term are by-products of mining it; they are stored beside the
    queue, enter and leave with their key, and are buffers, so that a resumed run continues bit for bit. Keys keep what
    they were given on entry until :meth:`refit`; of a bank, until their row is updated. Plain tensors on the CPU are
    whitened and expanded natively, elsewhere and where compiled by torch, whose sums round in another order.

    Args:
        plan: how to mine; its views are the queue's.
        queue: what is mined. Write to a queue by :meth:`enqueue` only, to a bank by :meth:`update` only.

    Example:
        >>> mined = miner({"rgb": key_rgb, "flow": key_flow}, ids)
        >>> loss = cpr_kernels.mil_nce(query, key_rgb, queue.views["rgb"], mined.indices, 0.07)
        >>> miner.enqueue(mined, ids)
    """

    def __init__(self, plan: MiningPlan, queue: MultiViewQueue | MemoryBank) -> None:
        super().__init__()
        if not isinstance(queue, MultiViewQueue | MemoryBank):
            raise ValueError(
                f"Miner: queue must be a MultiViewQueue or a MemoryBank, got {type(queue).__name__}"
            )
        sizes = {view: table.shape[1] for view, table in queue.views.items()}
        if any(sizes.get(view) != len(white.mean) for view, white in plan.whiten.items()):
            wanted = {view: len(white.mean) for view, white in plan.whiten.items()}
            raise ValueError(
                f"Miner: the plan is of views {wanted}, but the queue holds {sizes}; tune on the queue's views"
            )
        self.queue = queue
        device = queue.ids.device
        views = list(plan.whiten)
        columns = {f"{WHITENED} {view}": sizes[view] for view in views}
        if plan.expand is not None:
            columns |= {f"{EXPANDED} {view}": sizes[view] for view in views}
        if plan.hub is not None:
            columns[HUB] = 1
        self.store = MultiViewQueue(columns, len(queue.ids), device=device)
        for number, white in enumerate(plan.whiten.values()):  # by number: a view's name may be any text
            self.register_buffer(f"mean_{number}", white.mean.to(device, copy=True))
            if white.matrix is not None:
                self.register_buffer(f"matrix_{number}", _square(white.matrix).to(device, copy=True))
        self._plan, self._sizes, self._wide = plan, plan.sizes, plan.wide  # formed once, not at each step
        self._hub_count = None if plan.hub is None else hub_count(plan.hub, len(queue.ids), plan.topk)
        self._nearest = joint_schedule(tuple(views), 1 if plan.expand is None else plan.expand.neighbors)
        self._fill(self.plan)

    @property
    def plan(self) -> MiningPlan:
        """Returns the plan with the whiteners that new rows are given."""
        return replace(self._plan, whiten=self._whiten())

    def _whiten(self) -> dict[str, Whitener]:
        """Returns the whiteners around the buffers."""
        buffers = self._buffers
        return {
            view: Whitener(cast(Tensor, buffers[f"mean_{number}"]), buffers.get(f"matrix_{number}"))
            for number, view in enumerate(self._plan.whiten)
        }

    @property
    def keys(self) -> PlanKeys:
        """Returns the queue's entries as the plan compares them: the buffers themselves."""
        stored = self.store.views
        whitened = {view: stored[f"{WHITENED} {view}"] for view in self._plan.whiten}
        views = {view: stored.get(f"{EXPANDED} {view}", rows) for view, rows in whitened.items()}
        return PlanKeys(whitened, views, self.queue.ids, stored[HUB][:, 0] if HUB in stored else None)

    @torch.no_grad()
    def forward(self, features: Mapping[str, Tensor], ids: Tensor | None = None) -> Mined:
        """Mines positives for a batch.

        Args:
            features: ``{view: [B, D]}``, what :meth:`enqueue` will write (momentum embeddings); a row of zeros, or
                with NaN, is a missing view, and without any of them nothing is mined.
            ids: [B] int64 source of each row; entries of the same source are never selected.
        """
        plan, keys = self._plan, self.keys
        check_features("Miner", features, self._sizes, values=False)
        whitened, lost = {}, None
        for view, whitener in self._whiten().items():
            whitened[view], lacking = whitener.with_lacking(features[view])
            lost = lacking if lost is None else lost & lacking
        rows = whitened
        if plan.expand is not None:
            found = cascade_topk(whitened, keys.whitened, self._nearest, query_ids=ids, key_ids=keys.ids)
            rows = expanded(whitened, keys.whitened, Neighbors(*found), plan.expand)
        near = Neighbors(*cascade_topk(rows, keys.views, self._wide, query_ids=ids, key_ids=keys.ids))
        kept = {f"{WHITENED} {view}": table for view, table in whitened.items()}
        if plan.expand is not None:
            kept |= {f"{EXPANDED} {view}": table for view, table in rows.items()}
        if keys.hub is not None and self._hub_count is not None:
            kept[HUB] = hub_terms(near.scores, self._hub_count)
            near = less_hubs(near, keys.hub, plan.topk)
        assert lost is not None  # a plan is of one view or more
        indices, scores = near.indices.masked_fill_(lost, -1), near.scores.masked_fill_(lost, -torch.inf)
        return Mined(indices, scores, dict(features), kept)

    @torch.no_grad()
    def enqueue(self, mined: Mined, ids: Tensor | None = None, labels: Tensor | None = None) -> None:
        """Writes a mined batch over the oldest entries of the queue; arguments as :meth:`MultiViewQueue.enqueue`.

        With a process group up every rank must call this; all ranks write all rows in rank order.

        Raises:
            ValueError: a memory bank, whose rows :meth:`update` writes.
        """
        queue, store = self.queue, self.store  # its entries are the queue's, so that one write serves both
        if isinstance(queue, MemoryBank):
            raise ValueError("Miner: enqueue writes to a queue; a MemoryBank is written by row, with update")
        columns = [(buffer, mined.kept[name]) for name, buffer in store.views.items()]
        queue.enqueue_beside(mined.features, ids, labels, columns)
        held, now = (cast(dict[str, Tensor], one._buffers) for one in (store, queue))
        for name in ("ids", "pointer", "count"):
            held[name].copy_(now[name])

    @torch.no_grad()
    def update(
        self,
        rows: Tensor,
        features: Mapping[str, Tensor],
        ids: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> None:
        """Averages a batch into its rows of a memory bank; arguments as :meth:`MemoryBank.update`.

        What the rows keep comes from mining their averages, two more calls of the op. With a process group up every
        rank must call this; each mines the rows of all ranks.

        Raises:
            ValueError: a queue, which :meth:`enqueue` writes to; or as :meth:`MemoryBank.update`.
        """
        if not isinstance(self.queue, MemoryBank):
            raise ValueError("Miner: update writes to a MemoryBank; a queue is written to with enqueue")
        self.queue.update(rows, features, ids, labels)
        [rows] = gathered([rows])
        averages = {view: self.queue.views[view][rows] for view in self._plan.whiten}
        mined, last = self(averages, self.queue.ids[rows]), last_of_each(rows)
        for name, stored in self.store.views.items():
            stored.index_copy_(0, rows, mined.kept[name][last])
        self.store.ids.copy_(self.queue.ids)

    @torch.no_grad()
    def refit(self) -> None:
        """Fits the whiteners to the queue's entries, and forms anew what every key needs.

        Raises:
            ValueError: too few entries, a view that is the same in all of them, or a plan without a power.
        """
        filled = self.queue.ids >= 0
        plan = self._plan.refitted(
            {view: self.queue.views[view][filled].float() for view in self._plan.whiten}
        )
        for number, white in enumerate(plan.whiten.values()):
            getattr(self, f"mean_{number}").copy_(white.mean)
            if white.matrix is not None:
                getattr(self, f"matrix_{number}").copy_(_square(white.matrix))
        self._fill(self.plan)

    @torch.no_grad()
    def _fill(self, plan: MiningPlan) -> None:
        """Forms what every key of the queue needs."""
        keys = plan.prepare_keys(
            {view: self.queue.views[view].float() for view in plan.whiten}, self.queue.ids
        )
        stored = self.store.views
        for view in plan.whiten:
            stored[f"{WHITENED} {view}"].copy_(keys.whitened[view])
            if plan.expand is not None:
                stored[f"{EXPANDED} {view}"].copy_(keys.views[view])
        if keys.hub is not None:
            stored[HUB].copy_(keys.hub[:, None])
        self.store.ids.copy_(self.queue.ids)
        if isinstance(self.queue, MultiViewQueue):
            self.store.pointer.copy_(self.queue.pointer)
            self.store.count.copy_(self.queue.count)


def _square(matrix: Tensor) -> Tensor:
    """Returns a whitener's matrix [D, R] with columns of zeros up to [D, D]: of one shape whatever the rank."""
    return torch.nn.functional.pad(matrix, (0, matrix.shape[0] - matrix.shape[1]))
