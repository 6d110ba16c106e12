"""The cascade: a dumb loop guards the reference, the reference guards every backend."""

from __future__ import annotations

import itertools

import pytest
import torch
from cases import CASCADE_CASES, LARGE_CASES, SMALL_CASES, CascadeCase, integers, name_of
from fresh_process import peak_kib
from hypothesis import given, settings
from oracles import cascade_calls, oracle, real, same

from cpr_kernels import Schedule, Stage, _core, cascade_topk, cascade_trace, cpr_schedule
from cpr_kernels.dispatch.calls import CascadeCall
from cpr_kernels.dispatch.launch_plans import plan_on_cpu
from cpr_kernels.mining import native, reference
from cpr_kernels.mining.arguments import as_call


@pytest.mark.parametrize("case", SMALL_CASES, ids=name_of)
def test_reference_equals_the_oracle(case: CascadeCase) -> None:
    call = case.call()
    indices, scores = reference.run(call)
    expected_indices, expected_scores = oracle(call)
    assert indices.tolist() == expected_indices
    assert scores.tolist() == expected_scores


@pytest.mark.parametrize("case", CASCADE_CASES, ids=name_of)
def test_native_equals_the_reference(case: CascadeCase, isa: str) -> None:
    call = case.call()
    same(torch.ops.cpr._cascade_topk_on(*call, backend="native"), reference.run(call))


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("case", LARGE_CASES, ids=name_of)
def test_threads_do_not_change_the_result(case: CascadeCase, threads: int) -> None:
    call = case.call()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        same(torch.ops.cpr.cascade_topk(*call), reference.run(call))
    finally:
        torch.set_num_threads(before)


@settings(max_examples=150, deadline=None)
@given(call=cascade_calls())
def test_any_call_agrees_everywhere(call: CascadeCall) -> None:
    expected = reference.run(call)
    same(torch.ops.cpr.cascade_topk(*call), expected)
    if call.queries[0].shape[0] * call.keys[0].shape[0] < 600:
        assert expected[0].tolist() == oracle(call)[0]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("num_keys", [1, 17, 511, 513, 2033, 2041, 4081, 4095])
def test_tiles_beyond_the_last_key_touch_nothing(num_keys: int, threads: int, isa: str) -> None:
    """Short queues are scored straight into lists, a whole tile at a time."""
    generator = torch.Generator().manual_seed(num_keys)
    queries, keys = (
        {view: integers(generator, rows, 24) for view in ("flow", "rgb")} for rows in (37, num_keys)
    )
    schedule = Schedule(
        [Stage({"flow": 1.0}, (num_keys + 1) // 2), Stage({"rgb": 1.0}, min(5, (num_keys + 1) // 2))]
    )
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = cascade_topk(queries, keys, schedule, backend="native")
    finally:
        torch.set_num_threads(before)
    for mine, right in zip(found, cascade_topk(queries, keys, schedule, backend="reference")):
        assert torch.equal(mine, right)


@pytest.mark.parametrize("keys", [2048, 16384])
def test_real_scores_are_float32_grade(keys: int, isa: str) -> None:
    queries, queue = real(1, 20, keys, 128)
    schedule = cpr_schedule(num_keys=keys)
    indices, scores = cascade_topk(queries, queue, schedule)
    exact = torch.stack(
        [(queries["flow"][b].double() * queue["flow"][indices[b]].double()).sum(1) for b in range(20)]
    )
    plain = torch.stack([(queries["flow"] @ queue["flow"].T)[b, indices[b]] for b in range(20)])
    budget = (
        plain - exact
    ).abs().max() + 3e-7  # honest float32 torch, and a slack of a few units in the last place
    assert (scores - exact).abs().max() <= budget
    expected = cascade_topk(queries, queue, schedule, backend="reference")
    assert (indices != expected[0]).sum() <= 2  # only where two scores are closer than the score error


@pytest.mark.parametrize("high", [2, 1000])
@pytest.mark.parametrize("num_keys", [600, 9001, 70_000])
def test_thousands_of_results_come_in_order(num_keys: int, high: int, isa: str) -> None:
    """Long results are sorted digit by digit: ties, negative scores, and slots that nothing fills."""
    g = torch.Generator().manual_seed(num_keys)
    queries, keys = {"rgb": integers(g, 3, 8, high=high)}, {"rgb": integers(g, num_keys, 8, high=high)}
    ids = {"query_ids": torch.arange(3), "key_ids": torch.arange(num_keys) % 5 - 1}
    call = as_call(queries, keys, Schedule([Stage("rgb", num_keys - 7)]), **ids)
    same(torch.ops.cpr.cascade_topk(*call), reference.run(call))


@pytest.mark.parametrize("keys", [1500, 9000])
def test_a_batch_split_changes_nothing(keys: int) -> None:
    queries, queue = real(2, 70, keys, 24)
    schedule = cpr_schedule(num_keys=keys, stages=5)
    whole = cascade_topk(queries, queue, schedule)
    for first, last in [(0, 1), (1, 17), (17, 50), (50, 70)]:
        part = cascade_topk({v: q[first:last] for v, q in queries.items()}, queue, schedule)
        assert torch.equal(part[0], whole[0][first:last]) and torch.equal(part[1], whole[1][first:last])


@pytest.mark.parametrize("keys", [20_000, 140_000])
def test_bracket_misses_are_selected_the_long_way(keys: int) -> None:
    """A queue made to fool any sample drawn before looking: the sampled entries are the best ones."""
    dim = 4
    queries = {v: torch.ones(3, dim) for v in ("flow", "rgb")}
    queue = {v: torch.zeros(keys, dim) for v in ("flow", "rgb")}
    sample = torch.tensor(_core.sampled_keys(keys))
    for view in queue:
        queue[view][:, 0] = torch.randperm(keys, generator=torch.Generator().manual_seed(3)).float()
        queue[view][sample, 0] += 10 * keys
    schedule = cpr_schedule(num_keys=keys)
    same(cascade_topk(queries, queue, schedule), cascade_topk(queries, queue, schedule, backend="reference"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_queue_sorted_by_class_is_not_selected_the_long_way(dtype: torch.dtype) -> None:
    """Classes of some fifty entries side by side: neighbours are alike, so nested samples mislead and are tried again."""
    g, keys = torch.Generator().manual_seed(5), 65_536
    classes = torch.arange(keys) // 50
    queue, queries = {}, {}
    for view in ("flow", "rgb"):
        centres = integers(g, int(classes[-1]) + 1, 64, high=3)
        queue[view] = (4 * centres[classes] + integers(g, keys, 64, high=3)).to(dtype)
        queries[view] = (4 * centres[::40][:33] + integers(g, 33, 64, high=3)).to(dtype)
    call = as_call(queries, queue, cpr_schedule(num_keys=keys), torch.arange(33), torch.arange(keys) % 40)
    given = native._Arguments(call)
    long_way = _core.cascade_topk(*given.features, given.masks, given.out, 2)
    expected = reference.run(call)
    same((given.indices, given.scores), expected)
    assert long_way <= 1  # 7 before there was a second try


def test_sampled_keys_are_spread_evenly() -> None:
    for keys in (4096, 5000, 20_000, 140_000):
        sample = _core.sampled_keys(keys)
        assert sample == sorted(set(sample)) and sample[-1] < keys
        gaps = [later - earlier for earlier, later in itertools.pairwise(sample)]
        assert max(gaps) <= 2 * keys / len(sample) + 2


@pytest.mark.parametrize("keys", [1 << 14, 140_000, 1 << 20, 1 << 22])
def test_a_call_takes_a_few_megabytes(keys: int) -> None:
    """Nothing of size B x N: the high-water mark of a fresh process rises by far less than one score matrix."""
    inputs = (
        f"n, d = {keys}, {min(32, (1 << 24) // keys)}\n"
        "q = {v: torch.randn(64, d) for v in ('flow', 'rgb')}; k = {v: torch.randn(n, d) for v in ('flow', 'rgb')}\n"
        "s = c.cpr_schedule(num_keys=n)"
    )
    assert peak_kib(inputs, "c.cascade_topk(q, k, s)") < 16 * 1024


def test_queries_take_turns_where_their_lists_are_long() -> None:
    case = next(case for case in LARGE_CASES if case.name == "queries by turns")
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        plan = plan_on_cpu(case.call())
    finally:
        torch.set_num_threads(threads)
    if plan.lanes != 16:
        pytest.skip("20 queries are two groups of 16 lanes only")
    assert (plan.queries_per_group, plan.groups, plan.parts) == (16, 2, 2)


def test_denormal_flushing_of_the_caller_is_kept_and_ignored() -> None:
    """Scores below the normal range still rank, whatever torch.set_flush_denormal says."""
    tiny = torch.tensor([[1e-40], [3e-40], [2e-40], [0.0]])
    call = ({"v": torch.ones(1, 1)}, {"v": tiny}, Schedule([Stage("v", 4)]))
    if not torch.set_flush_denormal(True):
        pytest.skip("this machine cannot flush denormals")
    try:
        indices, _ = cascade_topk(*call)
        assert torch.tensor([1e-40]).mul(1.0).item() == 0.0  # still flushing for the caller
    finally:
        torch.set_flush_denormal(False)
    assert indices.tolist() == [[1, 2, 0, 3]]


def test_trace_is_the_cascade_of_every_prefix() -> None:
    case = next(case for case in SMALL_CASES if case.name == "ids and empty slots")
    call = case.call()
    views = case.schedule.views
    queries, keys = dict(zip(views, call.queries)), dict(zip(views, call.keys))
    ids = {"query_ids": call.query_ids, "key_ids": call.key_ids}
    trace = cascade_trace(queries, keys, case.schedule, **ids)
    assert [stage.stage for stage in trace] == list(case.schedule)
    assert torch.equal(trace[-1].indices, cascade_topk(queries, keys, case.schedule, **ids)[0])
    for earlier, later in itertools.pairwise(trace):
        for b in range(len(call.queries[0])):
            assert set(later.indices[b].tolist()) - {-1} <= set(earlier.indices[b].tolist())
    assert (trace.counts()[:, -1] <= case.schedule.topk).all()


def test_inputs_that_require_grad_record_no_graph() -> None:
    queries = {"v": torch.randn(2, 4, requires_grad=True)}
    _, scores = cascade_topk(queries, {"v": torch.randn(9, 4)}, Schedule([Stage("v", 3)]))
    assert not scores.requires_grad
