"""Tests every backend that can run here on small inputs with known answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import losses, mining
from ..dispatch.backends import reasons
from ..dispatch.calls import CascadeCall, LossCall
from ..memory.queue import MultiViewQueue
from ..mining import Schedule, Stage
from ..mining.arguments import as_call

B, N, D = 5, 203, 24  # no multiple of any tile
SCHEDULE = Schedule([Stage("flow", 90), Stage("rgb", 40), Stage({"rgb": 1.0, "flow": 1.0}, 6)])
LOSS_TOLERANCE = 1e-5  # relative, of float32 sums over 203 logits

TestResult = dict[str, Any]  # name, seconds, error (None: right)


def self_test(device: torch.device) -> list[TestResult]:
    """Returns one result per backend and op on `device`: its name, seconds, and what is wrong (None: nothing).

    Mining is compared exactly: small-integer features make every inner product exact, so that the answer is
    one. The loss and its gradient are compared within float32's error.
    """
    return [_timed(name, work) for name, work in _tests(device)]


def _tests(device: torch.device) -> Iterator[tuple[str, Callable[[], str | None]]]:
    for op, choices, test in (
        ("cascade_topk", reasons(mining.BACKENDS, mining_call(device)), _check_mining),
        ("mil_nce", reasons(losses.BACKENDS, loss_call(device)), _check_loss),
    ):
        for backend, reason in choices:
            if reason is None and backend != "reference":
                yield f"{op}, {backend}, {device}", partial(test, device, backend)
    yield f"mil_nce's gradients, {device}", partial(_check_gradients, device)
    yield f"the queue wraps, {device}", partial(_check_queue, device)


def _timed(name: str, work: Callable[[], str | None]) -> TestResult:
    began = time.perf_counter()
    try:
        error = work()
    except Exception as failure:  # any error belongs in the bug report
        error = f"{type(failure).__name__}: {' '.join(str(failure).split())}"
    return {"name": name, "seconds": round(time.perf_counter() - began, 4), "error": error}


def _features(device: torch.device, seed: int, rows: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-3, 4, (rows, D), generator=generator).float().to(device)


def _small_inputs(device: torch.device) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor, Tensor]:
    queries = {view: _features(device, i, B) for i, view in enumerate(("rgb", "flow"))}
    keys = {view: _features(device, 10 + i, N) for i, view in enumerate(("rgb", "flow"))}
    key_ids = torch.arange(N, device=device) // 3
    key_ids[::17] = -1  # empty slots
    return queries, keys, torch.arange(B, device=device), key_ids


def mining_call(device: torch.device) -> CascadeCall:
    """Returns a small call of `cascade_topk` on `device`."""
    queries, keys, query_ids, key_ids = _small_inputs(device)
    return as_call(queries, keys, SCHEDULE, query_ids, key_ids)


def loss_call(device: torch.device) -> LossCall:
    """Returns a small call of `mil_nce` on `device`."""
    queries, keys, query_ids, key_ids = _small_inputs(device)
    positives = torch.arange(4 * B, device=device).view(B, 4) * 7
    positives[:, -1] = -1
    query, positive, entries = (
        torch.nn.functional.normalize(rows + 0.25, dim=1)
        for rows in (queries["rgb"], queries["flow"], keys["rgb"])
    )
    return losses.as_call(query, positive, entries, positives, 0.1, query_ids=query_ids, key_ids=key_ids)


def _check_mining(device: torch.device, backend: str) -> str | None:
    queries, keys, query_ids, key_ids = _small_inputs(device)
    (got, scores), (wanted, wanted_scores) = (
        mining.cascade_topk(queries, keys, SCHEDULE, query_ids=query_ids, key_ids=key_ids, backend=name)
        for name in (backend, "reference")
    )
    if not torch.equal(got, wanted):
        return f"{int((got != wanted).sum())} of {wanted.numel()} mined entries differ from the reference's"
    return None if torch.equal(scores, wanted_scores) else "scores differ from the reference's"


def _check_loss(device: torch.device, backend: str) -> str | None:
    call = loss_call(device)
    got, wanted = (_loss_by(name, call) for name in (backend, "reference"))
    return _error_beyond_tolerance("loss", got, wanted)


def _loss_by(backend: str, call: LossCall) -> Tensor:
    return losses.mil_nce(
        call.query, call.positive, call.keys, call.positives, call.temperature, query_ids=call.query_ids,
        key_ids=call.key_ids, reduction="none", backend=backend,
    )  # fmt: skip


def _check_gradients(device: torch.device) -> str | None:
    call = loss_call(device)
    ours, dense = (
        call._replace(**{
            name: getattr(call, name).detach().to(dtype).requires_grad_()
            for name in ("query", "positive", "keys")
        })
        for dtype in (torch.float32, torch.float64)
    )  # fmt: skip
    _loss_by("auto", ours).mean().backward()
    _dense_loss(dense).backward()
    for name in ("query", "positive", "keys"):
        error = _error_beyond_tolerance(
            f"gradient of {name}", getattr(ours, name).grad, getattr(dense, name).grad
        )
        if error:
            return error
    return None


def _dense_loss(call: LossCall) -> Tensor:
    """Returns the loss by its definition, over a whole [B, 1 + N] matrix; siblings are positives."""
    assert call.query_ids is not None and call.key_ids is not None
    own = (call.query * call.positive).sum(dim=1, keepdim=True)
    logits = torch.cat([own, call.query @ call.keys.T], dim=1) / call.temperature
    listed = torch.zeros(logits.shape, dtype=torch.bool, device=own.device)  # the last column: padding
    listed.scatter_(1, torch.where(call.positives < 0, len(call.keys), call.positives), True)
    siblings = call.query_ids[:, None] == call.key_ids
    positive = torch.cat([torch.ones_like(siblings[:, :1]), listed[:, :-1] | siblings], dim=1)
    empty = torch.cat([call.key_ids.new_zeros(1), call.key_ids]) < 0
    logits = logits.masked_fill(empty, -torch.inf)
    return (logits.logsumexp(1) - logits.masked_fill(~positive, -torch.inf).logsumexp(1)).mean()


def _error_beyond_tolerance(what: str, got: Tensor, wanted: Tensor) -> str | None:
    error = float((got.double() - wanted.double()).abs().max() / wanted.double().abs().max())
    return (
        None
        if error <= LOSS_TOLERANCE
        else f"{what}: relative error {error:.1e}, at most {LOSS_TOLERANCE} is right"
    )


def _check_queue(device: torch.device) -> str | None:
    queue = MultiViewQueue({"v": D}, size=7).to(device)
    rows = _features(device, 3, 10)
    for part in rows.split(4):
        queue.enqueue({"v": part}, torch.arange(len(part), device=device))
    wanted = torch.empty(7, D, device=device)
    for i, row in enumerate(rows):
        wanted[i % 7] = row
    return (
        None if torch.equal(queue.views["v"], wanted) else "a queue of 7 does not hold the last 7 of 10 rows"
    )
