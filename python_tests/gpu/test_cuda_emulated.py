"""The CUDA kernels, every thread of them, emulated on a CPU (csrc/cuda/device/emulate.h), against the reference.

What this shows: indexing, fragment layouts, barriers (the order of threads between two of them is shuffled), copies
waited for, masks, ties, every path. What it cannot show: speed, and rounding inside a tensor core.
"""

from __future__ import annotations

import shutil
import sys
from typing import Any

import gpu_small
import pytest
import torch
from cases import (
    ABSENT_BY_ANOTHER,
    ABSENT_IN_RING,
    LARGE_CASES,
    SMALL_CASES,
    CascadeCase,
    listed,
    name_of,
)
from emulation_fixtures import A100, H200, H200_SLICE, RTX, borders_hold, shape
from hypothesis import given, settings
from oracles import cascade_calls, same

from cpr_kernels.dispatch.calls import CascadeCall
from cpr_kernels.dispatch.launch_plans import CudaCascadePlan, CudaLimits, plan_on_cuda
from cpr_kernels.losses import native as loss_native
from cpr_kernels.memory import enqueue
from cpr_kernels.mining import native, reference

pytest_plugins = ["emulation_fixtures"]
pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("g++") is None, reason="the emulation needs g++ on Linux"
)


@pytest.mark.parametrize("device", [H200, A100], ids=["tiny", "ring"])
@pytest.mark.parametrize("case", [*SMALL_CASES, ABSENT_BY_ANOTHER, ABSENT_IN_RING], ids=name_of)
def test_small_cascades(
    core: Any, case: CascadeCase, device: tuple[int, ...], guarded: list[torch.Tensor]
) -> None:
    core.set_limits(*device)
    call = case.call()
    same(native.run_on_stream(call, core, 0), reference.run(call))
    borders_hold(guarded)


CHOSEN = ("paper, UCF101", "one off a block", "long last stage", "clustered, long", "all equal, long",
          "time-ordered, long", "infinities, long", "mixed weights, long")  # fmt: skip


@pytest.mark.parametrize("device", [H200_SLICE, RTX], ids=["shared memory", "lists in global memory"])
@pytest.mark.parametrize("case", [c for c in LARGE_CASES if c.name in CHOSEN], ids=name_of)
def test_large_cascades(case: CascadeCase, device: tuple[int, ...], guarded: list[torch.Tensor]) -> None:
    from cuda_tools import emulated

    core = emulated()
    core.set_seed(3)
    core.set_limits(*device)
    call = case.call()
    same(native.run_on_stream(call, core, 0), reference.run(call))
    borders_hold(guarded)


@pytest.mark.parametrize("case", SMALL_CASES, ids=name_of)
def test_small_reranks(core: Any, case: CascadeCase, guarded: list[torch.Tensor]) -> None:
    call = listed(case.call(), 45)
    same(native.rerank_on_stream(call, core, 0), reference.rerank(call))
    borders_hold(guarded)


@pytest.mark.parametrize(
    ("name", "device"),
    [("one off a block", RTX), ("long last stage", H200_SLICE), ("mixed weights, long", RTX)],
)
def test_long_lists_rerank(name: str, device: tuple[int, ...], guarded: list[torch.Tensor]) -> None:
    from cuda_tools import emulated

    core = emulated()
    core.set_seed(3)
    core.set_limits(*device)
    call = listed(next(case for case in LARGE_CASES if case.name == name).call(), 6000)
    part = call._replace(**{n: getattr(call, n)[:3] for n in ("candidates", "query_ids", "exclude") if getattr(call, n) is not None},
                         queries=[query[:3] for query in call.queries])  # fmt: skip
    same(native.rerank_on_stream(part, core, 0), reference.rerank(part))
    borders_hold(guarded)


def test_an_empty_list_and_entries_beyond_the_queue(core: Any) -> None:
    call = listed(SMALL_CASES[7].call(), 30)
    none = call._replace(candidates=call.candidates[:, :0])
    same(native.rerank_on_stream(none, core, 0), reference.rerank(none))
    wild = call._replace(candidates=call.candidates.masked_fill(call.candidates % 3 == 0, 2**40))
    same(native.rerank_on_stream(wild, core, 0), reference.rerank(wild))


def test_a_bias_that_begins_anywhere(core: Any) -> None:
    call = next(case for case in SMALL_CASES if case.name == "bias").call()
    shifted = call._replace(key_bias=torch.cat([torch.zeros(1), call.key_bias])[1:])
    assert shifted.key_bias.data_ptr() % native.BIAS_ALIGNMENT == 4
    same(native.run_on_stream(shifted, core, 0), reference.run(call))


@pytest.mark.parametrize(
    ("device", "queries", "keys", "path", "chunk"),
    [
        (H200, 16, 2048, "tiny", 16),
        (H200, 17, 2048, "ring", 17),
        (H200, 16, 4097, "ring", 16),
        (H200, 64, 16384, "ring", 64),
        (H200, 512, 16384, "ring", 256),  # 128 KB a query: 300 fit 37.5 MB, in blocks of 64; two sweeps
        (H200, 512, 2048, "ring", 512),
        (H200, 4096, 1_000_000, "huge", 128),  # 8 MB of scores and 6 MB of lists a query
        (A100, 16, 2048, "ring", 16),
        (RTX, 512, 16384, "huge", 128),
    ],
)
def test_shapes_go_where_the_rules_say(
    device: tuple[int, ...], queries: int, keys: int, path: str, chunk: int
) -> None:
    from cuda_tools import emulated

    core = emulated()
    core.set_limits(*device)
    assert core.cuda_limits() == device
    call = shape(queries, keys)
    plan = plan_on_cuda(call, CudaLimits(*device))
    assert isinstance(plan, CudaCascadePlan)
    assert (plan.path, plan.queries_per_sweep) == (path, chunk)
    size = plan.workspace_bytes
    given = native._Arguments(call)
    assert size == core.cuda_cascade_topk_workspace(*given.features, given.masks, given.out)
    assert size <= 2 << 30
    assert size < queries * keys * 2 * 4 * 0.75 or path != "huge"


@pytest.fixture(scope="module")
def untuned() -> tuple[CascadeCall, Any]:
    """A call of several tiles, and its result with nothing tuned."""
    from cuda_tools import emulated

    core = emulated()
    core.set_seed(5)
    core.set_limits(*H200_SLICE)
    g = torch.Generator().manual_seed(11)
    query, keys = torch.randn(70, 40, generator=g), torch.randn(5000, 40, generator=g)
    call = CascadeCall(
        [query, query], [keys, keys.flip(0)], [1.0, 0.0, 0.0, 1.0], [2000, 9], None, None, None
    )
    return call, native.run_on_stream(call, core, 0)


@pytest.mark.parametrize(
    "choice",
    [
        {"sweep": 20},
        {"score_queries": 128},
        {"score_queries": 64, "select_threads": 1024},
        {"early_start": True},
    ],
    ids=str,
)
def test_what_is_tuned_changes_no_bit(choice: dict[str, Any], untuned: tuple[CascadeCall, Any]) -> None:
    from cuda_tools import emulated

    core, (call, expected) = emulated(), untuned
    core.set_seed(5)
    core.set_limits(*H200_SLICE)
    core.cuda_tune(**choice)
    try:
        same(native.run_on_stream(call, core, 0), expected)
    finally:
        core.cuda_tune()
    with pytest.raises(ValueError, match="score_queries must be 0, 16, 64 or 128"):
        core.cuda_tune(score_queries=5)


@pytest.mark.parametrize(("device", "early"), [(A100, False), (H200_SLICE, True)], ids=["8.0", "9.0"])
def test_only_devices_that_can_are_asked_to_start_kernels_early(
    device: tuple[int, ...], early: bool, untuned: tuple[CascadeCall, Any]
) -> None:
    """The launch would fail elsewhere: the runtime refuses the attribute before 9.0."""
    from cuda_tools import emulated

    core, (call, expected) = emulated(), untuned
    core.set_limits(*device)
    core.cuda_tune(early_start=True)
    core.early_starts()
    try:
        same(native.run_on_stream(call, core, 0), expected)
    finally:
        core.cuda_tune()
    assert (core.early_starts() > 0) == early


def test_what_could_not_be_found_out_is_looked_for_again() -> None:
    """An error of the runtime, as where a device is short of memory, does not stay for the life of the process."""
    from cuda_tools import emulated

    assert emulated().remembered([None, None, 0, 1]) == [None, None, 0, 0]


@settings(max_examples=40, deadline=None)
@given(call=cascade_calls())
def test_any_cascade(call: CascadeCall) -> None:
    from cuda_tools import emulated

    core = emulated()
    for seed, device in ((1, H200), (2, RTX)):
        core.set_seed(seed)
        core.set_limits(*device)
        same(native.run_on_stream(call, core, 0), reference.run(call))


def test_scores_are_float32_grade_at_any_scale(core: Any) -> None:
    g = torch.Generator().manual_seed(4)
    rows = torch.tensor([1e-30, 1e-3, 1.0, 7.0, 1e15])[:, None]
    query = torch.randn(5, 128, generator=g) * rows
    keys = torch.randn(300, 128, generator=g) * 10.0 ** torch.randint(-12, 13, (300, 1), generator=g)
    call = CascadeCall([query], [keys], [1.0], [300], None, None, None)
    indices, scores = native.run_on_stream(call, core, 0)
    exact = (query.double() @ keys.double().T).gather(1, indices)
    size = query.double().norm(dim=1)[:, None] * keys.double().norm(dim=1)[indices]
    plain = (query @ keys.T).gather(1, indices)
    budget = ((plain.double() - exact).abs() / size).max() + 2**-23
    assert ((scores.double() - exact).abs() / size).max() <= budget


def test_errors_of_scores_are_bounded_by_the_rows_not_by_the_entries(core: Any) -> None:
    """The bound of docs/kernels.md, where a row's largest entry meets a zero: an error of float32 products is far less."""
    g = torch.Generator().manual_seed(6)
    query, keys = torch.rand(4, 64, generator=g) * 1e-6, torch.rand(40, 64, generator=g)
    query[:, 0], keys[:, 0] = 1.0, 0.0
    call = CascadeCall([query], [keys], [1.0], [40], None, None, None)
    indices, scores = native.run_on_stream(call, core, 0)
    x, y = query.double(), keys.double()
    error = (scores.double() - (x @ y.T).gather(1, indices)).abs()
    products = (x.abs() @ y.abs().T).gather(1, indices)
    largest = (x.amax(1)[:, None] * y.sum(1) + x.sum(1)[:, None] * y.amax(1)).gather(1, indices)
    assert (error <= (2**-22 + 64 / 16 * 2**-23) * products + 2**-35 * largest).all()
    assert (error > 64 * 2**-24 * products).any()  # more than any order of float32 sums


def test_rows_between_sixteen_bytes_give_the_same_bits(core: Any) -> None:
    """Rows on 16 bytes are split four at a time where nothing is odd among them, others one at a time."""
    g = torch.Generator().manual_seed(8)
    rows = torch.randn(46, 129, generator=g) * 10.0 ** torch.randint(-12, 13, (46, 1), generator=g)
    rows[5], rows[9], rows[14], rows[21, 3], rows[45] = 0.0, 1e-40, 2e38, float("inf"), 1e-39
    apart = rows[:, 1:]
    whole = apart.contiguous()
    core.set_limits(*A100)
    answers = [
        native.run_on_stream(CascadeCall([q], [k], [1.0], [40], None, None, None), core, 0)
        for q, k in ((whole[:6], whole[6:]), (apart[:6], apart[6:]))
    ]
    assert apart.data_ptr() % 16 != 0 and whole.data_ptr() % 16 == 0
    same(*answers)


def test_the_batch_split_does_not_change_a_bit(core: Any) -> None:
    g = torch.Generator().manual_seed(5)
    query, keys = torch.randn(70, 48, generator=g), torch.randn(500, 48, generator=g)
    whole = native.run_on_stream(CascadeCall([query], [keys], [1.0], [500], None, None, None), core, 0)
    for part in (slice(0, 3), slice(3, 40), slice(40, 70)):
        some = native.run_on_stream(
            CascadeCall([query[part]], [keys], [1.0], [500], None, None, None), core, 0
        )
        same(some, (whole[0][part], whole[1][part]))


def test_what_the_sanitizers_watch_runs_every_kernel() -> None:
    """`gpu_small.py quick`, here emulated: no kernel of test_cuda_build's list is left out."""
    from cuda_tools import emulated
    from test_cuda_build import REGISTERS

    core = emulated()
    core.set_seed(0)
    core.set_limits(*H200)
    core.kernels_launched()
    for case in gpu_small.cascades(quick=True):
        for choice in gpu_small.choices(case):
            core.cuda_tune(**choice)
            same(native.run_on_stream(case.call(), core, 0), reference.run(case.call()))
        core.cuda_tune()
        if case in gpu_small.TILES:
            call = listed(case.call(), 45)
            same(native.rerank_on_stream(call, core, 0), reference.rerank(call))
    for loss in gpu_small.losses_of(quick=True):
        call = loss.call()
        swept = loss_native.sweep_on_stream(call, True, core, 0)
        ranked = loss_native.sweep_on_stream(call, True, core, 0, True)
        assert all(torch.equal(a, b) for a, b in zip(swept[:-1], ranked[:-1]))
        given = (torch.ones_like(swept.loss), swept.lse_all, swept.lse_positive)
        loss_native.keys_gradient_on_stream(call, given, core, 0)
        for choice in gpu_small.choices(loss)[1:]:
            core.cuda_tune(**choice)
            for wanted in (False, True):
                chosen = loss_native.sweep_on_stream(call, True, core, 0, wanted)
                torch.testing.assert_close(chosen.loss, swept.loss, rtol=1e-5, atol=1e-5)
        core.cuda_tune()
    enqueue.on_stream([torch.zeros(8, 5)], torch.tensor(3), torch.tensor(3), [torch.ones(11, 5)], core, 0)
    assert core.kernels_launched() == len(REGISTERS) + 1  # prepare_kernel is compiled into two files


def test_limits_are_named(core: Any) -> None:
    call = SMALL_CASES[0].call()
    many = call._replace(stage_weights=[1.0] * 33, stage_keep=[1] * 33)
    assert "at most 32 stages" in str(native.why_unsupported(many))
    with pytest.raises(RuntimeError, match="at most 32 stages"):
        native.run_on_stream(many, core, 0)
    rows = [float(i) for i in range(1, 10)]
    assert "at most 8 weightings" in str(
        native.why_unsupported(call._replace(stage_weights=rows, stage_keep=[1] * 9))
    )
    assert native.why_unsupported(call) is None
