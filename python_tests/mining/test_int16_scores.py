"""16-bit products first, then exactly what they leave open: the same bits as float32 products alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from cpr_kernels import Schedule, _core, cascade_rerank, cascade_topk, cpr_schedule
from cpr_kernels.dispatch.launch_plans import plan_on_cpu
from cpr_kernels.mining.arguments import as_call

COARSE = [isa for isa in _core.cpu_isas() if isa in ("avx512vnni", "avx2")]
VIEWS = ("flow", "rgb")


coarse_isas = pytest.mark.parametrize("isa", COARSE, indirect=True)

Draw = Callable[[torch.Generator, int, int], Tensor]


def unit(g: torch.Generator, rows: int, dim: int) -> Tensor:
    return normalize(torch.randn(rows, dim, generator=g), dim=1)


def collapsed(g: torch.Generator, rows: int, dim: int) -> Tensor:
    """All features nearly alike, as an untrained network's: scores closer than their error."""
    return normalize(1 + 1e-4 * torch.randn(rows, dim, generator=g), dim=1)


def of_all_lengths(g: torch.Generator, rows: int, dim: int) -> Tensor:
    return unit(g, rows, dim) * torch.exp(2 * torch.randn(rows, 1, generator=g))


def rectified(g: torch.Generator, rows: int, dim: int) -> Tensor:
    return normalize(torch.randn(rows, dim, generator=g).relu() + 1e-6, dim=1)


def sparse(g: torch.Generator, rows: int, dim: int) -> Tensor:
    """One number a row, or two."""
    features = torch.zeros(rows, dim)
    for _ in range(2):
        place = torch.randint(dim, (rows, 1), generator=g)
        features.scatter_(1, place, torch.randn(rows, 1, generator=g))
    return features


def clustered(g: torch.Generator, rows: int, dim: int) -> Tensor:
    """Forty centres, and entries much closer to them than scores can tell in 16 bits."""
    centres = unit(torch.Generator().manual_seed(1), 40, dim)
    return centres[torch.randint(40, (rows,), generator=g)] + 1e-5 * unit(g, rows, dim)


def two_valued(g: torch.Generator, rows: int, dim: int) -> Tensor:
    return torch.randint(0, 2, (rows, 1), generator=g).float().expand(rows, dim).contiguous()


def tiny(g: torch.Generator, rows: int, dim: int) -> Tensor:
    return 1e-21 * unit(g, rows, dim)  # products are denormal


def huge(g: torch.Generator, rows: int, dim: int) -> Tensor:
    return 3e18 * unit(g, rows, dim)  # squares overflow where a few are added


def with_strays(g: torch.Generator, rows: int, dim: int) -> Tensor:
    """NaN, infinity, rows of zeros, and one row much longer than all others."""
    features = unit(g, rows, dim)
    features[1 % rows, 0] = float("nan")
    features[2 % rows, dim // 2] = float("inf")
    features[3 % rows] = 0
    features[4 % rows] *= 1e5
    features[5 % rows] *= 1e25
    return features


DRAWS = [
    unit, collapsed, of_all_lengths, rectified, sparse, clustered, two_valued, tiny, huge, with_strays
]  # fmt: skip


def mined_and_listed(
    queries: dict[str, Tensor], keys: dict[str, Tensor], schedule: Schedule | None = None, **ids: Tensor
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The op's answer, and the answer with every entry listed, which float32 products alone make."""
    num_queries, num_keys = (next(iter(views.values())).shape[0] for views in (queries, keys))
    schedule = schedule or cpr_schedule(num_keys=num_keys)
    listed = torch.arange(num_keys).expand(num_queries, num_keys)
    assert plan_on_cpu(as_call(queries, keys, schedule, **ids)).int16_scores
    return cascade_topk(queries, keys, schedule, **ids), cascade_rerank(
        queries, keys, schedule, listed, **ids
    )


def assert_same_bits(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1].view(torch.int32), expected[1].view(torch.int32))


@coarse_isas
@pytest.mark.parametrize("keys_like", DRAWS)
@pytest.mark.parametrize("num_keys", [20_001, 65_536, 66_000])
def test_same_bits_as_float32_products(keys_like: Draw, num_keys: int, isa: str) -> None:
    g = torch.Generator().manual_seed(num_keys)
    for queries_like, dim in [(keys_like, 33), (unit, 128), (with_strays, 48)]:
        queries = {view: queries_like(g, 21, dim) for view in VIEWS}
        keys = {view: keys_like(g, num_keys, dim) for view in VIEWS}
        assert_same_bits(*mined_and_listed(queries, keys))


@coarse_isas
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_features(dtype: torch.dtype, isa: str) -> None:
    g = torch.Generator().manual_seed(2)
    queries, keys = ({view: unit(g, rows, 100).to(dtype) for view in VIEWS} for rows in (40, 18_000))
    assert_same_bits(*mined_and_listed(queries, keys))


@coarse_isas
def test_ids_and_views_of_different_lengths(isa: str) -> None:
    g = torch.Generator().manual_seed(3)
    dims = dict(zip(VIEWS, (64, 257)))
    queries, keys = ({view: unit(g, rows, dims[view]) for view in VIEWS} for rows in (65, 20_001))
    ids = {"query_ids": torch.arange(65) % 7, "key_ids": torch.arange(20_001) % 9 - 1}
    assert_same_bits(*mined_and_listed(queries, keys, **ids))


@coarse_isas
def test_rows_at_the_edge_of_16_bits(isa: str) -> None:
    """Keys and queries that point the same way make the largest sums there are: none may overflow."""
    g = torch.Generator().manual_seed(4)
    for dim in (1, 2, 64, 4096):
        direction = torch.randn(1, dim, generator=g).sign() * torch.rand(1, dim, generator=g)
        queries = {view: direction.repeat(3, 1) for view in VIEWS}
        keys = {view: direction * torch.rand(20_000, 1, generator=g) for view in VIEWS}
        assert_same_bits(*mined_and_listed(queries, keys))


@coarse_isas
@pytest.mark.parametrize("num_views", [1, 2, 3, 4])
@pytest.mark.parametrize("ratio", [0.001, 0.3, 0.6])
def test_any_number_of_views_and_of_stages_decided_on_the_way(num_views: int, ratio: float, isa: str) -> None:
    """One view judges every stage, or more than are collected in 16 bits; one to five stages are decided on the way."""
    g = torch.Generator().manual_seed(5)
    names, num_keys = [f"view{v}" for v in range(num_views)], 40_000
    queries, keys = ({name: unit(g, rows, 40) for name in names} for rows in (37, num_keys))
    counts = [max(int(num_keys * ratio ** (s + 1)), 5) for s in range(16)]
    schedule = Schedule((names[s % num_views], keep) for s, keep in enumerate([*counts, 5]))
    assert_same_bits(*mined_and_listed(queries, keys, schedule))


@coarse_isas
@pytest.mark.parametrize("threads", [1, 3, 16])
@pytest.mark.parametrize("num_queries", [1, 70, 200])
def test_any_number_of_threads(threads: int, num_queries: int, isa: str) -> None:
    """Samples are collected in float32 where codes follow: both must fit, however the keys are shared out."""
    g = torch.Generator().manual_seed(threads)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for num_keys in (16_000, 65_000, 66_000):
            queries, keys = ({view: unit(g, rows, 32) for view in VIEWS} for rows in (num_queries, num_keys))
            found, expected = mined_and_listed(queries, keys)
            few = cpr_schedule(num_keys=num_keys, ratio=0.02, stages=3)
            assert_same_bits(found, expected)
            assert_same_bits(*mined_and_listed(queries, keys, few))
    finally:
        torch.set_num_threads(before)


@coarse_isas
@pytest.mark.parametrize("times", [1.005, 1.1, 1.2, 1.5, 40.0, 1e6, 1e12])
def test_keys_that_score_beyond_what_the_sample_promised(times: float, isa: str) -> None:
    """Longer than every sampled key and near a query: the highest scores of all, past the codes' grid, and past int32."""
    g = torch.Generator().manual_seed(6)
    num_keys = 20_000
    queries, keys = ({view: unit(g, rows, 64) for view in VIEWS} for rows in (24, num_keys))
    sampled = set(_core.sampled_keys(num_keys))
    others = torch.tensor([key for key in range(num_keys) if key not in sampled])
    for query in range(0, 24, 2):
        for view in VIEWS:
            near = others[query * 400 : query * 400 + 400]
            keys[view][near] = times * normalize(
                queries[view][query] + 0.02 * torch.randn(400, 64, generator=g), dim=1
            )
    found, expected = mined_and_listed(queries, keys)
    assert_same_bits(found, expected)
    assert all(set(found[0][query].tolist()) <= set(others.tolist()) for query in range(0, 24, 2))


@coarse_isas
@pytest.mark.parametrize("times", [1.005, 3.0, 40.0])
def test_keys_that_score_below_what_the_sample_promised(times: float, isa: str) -> None:
    """Far below all others by a stage that keeps every key, and the best by the next: lowest is not gone."""
    g = torch.Generator().manual_seed(8)
    num_keys = 20_000
    queries, keys = ({view: unit(g, rows, 64) for view in VIEWS} for rows in (8, num_keys))
    sampled = set(_core.sampled_keys(num_keys))
    lowest = torch.tensor([key for key in range(num_keys) if key not in sampled][:8])
    keys["rgb"][lowest] = -times * queries["rgb"]
    keys["flow"][lowest] = queries["flow"]
    found, expected = mined_and_listed(
        queries, keys, Schedule([("rgb", num_keys), ("flow", 4000), ("rgb", 3500), ("flow", 5)])
    )
    assert_same_bits(found, expected)
    last = mined_and_listed(queries, keys, Schedule([("rgb", num_keys), ("flow", 4000), ("flow", 5)]))
    assert_same_bits(*last)
    assert torch.equal(last[0][0][:, 0], lowest)


@coarse_isas
def test_scores_closer_than_the_codes(isa: str) -> None:
    """One feature, more keys than codes between them, and a view that no bracket narrows: half a code decides."""
    for seed in range(10):
        g = torch.Generator().manual_seed(seed)
        queries, keys = (
            {view: 0.1 + torch.rand(rows, 1, generator=g) for view in VIEWS} for rows in (8, 20_000)
        )
        keys["flow"] = 1 + 0.05 * keys["flow"]
        schedule = Schedule([("rgb", 8000), ("rgb", 4000), ("flow", 1000), ("rgb", 300)])
        assert_same_bits(*mined_and_listed(queries, keys, schedule))


@coarse_isas
@pytest.mark.parametrize("num_keys", [4_096, 4_099, 6_000, 8_192, 10_240, 12_007])
def test_the_shortest_queues(num_keys: int, isa: str) -> None:
    if _core.cpu_isa() != "avx2" and num_keys < 10_240:
        pytest.skip("float32 products are as fast here")
    g = torch.Generator().manual_seed(num_keys)
    for draw in (unit, of_all_lengths, with_strays):
        queries, keys = ({view: draw(g, rows, 96) for view in VIEWS} for rows in (50, num_keys))
        assert_same_bits(*mined_and_listed(queries, keys))


@coarse_isas
def test_nan_in_a_view_that_judges_late(isa: str) -> None:
    """The best by the first view are NaN in the second, which decides nothing on the way."""
    g = torch.Generator().manual_seed(7)
    queries, keys = ({view: unit(g, rows, 16) for view in VIEWS} for rows in (9, 30_000))
    best = (queries["rgb"] @ keys["rgb"].T).topk(4).indices.reshape(-1)
    keys["flow"][best, 3] = float("nan")
    found, expected = mined_and_listed(queries, keys, Schedule([("rgb", 10), ("flow", 10), ("rgb", 8)]))
    assert_same_bits(found, expected)
    assert not torch.isin(found[0], best).any()


@settings(max_examples=30, deadline=None)
@given(
    dim=st.integers(1, 70),
    num_queries=st.integers(1, 40),
    num_keys=st.integers(17_000, 24_000),
    noise=st.sampled_from([0.0, 1e-6, 1e-4, 1e-2, 1.0]),
    seed=st.integers(0, 1000),
)
def test_any_shape_and_any_closeness(
    dim: int, num_queries: int, num_keys: int, noise: float, seed: int
) -> None:
    if _core.cpu_isa() not in COARSE:
        pytest.skip("this machine has no instruction set with 16-bit products that pay")
    g = torch.Generator().manual_seed(seed)
    centres = {view: torch.randn(30, dim, generator=g) for view in VIEWS}

    def drawn(rows: int) -> dict[str, Tensor]:
        which = torch.randint(30, (rows,), generator=g)
        return {view: centres[view][which] + noise * torch.randn(rows, dim, generator=g) for view in VIEWS}

    assert_same_bits(*mined_and_listed(drawn(num_queries), drawn(num_keys)))
