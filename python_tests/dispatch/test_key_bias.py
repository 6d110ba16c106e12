"""A bias per key, added to the last stage's score: by loops, on every backend, compiled, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from cases import SMALL_CASES, CascadeCase, few, integers, listed
from oracles import same
from torch import Tensor

import cpr_kernels as cpr
from cpr_kernels import Schedule, Stage, cascade_rerank, cascade_topk, explain
from cpr_kernels.dispatch.sharded_keys import Shard, ShardedKeys
from cpr_kernels.mining import reference, sharded
from cpr_kernels.mining.arguments import as_call

G = torch.Generator().manual_seed(5)
KEYS, QUERIES = 90, 7
ODD = {3: math.inf, 4: math.inf, 10: -math.inf, 17: math.nan, 60: 0.25, 61: -1e30}
SCHEDULES = [
    few(KEYS, 12),
    few(KEYS, 60, 30, 12),
    Schedule([("rgb", 88), Stage({"flow": -1.0, "rgb": 0.5}, 88)]),
]
BACKENDS = ("native", "reference", "faiss")


def bias() -> Tensor:
    """Both signs, many ties, and what is not finite."""
    out = integers(torch.Generator().manual_seed(6), KEYS, high=4)
    for j, value in ODD.items():
        out[j] = value
    return out


def tables(dtype: torch.dtype = torch.float32) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    g = torch.Generator().manual_seed(7)
    return tuple({v: integers(g, n, 5).to(dtype) for v in ("flow", "rgb")} for n in (QUERIES, KEYS))  # type: ignore[return-value]


IDS = {"query_ids": torch.arange(QUERIES), "key_ids": torch.arange(KEYS) % 30 - 1}


def by_loops(
    schedule: Schedule, listed: list[int] | None = None
) -> tuple[list[list[int]], list[list[float]]]:
    """Each stage sorts Python numbers; the last adds the bias."""
    queries, keys = ({v: t.tolist() for v, t in side.items()} for side in tables())
    added, found, scored = bias().tolist(), [], []
    for b in range(QUERIES):
        left = [j for j in range(KEYS) if (j % 30 - 1) not in (-1, b) and not math.isnan(added[j])]
        left = [j for j in left if listed is None or j in listed]
        for stage in schedule:
            score = {
                j: sum(
                    w * sum(x * y for x, y in zip(queries[v][b], keys[v][j]))
                    for v, w in stage.weights.items()
                )
                + (added[j] if stage is schedule[-1] else 0.0)
                for j in left
            }
            left = sorted(left, key=lambda j: (-score[j], j))[: stage.keep]
        missing = schedule.topk - len(left)
        found.append(left + [-1] * missing)
        scored.append([float(torch.tensor(score[j])) for j in left] + [-math.inf] * missing)
    return found, scored


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_it_is_added_to_the_last_stages_score(schedule: Schedule, dtype: torch.dtype, isa: str) -> None:
    queries, keys = tables(dtype)
    indices, scores = cascade_topk(queries, keys, schedule, **IDS, key_bias=bias())
    assert (indices.tolist(), scores.tolist()) == by_loops(schedule)
    some = torch.arange(5, 70)
    candidates = some.expand(QUERIES, -1).flip(1)
    indices, scores = cascade_rerank(queries, keys, schedule, candidates, **IDS, key_bias=bias())
    assert (indices.tolist(), scores.tolist()) == by_loops(schedule, some.tolist())


@pytest.mark.parametrize("backend", BACKENDS)
def test_backends_by_name(backend: str) -> None:
    if backend == "faiss":
        pytest.importorskip("faiss")
    queries, keys = tables()
    for schedule in (few(KEYS, 5), few(KEYS, 9, 5)):
        indices, scores = cascade_topk(queries, keys, schedule, **IDS, key_bias=bias(), backend=backend)
        assert (indices.tolist(), scores.tolist()) == by_loops(schedule)


@pytest.mark.parametrize("case", SMALL_CASES, ids=lambda c: c.name)
def test_any_case_with_a_bias(case: CascadeCase) -> None:
    added = torch.full((2 * case.keys,), math.nan)[::2].copy_(integers(G, case.keys))
    call = case.call()._replace(key_bias=added)
    same(torch.ops.cpr.cascade_topk(*call), reference.run(call))


def test_the_fast_path_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, keys = tables()
    expected = cascade_topk(queries, keys, SCHEDULES[1], **IDS, key_bias=bias(), backend="native")
    monkeypatch.setattr(cpr.mining, "as_call", None)
    mined = cascade_topk(queries, keys, SCHEDULES[1], **IDS, key_bias=bias())
    assert torch.equal(mined[0], expected[0]) and torch.equal(mined[1], expected[1])


def test_float64_features_keep_their_precision() -> None:
    queries, keys = ({v: t.double() + 1e-12 for v, t in side.items()} for side in tables())
    _, scores = cascade_topk(queries, keys, few(KEYS, 5), key_bias=torch.zeros(KEYS))
    plain = cascade_topk(queries, keys, few(KEYS, 5))[1]
    assert scores.dtype == torch.float64 and torch.equal(scores, plain)


def test_no_bit_of_the_bias_is_lost_beside_bfloat16() -> None:
    g = torch.Generator().manual_seed(8)
    added = torch.randn(200, generator=g) * 10.0 ** torch.randint(-30, 38, (200,), generator=g)
    added[:4] = torch.tensor([3.4028235e38, -3.4028235e38, 1 + 2**-23, -math.inf])
    added[4:5] = torch.tensor([0x7F800001], dtype=torch.int32).view(
        torch.float32
    )  # a NaN whose upper half is infinity
    nothing = (
        {"flow": torch.zeros(1, 8, dtype=torch.bfloat16)},
        {"flow": torch.zeros(200, 8, dtype=torch.bfloat16)},
    )
    for backend in ("native", "reference"):
        indices, scores = cascade_topk(*nothing, few(200, 200), key_bias=added, backend=backend)
        assert (indices[0, :199] != 4).all() and indices[0, 199] == -1
        assert torch.equal(scores[0, :199], added[indices[0, :199]])


def test_nothing_to_mine() -> None:
    queries, keys = tables()
    none = {v: t[:0] for v, t in keys.items()}
    indices, scores = cascade_topk(queries, none, few(5, 5), key_bias=torch.zeros(0))
    assert (indices == -1).all() and (scores == -math.inf).all()
    indices, _ = cascade_topk({v: t[:0] for v, t in queries.items()}, keys, few(5, 5), key_bias=bias())
    assert indices.shape == (0, 5)


def test_compiled_and_under_vmap() -> None:
    queries, keys = tables()

    def mine(queries: dict[str, Tensor], added: Tensor) -> tuple[Tensor, Tensor]:
        return cascade_topk(queries, keys, SCHEDULES[1], key_bias=added)

    expected = mine(queries, bias())
    compiled = torch.compile(mine, backend="eager", fullgraph=True)(queries, bias())
    assert torch.equal(compiled[0], expected[0]) and torch.equal(compiled[1], expected[1])
    twice = {v: torch.stack([t, t.flip(0)]) for v, t in queries.items()}
    both = torch.stack([bias(), -bias()])
    for dims, added in ((None, bias()), (0, both)):
        mined, _ = torch.func.vmap(mine, in_dims=(0, dims))(twice, added)
        last = mine({v: t.flip(0) for v, t in queries.items()}, added if dims is None else -bias())
        assert torch.equal(mined[0], expected[0]) and torch.equal(mined[1], last[0])


def test_explain_says_where_it_is_added(capsys: pytest.CaptureFixture[str]) -> None:
    queries, keys = tables()
    finite = torch.zeros(KEYS)
    late = explain(cascade_topk, queries, keys, SCHEDULES[1], key_bias=finite).plan
    assert late.bias == "to what reaches the last stage"  # type: ignore[union-attr]
    assert "; key_bias is added to what reaches the last stage" in capsys.readouterr().out
    for schedule, added in ((SCHEDULES[1], bias()), (SCHEDULES[2], finite)):  # NaN at once; a mix of its own
        assert explain(cascade_topk, queries, keys, schedule, key_bias=added).plan.bias == (  # type: ignore[union-attr]
            "while the keys stream by"
        )
    capsys.readouterr()
    explain(cascade_topk, queries, keys, SCHEDULES[1])
    assert "key_bias" not in capsys.readouterr().out
    ways = Schedule([Stage({"flow": 1.0, "rgb": 1.0 + i}, 20) for i in range(8)])
    explain(cascade_topk, queries, keys, ways, device="H200")
    assert "native on H200: the CUDA kernels judge" not in capsys.readouterr().out
    explain(cascade_topk, queries, keys, Schedule([*ways, ways[0]]), device="H200", key_bias=finite)
    refused = "the CUDA kernels judge by at most 8 weightings of the views, and there are 9"
    assert refused in capsys.readouterr().out


def test_adding_it_late_changes_no_bit() -> None:
    """Real values, where the bias waits for the last stage and where an infinite one forces it into the sweep."""
    g = torch.Generator().manual_seed(9)
    for count, schedule in ((900, few(900, 300, 100, 9)), (9000, cpr.cpr_schedule(num_keys=9000))):
        queries, keys = ({v: torch.randn(n, 24, generator=g) for v in ("flow", "rgb")} for n in (17, count))
        added = torch.randn(count, generator=g)
        empty = torch.arange(count)
        empty[-1] = -1  # an empty slot, whose bias decides nothing
        late = cascade_topk(queries, keys, schedule, key_ids=empty, key_bias=added)
        added[-1] = -math.inf
        at_once = cascade_topk(queries, keys, schedule, key_ids=empty, key_bias=added)
        same(late, at_once)
        shown = (queries["flow"].double() @ keys["flow"].double().T + added).gather(1, late[0])
        assert (late[1] - shown).abs().max() < 1e-5


@pytest.mark.parametrize("op", ["cascade_topk", "_cascade_topk_on", "cascade_rerank"])
def test_opcheck(op: str) -> None:
    call = next(case for case in SMALL_CASES if case.name == "bias, mixed weights").call()
    given = listed(call, 20) if op == "cascade_rerank" else call
    keywords = {"backend": "reference"} if op == "_cascade_topk_on" else {}
    torch.library.opcheck(getattr(torch.ops.cpr, op).default, tuple(given), keywords)


def test_an_exported_program_takes_it_as_an_input() -> None:
    class Mine(torch.nn.Module):
        def forward(self, q: Tensor, keys: Tensor, added: Tensor) -> tuple[Tensor, Tensor]:
            return torch.ops.cpr.cascade_topk([q], [keys], [1.0], [4], key_bias=added)

    queries, keys = tables()
    batch = torch.export.Dim("batch")
    example = (queries["flow"], keys["flow"], torch.zeros(KEYS))
    program = torch.export.export(Mine(), example, dynamic_shapes=({0: batch}, None, None)).module()
    same(
        program(queries["flow"][:3], keys["flow"], bias()), Mine()(queries["flow"][:3], keys["flow"], bias())
    )


WRONG: list[tuple[Any, str]] = [
    ([0.0] * KEYS, r"key_bias must be a float32 tensor \[90\], got list"),
    (torch.zeros(KEYS + 1), r"key_bias must be float32 of shape \[90\] .* got torch.float32 \[91\]"),
    (torch.zeros(KEYS, 1), r"key_bias must be float32 of shape \[90\] .* got torch.float32 \[90, 1\]"),
    (torch.tensor(0.0), r"key_bias must be float32 of shape \[90\]"),
    (torch.zeros(KEYS, dtype=torch.float64), r"got torch.float64 \[90\]"),
    (torch.zeros(KEYS, dtype=torch.bfloat16), r"got torch.bfloat16 \[90\]"),
    (torch.zeros(KEYS, device="meta"), "key_bias is on meta, expected cpu; move it there"),
]


@pytest.mark.parametrize(("added", "sentence"), WRONG)
def test_refusals(added: Any, sentence: str) -> None:
    queries, keys = tables()
    with pytest.raises(ValueError, match="cascade_topk: .*" + sentence):
        cascade_topk(queries, keys, SCHEDULES[0], key_bias=added)
    with pytest.raises(ValueError, match="cascade_rerank: .*" + sentence):
        cascade_rerank(queries, keys, SCHEDULES[0], torch.zeros(QUERIES, 1).long(), key_bias=added)


def test_a_sharded_queue_takes_the_bias_of_its_own_entries() -> None:
    queries, keys = tables()
    shard = Shard((KEYS, 50), 0)
    call = as_call(queries, {v: ShardedKeys(t, shard) for v, t in keys.items()}, SCHEDULES[1])
    sharded.check(call._replace(key_bias=torch.zeros(KEYS)))
    wrong = r"key_bias must be float32 of shape \[90\] \(one per entry that this rank holds\), got .* \[140\]"
    with pytest.raises(ValueError, match=wrong):
        sharded.check(call._replace(key_bias=torch.zeros(KEYS + 50)))
