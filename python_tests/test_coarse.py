"""16-bit products first, then exactly what they leave open: the same bits as float32 products alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from cpr_kernels import _core, cascade_rerank, cascade_topk, cpr_schedule
from cpr_kernels.mining import as_call
from cpr_kernels.plans import plan_on_cpu

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
    queries: dict[str, Tensor], keys: dict[str, Tensor], **ids: Tensor
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The op's answer, and the answer with every entry listed, which float32 products alone make."""
    num_queries, num_keys = queries["rgb"].shape[0], keys["rgb"].shape[0]
    schedule = cpr_schedule(num_keys=num_keys)
    listed = torch.arange(num_keys).expand(num_queries, num_keys)
    assert plan_on_cpu(as_call(queries, keys, schedule, **ids)).coarse
    return cascade_topk(queries, keys, schedule, **ids), cascade_rerank(
        queries, keys, schedule, listed, **ids
    )


def assert_same_bits(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1].view(torch.int32), expected[1].view(torch.int32))


@coarse_isas
@pytest.mark.parametrize("keys_like", DRAWS)
@pytest.mark.parametrize("num_keys", [20_001, 60_000])
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
