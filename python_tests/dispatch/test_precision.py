"""Features of lower precision than the keys, autocast, mixed views and float64: values, dtypes, gradients, errors."""

from __future__ import annotations

import pytest
import torch
from cases import SMALL_CASES, LossCase, name_of
from torch import Tensor, nn

from cpr_kernels import (
    MultiViewQueue,
    Schedule,
    cascade_rerank,
    cascade_topk,
    cpr_schedule,
    explain,
    mil_nce,
)
from cpr_kernels.dispatch.calls import LossCall
from cpr_kernels.losses import reference

LOW = pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
SCHEDULE = cpr_schedule(num_keys=64, stages=3, topk=5)


def features(rows: int, dtype: torch.dtype, seed: int = 0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed + rows)
    return {name: torch.randn(rows, 8, generator=g).to(dtype) for name in ("flow", "rgb")}


def wider(views: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {name: value.to(dtype) for name, value in views.items()}


@LOW
def test_lower_queries_are_scored_in_float32(low: torch.dtype) -> None:
    queries, keys = features(6, low), features(64, torch.float32)
    expected = cascade_topk(wider(queries), keys, SCHEDULE)
    candidates = torch.arange(64).expand(6, 64)
    for mined in (cascade_topk(queries, keys, SCHEDULE), cascade_rerank(queries, keys, SCHEDULE, candidates)):
        assert all(torch.equal(a, b) for a, b in zip(mined, expected))
        assert mined[1].dtype == torch.float32


def test_views_may_differ_in_dtype() -> None:
    keys = {"flow": features(64, torch.bfloat16)["flow"], "rgb": features(64, torch.float32)["rgb"]}
    queries = {"flow": features(6, torch.bfloat16)["flow"], "rgb": features(6, torch.float16)["rgb"]}
    expected = cascade_topk(wider(queries), wider(keys), SCHEDULE)
    assert all(torch.equal(a, b) for a, b in zip(cascade_topk(queries, keys, SCHEDULE), expected))


def test_float64_is_mined_in_float64() -> None:
    """Entries that float32 cannot tell apart are ranked; the scores are float64."""
    keys = {"v": torch.tensor([[1.0], [1.0 + 1e-12], [1.0 - 1e-12]], dtype=torch.float64)}
    query = {"v": torch.ones(1, 1, dtype=torch.float64)}
    indices, scores = cascade_topk(query, keys, Schedule([("v", 2)]))
    assert indices.tolist() == [[1, 0]]
    assert scores.dtype == torch.float64
    assert scores[0, 0] > scores[0, 1] == 1
    assert dict(explain(cascade_topk, query, keys, Schedule([("v", 2)])))["native"] is not None
    mixed = cascade_topk({"v": query["v"].float()}, keys, Schedule([("v", 2)]))
    assert mixed[0].tolist() == [[1, 0]]
    reranked = cascade_rerank(query, keys, Schedule([("v", 2)]), torch.tensor([[2, 0]]))
    assert reranked[0].tolist() == [[0, 2]]


@pytest.mark.parametrize("case", SMALL_CASES, ids=name_of)
def test_float64_cascades_equal_float32_on_integers(case) -> None:
    call = case.call()
    wide = call._replace(queries=[t.double() for t in call.queries], keys=[t.double() for t in call.keys])
    exact_weights = all(w == int(w * 4) / 4 for w in call.stage_weights)
    assert exact_weights
    got, expected = torch.ops.cpr.cascade_topk(*wide), torch.ops.cpr.cascade_topk(*call)
    assert torch.equal(got[0], expected[0])
    assert torch.equal(
        got[1].float(), expected[1]
    )  # whole numbers below 2^24 but for a bias, which float32 rounds


def test_float64_blocks_of_queries_are_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    from cpr_kernels.mining import reference as mining_reference

    call = next(case for case in SMALL_CASES if case.name == "everything at once").call()
    wide = call._replace(queries=[t.double() for t in call.queries], keys=[t.double() for t in call.keys])
    whole = torch.ops.cpr.cascade_topk(*wide)
    monkeypatch.setattr(mining_reference, "BLOCK_SCORES", 5 * 96)
    assert all(torch.equal(a, b) for a, b in zip(torch.ops.cpr.cascade_topk(*wide), whole))


def loss_and_gradients(call: LossCall) -> list[Tensor]:
    inputs = [t.clone().requires_grad_() for t in call[:3]]
    loss = torch.ops.cpr.mil_nce(*inputs, *call[3:])
    weights = torch.linspace(1, 2, len(loss), dtype=loss.dtype)
    return [loss, *torch.autograd.grad((loss * weights).sum(), inputs)]


@LOW
@pytest.mark.parametrize("which", [("query",), ("positive",), ("query", "positive")])
def test_a_loss_of_lower_queries_is_that_of_their_numbers(low: torch.dtype, which: tuple[str, ...]) -> None:
    call = LossCase("", 6, 40, 8, ids=5, use_own=True).call()
    lower = call._replace(**{name: getattr(call, name).to(low) for name in which})
    same = lower._replace(**{name: getattr(lower, name).float() for name in which})
    got, expected = loss_and_gradients(lower), loss_and_gradients(same)
    dtypes = [low if name in which else torch.float32 for name in ("query", "positive", "keys")]
    assert torch.equal(got[0], expected[0])
    for gradient, wanted, dtype in zip(got[1:], expected[1:], dtypes):
        assert gradient.dtype == dtype
        assert torch.equal(gradient, wanted.to(dtype))
    masks = {"query_ids": call.query_ids, "key_ids": call.key_ids, "use_own": call.use_own}
    assert torch.equal(mil_nce(*lower[:5], **masks, reduction="none"), got[0])


def test_float32_queries_against_float64_keys() -> None:
    call = LossCase("", 6, 40, 8, ids=5).call(dtype=torch.float64)
    lower = call._replace(query=call.query.float(), positive=call.positive.float())
    loss, of_query, *_ = loss_and_gradients(lower)
    exact = reference.run(lower._replace(query=lower.query.double(), positive=lower.positive.double()))
    torch.testing.assert_close(loss, exact, rtol=1e-12, atol=1e-12)
    assert of_query.dtype == torch.float32


class Encoder(nn.Module):
    """Two layers, and a queue of float32 or lower keys."""

    def __init__(self, storage: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(8, 8)
        self.queue = MultiViewQueue({"flow": 8, "rgb": 8}, 64, dtype=storage)
        self.queue.enqueue(features(64, torch.float32), torch.arange(64))

    def forward(self, x: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        q = self.layer(x)
        queries = {"flow": q.detach(), "rgb": q.detach()}
        masks = {"query_ids": ids, "key_ids": self.queue.ids}
        mined, _ = cascade_topk(queries, self.queue.views, SCHEDULE, **masks)
        return mil_nce(q, q.detach(), self.queue.views["rgb"], mined, 0.5, **masks), mined


@LOW
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_step_under_autocast(low: torch.dtype, compiled: bool) -> None:
    model, x, ids = Encoder(), torch.randn(6, 8), torch.arange(6)
    run = torch.compile(model, fullgraph=True, backend="aot_eager") if compiled else model
    with torch.autocast("cpu", dtype=low):
        loss, mined = run(x, ids)
        q = model.layer(x)
    assert q.dtype == low and loss.dtype == torch.float32
    loss.backward()
    exact = q.detach().float().requires_grad_()
    views = {"flow": exact.detach(), "rgb": exact.detach()}
    masks = {"query_ids": ids, "key_ids": model.queue.ids}
    expected, _ = cascade_topk(views, model.queue.views, SCHEDULE, **masks)
    assert torch.equal(mined, expected)
    wanted = mil_nce(exact, exact.detach(), model.queue.views["rgb"], expected, 0.5, **masks)
    torch.testing.assert_close(loss, wanted)
    assert model.layer.weight.grad.dtype == torch.float32
    assert model.layer.weight.grad.abs().max() > 0


@LOW
def test_autocast_brings_queries_down_to_lower_keys(low: torch.dtype) -> None:
    queries, keys = features(6, torch.float32), features(64, low)
    with pytest.raises(ValueError, match="which does not hold its numbers"):
        cascade_topk(queries, keys, SCHEDULE)
    with torch.autocast("cpu", dtype=low):
        mined = cascade_topk(queries, keys, SCHEDULE)
        query = queries["rgb"].requires_grad_()
        loss = mil_nce(query, query.detach(), keys["rgb"], mined[0], 0.5)
    assert all(torch.equal(a, b) for a, b in zip(mined, cascade_topk(wider(queries, low), keys, SCHEDULE)))
    (gradient,) = torch.autograd.grad(loss, query)
    assert gradient.dtype == torch.float32 and gradient.abs().max() > 0


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_autocast_lowers_nothing_within_a_loss(backend: str) -> None:
    call = LossCase("", 6, 40, 8).call()
    query = call.query.clone().requires_grad_()

    def results() -> list[Tensor]:
        loss = mil_nce(query, *call[1:5], backend=backend)
        (first,) = torch.autograd.grad(loss, query, create_graph=True)
        return [loss, first, torch.autograd.grad((first**2).sum(), query)[0]]

    expected = results()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = results()
    for a, b in zip(got, expected):
        assert torch.equal(a, b)


def test_a_double_model_runs() -> None:
    model = Encoder().double()
    loss, mined = model(torch.randn(6, 8, dtype=torch.float64), torch.arange(6))
    loss.backward()
    assert loss.dtype == model.layer.weight.grad.dtype == torch.float64
    assert (mined >= 0).all()
    model.queue.enqueue(features(6, torch.float64), torch.arange(6))


@pytest.mark.parametrize(
    ("query", "keys", "says"),
    [
        (torch.float32, torch.bfloat16, "queries[0] is torch.float32, but keys[0] is torch.bfloat16"),
        (torch.bfloat16, torch.float16, "store the keys as torch.float32"),
        (torch.int64, torch.float32, "queries[0] must be one of float32, bfloat16, float16, float64"),
        (torch.float32, torch.int32, "keys[0] must be one of"),
    ],
)
def test_keys_that_do_not_hold_the_queries_are_refused(query, keys, says: str) -> None:
    for run in (
        lambda: torch.ops.cpr.cascade_topk(
            [torch.ones(2, 3).to(query)], [torch.ones(4, 3).to(keys)], [1.0], [2]
        ),
        lambda: mil_nce(torch.ones(2, 3).to(query), torch.ones(2, 3).to(query), torch.ones(4, 3).to(keys)),
    ):
        with pytest.raises(ValueError) as error:
            run()
        assert says.replace("queries[0]", "query").replace("keys[0]", "keys") in str(error.value).replace(
            "queries[0]", "query"
        ).replace("keys[0]", "keys")
