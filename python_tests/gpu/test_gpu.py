"""On a CUDA device: both backends against the reference, streams, graphs, compilation. Skipped where there is none."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from cases import CASCADE_CASES, LOSS_CASES, CascadeCase, LossCase, few, integers, listed, name_of
from exact_losses import check_near, exact_loss

from cpr_kernels import MultiViewQueue, Schedule, _core, cascade_topk, coclr_schedule, cpr_schedule, mil_nce
from cpr_kernels.dispatch.calls import CascadeCall
from cpr_kernels.losses import native as loss_native
from cpr_kernels.losses import triton_backend as loss_triton
from cpr_kernels.mining import native, reference, triton_backend

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="no CUDA device: run bench/gpu.sh where there is one"
    ),
]
MINERS = {"native": native, "triton": triton_backend}
LOSSES = {"native": loss_native, "triton": loss_triton}
both = pytest.mark.parametrize("backend", ["native", "triton"])


def same(got: Any, expected: Any) -> None:
    """Bit for bit, a zero's sign aside."""
    assert got[0].dtype == torch.int64 and got[1].dtype == torch.float32
    torch.testing.assert_close(got[0].cpu(), expected[0].cpu(), rtol=0, atol=0)
    torch.testing.assert_close(got[1].cpu(), expected[1].cpu(), rtol=0, atol=0)


def mined(call: CascadeCall, backend: str) -> Any:
    """The result on the device; the backend must not refuse."""
    assert MINERS[backend].why_not(call) is None
    return torch.ops.cpr._cascade_topk_on(*call, backend=backend)


def unit(generator: torch.Generator, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Unit vectors on the device."""
    return torch.nn.functional.normalize(torch.randn(*shape, generator=generator), dim=1).to(dtype).cuda()


def test_both_backends_can_run_here() -> None:
    call = CASCADE_CASES[0].call("cuda")
    assert [backend.why_not(call) for backend in MINERS.values()] == [None, None]


@both
@pytest.mark.parametrize("case", CASCADE_CASES, ids=name_of)
def test_cascade_equals_the_reference(case: CascadeCase, backend: str) -> None:
    same(mined(case.call("cuda"), backend), reference.run(case.call()))


@both
@pytest.mark.parametrize("case", CASCADE_CASES, ids=name_of)
def test_rerank_equals_the_reference(case: CascadeCase, backend: str) -> None:
    for count in (0, 45, 1300):
        call = listed(case.call("cuda"), count)
        assert MINERS[backend].why_not(call) is None
        got = torch.ops.cpr._cascade_rerank_on(*call, backend=backend)
        same(got, reference.rerank(listed(case.call(), count)))


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("queries", "keys"), [(16, 2048), (64, 16384), (130, 5000), (300, 16384)])
def test_real_scores(queries: int, keys: int, dtype: torch.dtype, backend: str) -> None:
    g = torch.Generator().manual_seed(queries)
    query = {v: unit(g, queries, 128, dtype=dtype) for v in ("flow", "rgb")}
    queue = {v: unit(g, keys, 128, dtype=dtype) for v in ("flow", "rgb")}
    schedule = cpr_schedule(num_keys=keys)
    indices, scores = cascade_topk(query, queue, schedule, backend=backend)
    wanted, _ = cascade_topk(query, queue, schedule, backend="reference")
    exact = torch.einsum("bd,bkd->bk", query["flow"].double(), queue["flow"].double()[indices])
    assert (scores.double() - exact).abs().max() <= 1e-6
    assert (indices != wanted).any(
        dim=1
    ).sum() <= 2 + queries // 50  # where two scores are closer than their error


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("parts", [0, 1, 3])
def test_native_scores_with_and_without_wgmma(parts: int, dtype: torch.dtype) -> None:
    """Exact for small integers whichever instructions multiply; on other devices than 9.0 nothing differs."""
    case = CascadeCase("wgmma", 200, 3000, {"flow": 128, "rgb": 72}, few(3000, 1000, 300, 9), dtype, ids=True)
    _core.cuda_tune(wgmma_parts=parts)
    try:
        got = mined(case.call("cuda"), "native")
    finally:
        _core.cuda_tune()
    same(got, reference.run(case.call()))


@both
@pytest.mark.parametrize("bend", ["random", "equal", "rising"])
def test_a_million_entries(backend: str, bend: str) -> None:
    g = torch.Generator().manual_seed(3)
    keys = 1_000_003
    queue = {v: integers(g, keys, 8) for v in ("flow", "rgb")}
    query = {v: integers(g, 3, 8) for v in ("flow", "rgb")}
    for v in queue:
        if bend == "equal":
            queue[v].fill_(1)
        if bend == "rising":
            queue[v].zero_()[:, 0] = torch.arange(keys)
            query[v].zero_()[:, 0] = 1
    schedule = Schedule([("flow", 500_000), ("rgb", 250_000), ("flow", 3000), ("rgb", 7)])
    expected = cascade_topk(query, queue, schedule, backend="native")
    got = cascade_topk(
        {v: t.cuda() for v, t in query.items()},
        {v: t.cuda() for v, t in queue.items()},
        schedule,
        backend=backend,
    )
    same(got, expected)


@both
def test_more_features_than_31_bits_count(backend: str) -> None:
    dim, large = 136, torch.cuda.mem_get_info()[0] > 24 << 30  # 4.6 GB of features where there is room
    rows = (1 << 24) + 5 if large else (1 << 20) + 5
    keys = torch.randint(-2, 3, (rows, dim), device="cuda", dtype=torch.int8).to(torch.bfloat16)
    query = torch.randint(-2, 3, (3, dim), device="cuda").to(torch.bfloat16)
    schedule = Schedule([("rgb", rows // 2), ("rgb", 7)])
    got = cascade_topk({"rgb": query}, {"rgb": keys}, schedule, backend=backend)
    scores = torch.cat([query.float() @ part.float().T for part in keys.split(1 << 20)], dim=1)
    ranked, order = scores.sort(dim=1, descending=True, stable=True)
    same(got, (order[:, :7], ranked[:, :7]))


@both
def test_runs_streams_and_batch_splits_change_nothing(backend: str) -> None:
    g = torch.Generator().manual_seed(6)
    query, keys = unit(g, 200, 96), unit(g, 9000, 96)
    schedule = Schedule([("rgb", 4000), ("rgb", 500), ("rgb", 60)])
    first = cascade_topk({"rgb": query}, {"rgb": keys}, schedule, backend=backend)
    for _ in range(20):
        same(cascade_topk({"rgb": query}, {"rgb": keys}, schedule, backend=backend), first)
    for part in (slice(0, 1), slice(1, 17), slice(17, 80), slice(80, 200)):
        some = cascade_topk({"rgb": query[part]}, {"rgb": keys}, schedule, backend=backend)
        same(some, (first[0][part], first[1][part]))
    side = torch.cuda.Stream()
    late = torch.zeros_like(query)
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(20_000_000)  # the queries arrive late, on this stream only
        late.copy_(query)
        other = cascade_topk({"rgb": late}, {"rgb": keys}, schedule, backend=backend)
    side.synchronize()
    same(other, first)


@both
def test_nothing_waits_for_the_device(backend: str) -> None:
    g = torch.Generator().manual_seed(7)
    query, keys = unit(g, 20, 64), unit(g, 3000, 64)
    ids, key_ids = torch.arange(20).cuda(), (torch.arange(3000) % 700).cuda()
    queue = MultiViewQueue({"rgb": 64}, size=256).cuda()
    work = functools.partial(step, query.requires_grad_(), keys, ids, key_ids, queue, backend)
    work()  # kernels are loaded and tuned
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        work()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def step(
    query: torch.Tensor,
    keys: torch.Tensor,
    ids: torch.Tensor,
    key_ids: torch.Tensor,
    queue: MultiViewQueue,
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mine, lose, derive, enqueue: a training step's share."""
    schedule = Schedule([("rgb", keys.shape[0] // 2), ("rgb", 5)])
    positives, _ = cascade_topk(
        {"rgb": query.detach()}, {"rgb": keys}, schedule, query_ids=ids, key_ids=key_ids, backend=backend
    )
    loss = mil_nce(query, query.detach(), keys, positives, query_ids=ids, key_ids=key_ids, backend=backend)
    (gradient,) = torch.autograd.grad(loss, query)
    queue.enqueue({"rgb": query.detach()}, ids)
    return positives, loss, gradient


@both
@pytest.mark.parametrize(("queries", "keys"), [(16, 2048), (70, 20_000)], ids=["tiny", "ring"])
def test_graph_replay(backend: str, queries: int, keys: int) -> None:
    g = torch.Generator().manual_seed(8)
    query, queue_keys = unit(g, queries, 128), unit(g, keys, 128)
    ids, key_ids = torch.arange(queries).cuda(), (torch.arange(keys) % 700).cuda()
    queue = MultiViewQueue({"rgb": 128}, size=256).cuda()
    static = query.clone().requires_grad_()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step(static, queue_keys, ids, key_ids, queue, backend)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        positives, loss, gradient = step(static, queue_keys, ids, key_ids, queue, backend)
    for seed in range(3):
        fresh = unit(torch.Generator().manual_seed(seed), queries, 128)
        with torch.no_grad():
            static.copy_(fresh)
        pointer = int(queue.pointer)
        graph.replay()
        wanted = step(
            fresh.requires_grad_(),
            queue_keys,
            ids,
            key_ids,
            MultiViewQueue({"rgb": 128}, size=256).cuda(),
            backend,
        )
        torch.cuda.synchronize()
        assert (
            torch.equal(positives, wanted[0])
            and torch.equal(loss, wanted[1])
            and torch.equal(gradient, wanted[2])
        )
        assert int(queue.pointer) == (pointer + queries) % 256


WIDE = [
    LossCase("200 features", 90, 1700, 200, ids=90),
    LossCase("700 features", 90, 1700, 700, ids=90),
]


@both
@pytest.mark.parametrize("case", [*LOSS_CASES, *WIDE], ids=name_of)
def test_loss_is_near_the_reference(case: LossCase, backend: str) -> None:
    call, exact = case.call("cuda"), exact_loss(case)
    assert LOSSES[backend].why_not(call) is None
    got = LOSSES[backend].sweep(call, True)
    again = LOSSES[backend].sweep(call, True)
    keys = LOSSES[backend].keys_gradient(call, exact.grad_loss.cuda(), got.lse_all, got.lse_positive)
    assert all(torch.equal(a, b) for a, b in zip(got, again))
    check_near(exact, got, keys, call.keys.dtype)


@pytest.mark.parametrize("batch", [0, 1, 5, 8, 9, 30])
def test_enqueue_equals_the_cpu(batch: int) -> None:
    rows = torch.randn(batch, 5)
    queues = [MultiViewQueue({"rgb": 5}, size=8).to(device) for device in ("cpu", "cuda")]
    for _ in range(3):
        for queue, device in zip(queues, ("cpu", "cuda")):
            queue.enqueue({"rgb": rows.to(device)}, torch.arange(batch, device=device))
    for (name, a), b in zip(queues[0].state_dict().items(), queues[1].state_dict().values()):
        assert torch.equal(a, b.cpu()), name


def test_memory_stays_far_below_all_scores() -> None:
    g = torch.Generator().manual_seed(9)
    query, keys = {"rgb": unit(g, 4096, 64)}, {"rgb": unit(g, 65536, 64)}
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    cascade_topk(query, keys, coclr_schedule("rgb"), backend="native")
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    assert peak < 4096 * 65536 * 4 / 4  # a quarter of the score matrix; measured figures are in bench/results


def test_opcheck() -> None:
    case = next(c for c in CASCADE_CASES if c.name == "ids and empty slots")
    torch.library.opcheck(torch.ops.cpr.cascade_topk.default, tuple(case.call("cuda")))
    loss = next(c for c in LOSS_CASES if c.name == "siblings are positives").call("cuda")
    loss.query.requires_grad_()
    kwargs = {"want_gradient": True, "backend": "native"}
    torch.library.opcheck(torch.ops.cpr._mil_nce_sweep.default, tuple(loss), kwargs)


@pytest.mark.slow
def test_compile() -> None:
    g = torch.Generator().manual_seed(10)
    query, keys = unit(g, 24, 64), unit(g, 3000, 64)

    def work(query: torch.Tensor) -> torch.Tensor:
        positives, _ = cascade_topk({"rgb": query.detach()}, {"rgb": keys}, coclr_schedule("rgb"))
        return mil_nce(query, query.detach(), keys, positives)

    plain, compiled = (query.clone().requires_grad_() for _ in range(2))
    expected, got = work(plain), torch.compile(work, fullgraph=True)(compiled)
    expected.backward()
    got.backward()
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(compiled.grad, plain.grad)
