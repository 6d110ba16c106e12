"""The cascade over listed candidates: what it means, and that it is `cascade_topk`'s own arithmetic."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import LARGE_CASES, SMALL_CASES, CascadeCase, few, listed, name_of
from fresh_process import peak_kib
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import cascade_calls, oracle, real, same
from torch import Tensor

from cpr_kernels import Schedule, Stage, cascade_rerank, cascade_topk, cpr_schedule, explain, parse_schedule
from cpr_kernels.dispatch.calls import CascadeCall, RerankCall
from cpr_kernels.mining import reference

BY_NAME = {case.name: case for case in SMALL_CASES + LARGE_CASES}
LISTED = (
    "one off a block",
    "long last stage",
    "clustered, long",
    "NaN, long",
    "infinities, long",
    "deep features",
)


def unlisted(call: RerankCall) -> Tensor:
    """[B, N] True where a query's list does not name the entry, by a loop."""
    out = torch.ones(call.queries[0].shape[0], call.keys[0].shape[0], dtype=torch.bool)
    for b, row in enumerate(call.candidates.tolist()):
        for j in row:
            if j >= 0:
                out[b, j] = False
    return out


@pytest.mark.parametrize("case", SMALL_CASES, ids=name_of)
def test_the_reference_is_the_cascade_of_the_listed(case: CascadeCase) -> None:
    call = listed(case.call(), 40)
    exclude = unlisted(call) if call.exclude is None else unlisted(call) | call.exclude
    indices, scores = reference.rerank(call)
    expected_indices, expected_scores = oracle(call.cascade._replace(exclude=exclude))
    assert indices.tolist() == expected_indices
    assert scores.tolist() == expected_scores


@pytest.mark.parametrize("case", [*SMALL_CASES, *(BY_NAME[name] for name in LISTED)], ids=name_of)
def test_native_equals_the_reference(case: CascadeCase, isa: str) -> None:
    call = case.call()
    for count in (0, 1, 63, 65, 700):
        part = listed(call, count, seed=count)
        same(torch.ops.cpr._cascade_rerank_on(*part, backend="native"), reference.rerank(part))


@settings(max_examples=60, deadline=None)
@given(call=cascade_calls(), count=st.integers(0, 90), seed=st.integers(0, 99))
def test_any_call_agrees(call: CascadeCall, count: int, seed: int) -> None:
    part = listed(call, count, seed)
    same(torch.ops.cpr.cascade_rerank(*part), reference.rerank(part))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dim", [3, 101, 128, 300])
def test_everything_listed_is_cascade_topk_bit_for_bit(dim: int, dtype: torch.dtype, isa: str) -> None:
    queries, queue = ({v: t.to(dtype) for v, t in side.items()} for side in real(dim, 18, 4500, dim))
    g = torch.Generator().manual_seed(dim)
    ids = {
        "query_ids": torch.randint(0, 900, (18,), generator=g),
        "key_ids": torch.randint(-1, 900, (4500,), generator=g),
    }
    everything = torch.stack([torch.randperm(4500, generator=g) for _ in range(18)])
    for schedule in (cpr_schedule(num_keys=4500), parse_schedule("flow+0.3*rgb:2000,flow:300,rgb:20")):
        whole = cascade_topk(queries, queue, schedule, **ids)
        part = cascade_rerank(queries, queue, schedule, everything, **ids)
        assert torch.equal(part[0], whole[0]) and torch.equal(part[1], whole[1])


def test_order_repeats_split_and_threads_change_nothing() -> None:
    queries, queue = real(5, 31, 3000, 40)
    schedule = parse_schedule("flow:200,rgb:50,flow:7")
    g = torch.Generator().manual_seed(5)
    candidates = torch.randint(0, 3000, (31, 500), generator=g)
    whole = cascade_rerank(queries, queue, schedule, candidates)
    again = torch.cat([candidates, candidates[:, :99], torch.full((31, 5), -1)], dim=1)
    again = again.gather(1, torch.rand(again.shape, generator=g).argsort(1))
    shuffled = cascade_rerank(queries, queue, schedule, again)
    one = cascade_rerank({v: q[9:10] for v, q in queries.items()}, queue, schedule, candidates[9:10])
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        threaded = cascade_rerank(queries, queue, schedule, candidates[:, ::1])
    finally:
        torch.set_num_threads(before)
    for result in (shuffled, threaded):
        assert torch.equal(result[0], whole[0]) and torch.equal(result[1], whole[1])
    assert torch.equal(one[0][0], whole[0][9])


def test_strided_candidates_are_read_in_place() -> None:
    call = listed(BY_NAME["primes"].call(), 60)
    wide = torch.full((call.candidates.shape[0], 200), 10**6)
    wide[:, 70:130] = call.candidates
    assert torch.equal(
        torch.ops.cpr.cascade_rerank(*call._replace(candidates=wide[:, 70:130]))[0], reference.rerank(call)[0]
    )
    turned = call.candidates.T.contiguous().T
    assert torch.equal(
        torch.ops.cpr.cascade_rerank(*call._replace(candidates=turned))[0], reference.rerank(call)[0]
    )


@pytest.mark.parametrize("name", ["primes", "everything at once", "no query", "empty queue", "strided bf16"])
def test_opcheck(name: str) -> None:
    call = listed(BY_NAME[name].call(), 30)
    torch.library.opcheck(torch.ops.cpr.cascade_rerank.default, tuple(call))
    torch.library.opcheck(torch.ops.cpr._cascade_rerank_on.default, tuple(call), {"backend": "reference"})


GOOD: dict[str, Any] = {
    "queries": {"flow": torch.zeros(3, 4), "rgb": torch.zeros(3, 6)},
    "keys": {"flow": torch.zeros(20, 4), "rgb": torch.zeros(20, 6)},
    "schedule": few(20, 10, 5),
    "candidates": torch.zeros(3, 8).long(),
}
REFUSALS = [
    ({"candidates": torch.zeros(3, 8)}, "candidates must be int64 of shape [3, C] (-1 is padding), got torch.float32"),
    ({"candidates": torch.zeros(2, 8).long()}, "candidates must be int64 of shape [3, C]"),
    ({"candidates": torch.zeros(3).long()}, "candidates must be int64 of shape [3, C]"),
    ({"candidates": torch.tensor([[0], [20], [1]])}, "candidates[1, 0] = 20 is out of range; expected -1 (padding) or an index below N=20"),
    ({"candidates": torch.tensor([[0], [5], [-2]])}, "candidates[2, 0] = -2 is out of range"),
    ({"candidates": torch.zeros(3, 8, device="meta").long()}, "candidates is on meta, expected cpu"),
    ({"keys": {"flow": torch.zeros(20, 5), "rgb": torch.zeros(20, 6)}}, "cascade_rerank: queries[0] has D=4, but keys[0] has D=5"),
    ({"query_ids": torch.zeros(3).long()}, "cascade_rerank: query_ids is given without key_ids"),
    ({"schedule": few(20, 10, 5, views=("flow", "audio"))}, "judges by view 'audio'"),
    ({"backend": "cuda"}, "backend must be 'auto' or one of 'native'"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "sentence"), REFUSALS, ids=[s[:40] for _, s in REFUSALS])
def test_refusals(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises((ValueError, NotImplementedError)) as caught:
        cascade_rerank(**(GOOD | changes))
    assert sentence in str(caught.value)


def test_explain_knows_it(capsys: pytest.CaptureFixture[str]) -> None:
    choices = explain(cascade_rerank, GOOD["queries"], GOOD["keys"], GOOD["schedule"], GOOD["candidates"])
    assert choices[0] == ("native", None)
    assert capsys.readouterr().out.startswith("cascade_rerank\n -> native")


def test_a_query_without_candidates_and_a_count_beyond_them() -> None:
    keys = {"v": torch.tensor([[3.0], [1.0], [2.0]])}
    candidates = torch.tensor([[-1, -1], [1, 2]])
    indices, scores = cascade_rerank({"v": torch.ones(2, 1)}, keys, Schedule([Stage("v", 3)]), candidates)
    assert indices.tolist() == [[-1, -1, -1], [2, 1, -1]]
    assert scores.tolist() == [[-torch.inf] * 3, [2.0, 1.0, -torch.inf]]


def test_nothing_of_size_b_c_d_nor_of_n_is_made() -> None:
    """64 queries x 4,096 candidates x 128: gathered they would take 256 MiB."""
    inputs = (
        "q = {'v': torch.randn(64, 128)}; k = {'v': torch.randn(50_000, 128)}\n"
        "listed = torch.randint(0, 50_000, (64, 4096)); s = c.coclr_schedule('v')"
    )
    assert peak_kib(inputs, "c.cascade_rerank(q, k, s, listed)") < 16 * 1024
