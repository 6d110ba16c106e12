"""Defines the op `train_step`: mining, loss, backward, enqueue; encoders left out.

The step of CoCLR and CPR for one direction: flow and rgb queries mine positives in the queue, the rgb query's
loss is taken against the rgb queue, then both views' keys enter the queue.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cpr_kernels import cascade_topk, mil_nce

from ..harness.peer import OURS, RESTATED, Call, Peer, Settings, first_reason, siblings
from ..harness.workloads import Workload
from ..peers.loss import LossInputs, log_softmax_form, logsumexp_form
from ..peers.published import restated
from ..peers.published import why_not as published_why_not
from ..peers.torch_forms import TEMPERATURE, narrowed
from . import cascade, enqueue, loss
from .enqueue import MoCoQueue, Ring, full_queue, make_ring

__all__ = ["NAME", "TrainStepGate", "flops", "gate", "least_bytes", "make_inputs", "peers"]

NAME = "train_step"
STRONG_STEP = "strong torch step"


class Step(NamedTuple):
    """A full queue, and batches of queries and keys that are new to it."""

    ring: Ring  # its batches are the keys of both views
    queries: list[
        dict[str, Tensor]
    ]  # {"flow": [B, D], "rgb": [B, D] that requires grad}, used one after the other

    @property
    def workload(self) -> Workload:
        """Returns the shape."""
        return self.ring.workload


class Outcome(NamedTuple):
    """What a step leaves."""

    loss: Tensor
    gradient: Tensor  # [B, D] of the mean loss, for the rgb query
    queue: dict[str, Tensor]  # {view: [N, D]} and "ids"


def make_step(workload: Workload, device: str) -> Step:
    """Returns unit vectors; queries are near their keys, as the encodings of two clips of one video do.

    There are as many batches as fill the queue, so that it never fills with copies of a few.
    """
    ring = make_ring(
        workload, device, batches=max(workload.num_keys // workload.num_queries, enqueue.CHECKED)
    )
    generator = torch.Generator().manual_seed(3)
    queries = []
    for keys in ring.batches:
        rows = {}
        for view, key in keys.items():
            noise = torch.randn(key.shape, generator=generator).to(device)
            rows[view] = normalize(key + 0.05 * noise, dim=1)
        rows["rgb"].requires_grad_()
        queries.append(rows)
    return Step(ring, queries)


def flops(workload: Workload) -> float:
    """Returns those of the similarities of both views, which the loss shares, and the gradient's weighted sum
    of keys.
    """
    return cascade.flops(workload) + loss.flops(workload) / 2


def least_bytes(workload: Workload) -> float:
    """Returns those of the queue, read once, and of the batch, written once."""
    return cascade.least_bytes(workload) + enqueue.least_bytes(workload)


def make_inputs(workload: Workload, settings: Settings) -> Step:
    """Returns a full queue and some batches."""
    return make_step(workload, settings.device)


def gate(workload: Workload, settings: Settings) -> TrainStepGate:
    """Returns right answers for the workload."""
    return TrainStepGate(make_step(workload, settings.device))


def _backward(query: Tensor, value: Tensor) -> Tensor:
    value.backward()
    gradient, query.grad = query.grad, None
    assert gradient is not None
    return gradient


def _prepare_ours(step: Step) -> Call:
    queue, schedule, turn = full_queue(step.ring), step.workload.schedule, 0
    labels = torch.zeros_like(step.ring.new_ids[0])

    def call() -> Outcome:
        nonlocal turn
        now, turn = turn % len(step.queries), turn + 1
        queries, keys, ids = step.queries[now], step.ring.batches[now], step.ring.new_ids[now]
        mined, _ = cascade_topk(queries, queue.views, schedule, query_ids=ids, key_ids=queue.ids)
        value = mil_nce(
            queries["rgb"],
            keys["rgb"],
            queue.views["rgb"],
            mined,
            TEMPERATURE,
            query_ids=ids,
            key_ids=queue.ids,
        )
        gradient = _backward(queries["rgb"], value)
        queue.enqueue(keys, ids, labels)
        return Outcome(value.detach(), gradient, {**queue.views, "ids": queue.ids})

    return call


Mine = Callable[[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor], Tensor], Tensor]


def _torch_step(step: Step, mine: Mine, form: Callable[[Tensor, Tensor], Tensor]) -> Call:
    """Returns a step in plain torch around a way to mine; similarities are made once and serve mining and loss."""
    queue, turn = MoCoQueue(step.ring), 0
    labels = torch.zeros_like(step.ring.new_ids[0])

    def call() -> Outcome:
        nonlocal turn
        now, turn = turn % len(step.queries), turn + 1
        queries, keys, ids = step.queries[now], step.ring.batches[now], step.ring.new_ids[now]
        mask = siblings(ids, queue.ids)
        of_rgb = queries["rgb"] @ queue.views["rgb"]  # [B, N]
        with torch.no_grad():
            mined = mine(
                {name: t.detach() for name, t in queries.items()}, queue.views, {"rgb": of_rgb.detach()}, mask
            )
        own = (queries["rgb"] * keys["rgb"]).sum(dim=1, keepdim=True)
        logits = torch.cat([own, of_rgb], dim=1) / TEMPERATURE
        positive = torch.cat([torch.ones_like(mask[:, :1]), mask.scatter(1, mined, True)], dim=1)
        value = form(logits, positive)
        gradient = _backward(queries["rgb"], value)
        queue.enqueue(keys, ids, labels)
        state = {view: columns.T for view, columns in queue.views.items()}
        return Outcome(value.detach(), gradient, {**state, "ids": queue.ids})

    return call


def _prepare_strong(step: Step) -> Call:
    plan = [(str(stage.view), stage.keep) for stage in step.workload.schedule]

    def mine(
        queries: dict[str, Tensor], banks: dict[str, Tensor], scores: dict[str, Tensor], mask: Tensor
    ) -> Tensor:
        others = {view: queries[view] @ banks[view] for view in queries if view not in scores}
        others[plan[0][0]].masked_fill_(mask, -torch.inf)
        return narrowed({**others, **scores}, plan)[0]

    return _torch_step(step, mine, logsumexp_form)


def _prepare_published(step: Step) -> Call:
    keep = [stage.keep for stage in step.workload.schedule]

    def mine(
        queries: dict[str, Tensor], banks: dict[str, Tensor], scores: dict[str, Tensor], mask: Tensor
    ) -> Tensor:
        return restated(list(queries.values()), list(banks.values()), mask, keep)

    return _torch_step(step, mine, log_softmax_form)


def peers(settings: Settings) -> list[Peer]:
    """Returns every peer of the training step, ours first. The restated step serves with `--published` too."""
    return [
        Peer(OURS, _prepare_ours, graphable=False),
        Peer(STRONG_STEP, _prepare_strong, enqueue.divides, graphable=False),
        Peer(
            f"{RESTATED} (step)",
            _prepare_published,
            lambda w: first_reason(published_why_not(w), enqueue.divides(w)),
            graphable=False,
        ),
    ]


class TrainStepGate:
    """The first step's loss and gradient, and the queue after all batches.

    Queries whose selection hangs on a near tie are left out: there an honest method may mine another entry.
    """

    def __init__(self, step: Step) -> None:
        self.inputs = step
        ring, queries, topk = step.ring, step.queries[0], step.workload.topk
        detached = {view: rows.detach() for view, rows in queries.items()}
        table = cascade.Table(step.workload, detached, ring.tables, ring.new_ids[0], ring.ids)
        call = cascade.as_call(table, torch.arange(len(ring.new_ids[0]), device=ring.ids.device))
        stage_scores = cascade.reference.stage_scores(call)
        certain, possible = cascade.near_tie_bounds(
            stage_scores, ~cascade.reference.excluded(call), list(call.stage_keep), cascade.slack_of(table)
        )
        self.decided = (certain == possible).all(dim=1)  # [B]
        mined = certain.to(torch.uint8).topk(topk, dim=1).indices
        rgb, own = queries["rgb"], ring.batches[0]["rgb"]
        self.answer = loss.Answer(
            LossInputs(step.workload, rgb, own, ring.tables["rgb"], mined, ring.new_ids[0], ring.ids)
        )
        self.queue = enqueue.EnqueueGate(ring)

    def why_wrong(self, peer: Peer) -> str | None:
        """Runs the peer on the gate's inputs: the sentence why its answer is wrong, or None."""
        first: Outcome = peer.prepare(self.inputs)()
        if bool(self.decided.all()):
            wrong = self.answer.why_wrong(first.loss, first.gradient)
        else:
            wrong = self.answer.why_wrong_gradient(first.gradient, self.decided)
        return wrong or self.queue.why_wrong(Peer(peer.name, lambda _: _queue_of(peer.prepare(self.inputs))))


def _queue_of(call: Call) -> Call:
    """Returns the step, of which only the queue is looked at."""
    return lambda: call().queue
