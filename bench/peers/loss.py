"""Lists ways to compute MIL-NCE over a queue with the query's gradient: this package, plain torch forms, libraries.

Every call returns ``(loss, gradient of query [B, D])`` of the mean loss. The queue and the own positive come
from momentum encoders and carry no gradient.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cpr_kernels import mil_nce

from ..harness.inputs import make_table
from ..harness.peer import OURS, Call, Peer, Settings, first_reason, gigabytes, not_installed, siblings
from ..harness.workloads import Workload
from . import gpu as gpu_peers
from .torch_forms import TEMPERATURE, backward, compiled_why_not

LOG_SOFTMAX = "eager log(softmax)"
LOGSUMEXP = "eager logsumexp"
CHUNK_LOGITS = 1 << 19  # of the chunked form: 2 MB of float32, an L2 cache


class LossInputs(NamedTuple):
    """One view's features, mined positives, and ids where the workload has them."""

    workload: Workload
    query: Tensor  # [B, D], requires grad
    positive: Tensor  # [B, D]
    keys: Tensor  # [N, D]
    positives: Tensor  # [B, P] int64
    query_ids: Tensor | None  # [B] int64
    key_ids: Tensor | None  # [N] int64


def make_loss_inputs(workload: Workload, device: str) -> LossInputs:
    """Returns the first view's features; own positives near their queries; P distinct entries as mined ones."""
    table = make_table(workload, device)
    view = workload.view_names[0]
    generator = torch.Generator().manual_seed(2)
    query = table.queries[view]
    noise = torch.randn(query.shape, generator=generator).to(query)
    positive = torch.nn.functional.normalize(query + 0.05 * noise, dim=1)
    picks = [
        torch.randperm(workload.num_keys, generator=generator)[: workload.topk] for _ in range(len(query))
    ]
    mined = torch.stack(picks).to(device)
    return LossInputs(
        workload, query.requires_grad_(), positive, table.keys[view], mined, table.query_ids, table.key_ids
    )


def logits_and_mask(
    query: Tensor,
    positive: Tensor,
    keys: Tensor,
    mined: Tensor,
    query_ids: Tensor | None,
    key_ids: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Returns logits and the mask of positives, [B, 1 + N] each, the own pair first."""
    own = (query * positive).sum(dim=1, keepdim=True)
    logits = torch.cat([own, query @ keys.T], dim=1) / TEMPERATURE
    mask = torch.zeros(logits.shape, dtype=torch.bool, device=logits.device)
    if query_ids is not None and key_ids is not None:
        mask[:, 1:] = siblings(query_ids, key_ids)
    mask[:, 0] = True
    return logits, mask.scatter_(1, mined + 1, True)


def log_softmax_form(logits: Tensor, mask: Tensor) -> Tensor:
    """Returns the loss in the form of CoCLR: log of the softmax mass of the positives."""
    return log_softmax_rows(logits, mask).mean()


def log_softmax_rows(logits: Tensor, mask: Tensor) -> Tensor:
    """Returns the same of each query [B]."""
    return -(logits.softmax(dim=1) * mask).sum(dim=1).log()


def logsumexp_form(logits: Tensor, mask: Tensor) -> Tensor:
    """Returns the same number as `log_softmax_form`, finite for every temperature."""
    return (logits.logsumexp(dim=1) - logits.masked_fill(~mask, -torch.inf).logsumexp(dim=1)).mean()


def _prepare_ours(inputs: LossInputs) -> Call:
    _, query, positive, keys, mined, query_ids, key_ids = inputs

    def call() -> tuple[Tensor, Tensor]:
        loss = mil_nce(query, positive, keys, mined, TEMPERATURE, query_ids=query_ids, key_ids=key_ids)
        return backward(query, loss)

    return call


def _prepare_form(
    form: Callable[[Tensor, Tensor], Tensor], *, compiled: bool = False
) -> Callable[[LossInputs], Call]:
    def loss_of(*tensors: Any) -> Tensor:
        return form(*logits_and_mask(*tensors))

    def prepare(inputs: LossInputs) -> Call:
        loss = loss_of
        if compiled:
            torch._dynamo.reset()
            loss = torch.compile(loss_of, dynamic=False, fullgraph=True)
        return lambda: backward(inputs.query, loss(*inputs[1:]))

    return prepare


def chunked(inputs: LossInputs, rows: int) -> tuple[Tensor, Tensor]:
    """Returns loss and gradient made by hand, a block of queries at a time: the most that torch gives without a kernel.

    The gradient of a row's loss is ``sum_j (p_j - p_j|positive) key_j / T``, so no graph is kept.
    """
    total = torch.zeros((), device=inputs.query.device)
    gradients = []
    for begin in range(0, len(inputs.query), rows):
        block = slice(begin, begin + rows)
        query, own = inputs.query.detach()[block], inputs.positive[block]
        ids = None if inputs.query_ids is None else inputs.query_ids[block]
        logits, mask = logits_and_mask(query, own, inputs.keys, inputs.positives[block], ids, inputs.key_ids)
        positive_logits = logits.masked_fill(~mask, -torch.inf)
        lse_all, lse_positive = logits.logsumexp(1, keepdim=True), positive_logits.logsumexp(1, keepdim=True)
        total += (lse_all - lse_positive).sum()
        weights = logits.sub_(lse_all).exp_().sub_(positive_logits.sub_(lse_positive).exp_())  # [rows, 1 + N]
        gradients.append((weights[:, :1] * own + weights[:, 1:] @ inputs.keys) / TEMPERATURE)
    count = len(inputs.query)
    return total / count, torch.cat(gradients) / count


def _prepare_chunked(inputs: LossInputs) -> Call:
    rows = max(1, CHUNK_LOGITS // inputs.workload.num_keys)
    return torch.no_grad()(lambda: chunked(inputs, rows))


def _big_logits(workload: Workload) -> str | None:
    logits = 4.0 * workload.num_queries * (workload.num_keys + 1)
    return None if logits <= 1e9 else f"would keep {gigabytes(logits)} of logits several times over"


def _plain_infonce(workload: Workload) -> str | None:
    return None if workload.topk == 0 and not workload.ids else "computes InfoNCE only: no mined positives"


def _lightly_why_not(workload: Workload) -> str | None:
    return first_reason(not_installed("lightly", "lightly"), _plain_infonce(workload))


def _prepare_lightly(inputs: LossInputs) -> Call:
    criterion = (
        importlib.import_module("lightly.loss")
        .NTXentLoss(TEMPERATURE, memory_bank_size=tuple(inputs.keys.shape))
        .to(inputs.query.device)
    )
    criterion.memory_bank.bank = inputs.keys.clone()  # later calls also write their batch into it
    return lambda: backward(inputs.query, criterion(inputs.query, inputs.positive))


def _metric_learning_why_not(workload: Workload) -> str | None:
    pairs = workload.num_queries * (workload.num_keys + workload.num_queries - 1)
    table = 4.0 * workload.num_queries * pairs
    return first_reason(
        not_installed("pytorch_metric_learning", "pytorch-metric-learning"),
        _plain_infonce(workload),
        None if table <= 1e9 else f"would build tables of pairs by pairs, {gigabytes(table)} each",
    )


def _prepare_metric_learning(inputs: LossInputs) -> Call:
    criterion = importlib.import_module("pytorch_metric_learning.losses").NTXentLoss(TEMPERATURE)
    count, size = len(inputs.query), len(inputs.keys)
    labels = torch.arange(count, device=inputs.query.device)
    others = torch.cat([labels, torch.arange(count, count + size, device=labels.device)])
    entries = torch.cat([inputs.positive, inputs.keys])
    return lambda: backward(inputs.query, criterion(inputs.query, labels, ref_emb=entries, ref_labels=others))


def peers(settings: Settings) -> list[Peer]:
    """Returns every peer of the loss, ours first."""
    listed = [
        Peer(OURS, _prepare_ours),
        Peer(LOG_SOFTMAX, _prepare_form(log_softmax_form), _big_logits),
        Peer(LOGSUMEXP, _prepare_form(logsumexp_form), _big_logits),
        Peer(
            "compiled logsumexp",
            _prepare_form(logsumexp_form, compiled=True),
            lambda w: compiled_why_not(settings, w),
            warms_itself=True,
        ),
        Peer("chunked torch, gradient by hand", _prepare_chunked),
        Peer("lightly NTXentLoss", _prepare_lightly, _lightly_why_not, variant="normalises", graphable=False),
        Peer(
            "pytorch-metric-learning NTXentLoss",
            _prepare_metric_learning,
            _metric_learning_why_not,
            variant="normalises, batch too",
            graphable=False,
        ),
    ]
    if settings.device == "cuda":
        listed += gpu_peers.loss_peers(_plain_infonce)
    return listed
