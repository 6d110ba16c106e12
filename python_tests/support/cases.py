"""One table of cases for the cascade and one for the loss. Every backend runs all of them against the reference.

Features are small integers, so inner products are exact in every dtype and order: ties are real and answers unique.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from cpr_kernels import Schedule, Stage, coclr_schedule, cpr_schedule, oracle_schedule
from cpr_kernels.dispatch.calls import CascadeCall, LossCall, RerankCall
from cpr_kernels.mining.arguments import as_call

FLOAT, BF16, HALF = torch.float32, torch.bfloat16, torch.float16
VIEWS = ("flow", "rgb")


def integers(generator: torch.Generator, *shape: int, high: int = 3) -> Tensor:
    """Integers in [-high, high] as float32."""
    return torch.randint(-high, high + 1, shape, generator=generator).float()


@dataclass(frozen=True)
class CascadeCase:
    """A cascade call, made on demand. `prepare` may bend queries and keys into an adversarial shape."""

    name: str
    queries: int
    keys: int
    dims: dict[str, int]
    schedule: Schedule
    dtype: torch.dtype = FLOAT
    high: int = 3
    ids: bool = False
    empty_slots: bool = False
    exclude: float | None = None
    prepare: Callable[[dict[str, Tensor], dict[str, Tensor]], None] | None = None
    strided: bool = False
    bias: Callable[[torch.Generator, int], Tensor] | None = None  # of the keys
    seed: int = 0

    def call(self, device: str = "cpu") -> CascadeCall:
        """The op's arguments on `device`."""
        g = torch.Generator().manual_seed(self.seed + 7919 * self.keys + self.queries)
        queries = {v: integers(g, self.queries, d, high=self.high) for v, d in self.dims.items()}
        keys = {v: integers(g, self.keys, d, high=self.high) for v, d in self.dims.items()}
        if self.prepare:
            self.prepare(queries, keys)
        masks: dict[str, Any] = {}
        if self.ids or self.empty_slots:
            sources = max(1, self.keys // 3)
            masks["key_ids"] = torch.randint(0, sources, (self.keys,), generator=g)
            if self.empty_slots:
                masks["key_ids"][torch.rand(self.keys, generator=g) < 0.4] = -1
            if self.ids:
                masks["query_ids"] = torch.randint(-1, sources, (self.queries,), generator=g)
        if self.exclude is not None:
            masks["exclude"] = torch.rand(self.queries, self.keys, generator=g) < self.exclude
        if self.bias:
            masks["key_bias"] = self.bias(g, self.keys)
        place, space = (strided, spaced) if self.strided else (lambda t: t, lambda t: t)
        queries = {v: place(t.to(device, self.dtype)) for v, t in queries.items()}
        keys = {v: place(t.to(device, self.dtype)) for v, t in keys.items()}
        return as_call(queries, keys, self.schedule, **{n: space(t.to(device)) for n, t in masks.items()})


def strided(t: Tensor) -> Tensor:
    """The same values as every second row of a wider, taller tensor: unit inner stride, gaps elsewhere."""
    wide = torch.full((2 * t.shape[0] + 1, t.shape[1] + 3), float("nan"), dtype=t.dtype, device=t.device)
    view = wide[1 : 2 * t.shape[0] + 1 : 2, 2 : 2 + t.shape[1]]
    view.copy_(t)
    return view


def spaced(t: Tensor) -> Tensor:
    """The same ids, flags or bias as every third of a longer tensor, where the others say the opposite: no unit stride."""
    other = torch.full_like(t, torch.nan) if t.is_floating_point() else ~t
    longer = torch.stack([other, t, other], dim=-1)
    return longer[..., 1]


def whole_bias(g: torch.Generator, keys: int) -> Tensor:
    """Whole numbers of both signs: with whole scores, ties are real."""
    return integers(g, keys, high=6)


def odd_bias(g: torch.Generator, keys: int) -> Tensor:
    """The same with NaN, both infinities, and a penalty beside which scores are nothing."""
    bias = whole_bias(g, keys)
    bias[3::50], bias[5::70], bias[6::30], bias[7::40] = torch.nan, torch.inf, -torch.inf, -1e30
    return bias


def wide_bias(g: torch.Generator, keys: int) -> Tensor:
    """The same, finite, with a few far above and below all scores."""
    bias = whole_bias(g, keys)
    bias[7::90], bias[8::900] = -(2.0**60), 2.0**40
    return bias


def all_equal(queries: dict[str, Tensor], keys: dict[str, Tensor]) -> None:
    """Every score ties: the lowest indices must win at every stage."""
    for t in (*queries.values(), *keys.values()):
        t.fill_(1)


def two_valued(queries: dict[str, Tensor], keys: dict[str, Tensor]) -> None:
    """Two distinct scores, the better half scattered."""
    for t in queries.values():
        t.fill_(1)
    for i, t in enumerate(keys.values()):
        t.zero_()
        t[(torch.arange(t.shape[0]) * 7 + i) % 3 == 0, 0] = 1


def rising(queries: dict[str, Tensor], keys: dict[str, Tensor]) -> None:
    """Scores grow along the queue in one view and fall in the next: a time-ordered queue."""
    for sign, view in zip((1, -1), keys):
        queries[view].zero_()
        queries[view][:, 0] = 1
        keys[view].zero_()
        keys[view][:, 0] = sign * torch.arange(keys[view].shape[0]).float()


def clustered(queries: dict[str, Tensor], keys: dict[str, Tensor]) -> None:
    """Long runs of the same entry."""
    for t in keys.values():
        if t.shape[0]:
            t.copy_(t[torch.arange(t.shape[0]) // 500 * 500])


def with_nan(queries: dict[str, Tensor], keys: dict[str, Tensor]) -> None:
    """NaN entries in each view, and a query that is NaN in one."""
    for i, t in enumerate(keys.values()):
        t[i::7] = float("nan")
    first = next(iter(queries.values()))
    if first.shape[0] > 2:
        first[2] = float("nan")


def with_infinity(queries: dict[str, Tensor], keys: dict[str, Tensor]) -> None:
    """Infinite entries: +inf ranks first, -inf last, inf - inf and inf * 0 are NaN and out."""
    first, *_ = keys.values()
    first[1::5, 0] = float("inf")
    first[2::5, 0] = float("-inf")


def signed_zeros(queries: dict[str, Tensor], keys: dict[str, Tensor]) -> None:
    """-0 and +0 are the same score."""
    for t in (*queries.values(), *keys.values()):
        t.zero_()
    for t in keys.values():
        t[::2] = -0.0


def few(keys: int, *counts: int, views: tuple[str, ...] = VIEWS) -> Schedule:
    """Views alternate over explicit counts."""
    return Schedule((views[i % len(views)], count) for i, count in enumerate(counts))


_TWO = {"flow": 8, "rgb": 8}
_UNEVEN = {"flow": 5, "rgb": 19}
_MIXED = Schedule(
    [({"flow": 1.0, "rgb": 1.0}, 40), ("flow", 20), ({"flow": 0.5, "rgb": -2.0}, 9), ("rgb", 4)]
)

SMALL_CASES = [
    CascadeCase("one of each", 1, 1, {"flow": 1, "rgb": 1}, few(1, 1)),
    CascadeCase("no query", 0, 13, _TWO, few(13, 5, 2)),
    CascadeCase("empty queue", 3, 0, _TWO, few(0, 5, 2)),
    CascadeCase("no query, no key", 0, 0, _TWO, few(0, 1)),
    CascadeCase("k beyond the queue", 4, 5, _TWO, few(5, 50, 20, 9)),
    CascadeCase("keep everything", 4, 37, _TWO, few(37, 37, 37, 37)),
    CascadeCase("primes", 13, 101, _UNEVEN, few(101, 53, 29, 7)),
    CascadeCase("three stages", 7, 128, _TWO, cpr_schedule(num_keys=128, stages=3)),
    CascadeCase("even stages", 7, 127, _TWO, cpr_schedule(num_keys=127, stages=4)),
    CascadeCase("one stage", 9, 120, _TWO, coclr_schedule("flow")),
    CascadeCase("oracle", 9, 120, _UNEVEN, oracle_schedule(("flow", "rgb"))),
    CascadeCase("mixed weights", 9, 120, _TWO, _MIXED),
    CascadeCase("same view twice", 5, 90, _TWO, few(90, 40, 20, 10, views=("flow",))),
    CascadeCase(
        "three views", 5, 90, {"a": 3, "b": 17, "c": 4}, few(90, 40, 20, 10, 3, views=("a", "b", "c"))
    ),
    CascadeCase("bf16", 17, 100, _UNEVEN, few(100, 50, 25, 6), dtype=BF16),
    CascadeCase("fp16", 17, 100, _UNEVEN, few(100, 50, 25, 6), dtype=HALF),
    CascadeCase("strided", 6, 75, _UNEVEN, few(75, 30, 12, 4), strided=True),
    CascadeCase("strided bf16", 6, 75, _UNEVEN, few(75, 30, 12, 4), strided=True, dtype=BF16),
    CascadeCase(
        "strided ids and exclude",
        6,
        75,
        _UNEVEN,
        few(75, 30, 12, 4),
        strided=True,
        ids=True,
        empty_slots=True,
        exclude=0.3,
    ),
    CascadeCase("ids", 33, 64, _TWO, few(64, 32, 16, 5), ids=True),
    CascadeCase("empty slots", 8, 64, _TWO, few(64, 32, 16, 5), empty_slots=True),
    CascadeCase("ids and empty slots", 8, 64, _TWO, few(64, 32, 16, 5), ids=True, empty_slots=True),
    CascadeCase("exclude some", 8, 64, _TWO, few(64, 32, 16, 5), exclude=0.3),
    CascadeCase("exclude nearly all", 8, 64, _TWO, few(64, 32, 16, 5), exclude=0.95),
    CascadeCase("exclude all", 3, 20, _TWO, few(20, 9, 4), exclude=1.1),
    CascadeCase(
        "everything at once", 18, 96, _UNEVEN, _MIXED, ids=True, empty_slots=True, exclude=0.2, dtype=HALF
    ),
    CascadeCase("all equal", 5, 96, _TWO, few(96, 48, 24, 5), prepare=all_equal),
    CascadeCase("two-valued", 5, 96, _TWO, few(96, 48, 24, 5), prepare=two_valued),
    CascadeCase("rising and falling", 5, 96, _TWO, few(96, 48, 24, 5), prepare=rising),
    CascadeCase("NaN", 5, 96, _TWO, few(96, 48, 24, 5), prepare=with_nan),
    CascadeCase("infinities", 5, 96, _TWO, few(96, 48, 24, 5), prepare=with_infinity),
    CascadeCase("signed zeros", 5, 96, _TWO, few(96, 48, 24, 5), prepare=signed_zeros),
    CascadeCase("bias", 18, 96, _UNEVEN, few(96, 48, 24, 5), ids=True, empty_slots=True, bias=whole_bias),
    CascadeCase("bias, one stage", 5, 96, _TWO, coclr_schedule("flow", 9), bias=odd_bias),
    CascadeCase("bias, mixed weights", 9, 96, _TWO, _MIXED, bias=odd_bias, dtype=HALF, exclude=0.3),
    CascadeCase(
        "bias, oracle", 5, 96, _TWO, oracle_schedule(VIEWS), bias=wide_bias, strided=True, dtype=BF16
    ),
    CascadeCase("bias, infinities", 5, 96, _TWO, few(96, 48, 24, 9), bias=odd_bias, prepare=with_infinity),
]

LARGE_CASES = [
    CascadeCase("paper, UCF101", 16, 2048, {"flow": 128, "rgb": 128}, cpr_schedule(num_keys=2048)),
    CascadeCase("paper, Kinetics", 33, 16384, {"flow": 32, "rgb": 32}, cpr_schedule(num_keys=16384)),
    CascadeCase("one off a block", 65, 4097, _UNEVEN, cpr_schedule(num_keys=4097, stages=5), ids=True),
    CascadeCase("long last stage", 3, 9000, _TWO, few(9000, 6000, 5000, 4000), empty_slots=True),
    CascadeCase("top of many", 5, 50_000, _TWO, coclr_schedule("flow", 3), ids=True),
    CascadeCase("all equal, long", 3, 20_000, _TWO, cpr_schedule(num_keys=20_000), prepare=all_equal),
    CascadeCase("two-valued, long", 3, 20_000, _TWO, cpr_schedule(num_keys=20_000), prepare=two_valued),
    CascadeCase("time-ordered, long", 3, 20_000, _TWO, cpr_schedule(num_keys=20_000), prepare=rising),
    CascadeCase("clustered, long", 3, 20_000, _TWO, cpr_schedule(num_keys=20_000), prepare=clustered),
    CascadeCase("NaN, long", 4, 20_000, _TWO, cpr_schedule(num_keys=20_000), prepare=with_nan),
    CascadeCase("infinities, long", 4, 20_000, _TWO, cpr_schedule(num_keys=20_000), prepare=with_infinity),
    CascadeCase("mostly excluded, long", 4, 20_000, _TWO, cpr_schedule(num_keys=20_000), exclude=0.97),
    CascadeCase("mixed weights, long", 40, 12_000, _TWO, _MIXED, ids=True, empty_slots=True, dtype=BF16),
    CascadeCase(
        "nested samples", 19, 150_001, {"flow": 16, "rgb": 4}, cpr_schedule(num_keys=150_001), ids=True
    ),
    CascadeCase(
        "nested samples, empty slots", 2, 140_000, _TWO, _MIXED, empty_slots=True, exclude=0.5, dtype=BF16
    ),
    CascadeCase("queries by turns", 20, 100_000, _TWO, few(100_000, 70_000, 60_000, 30_000), ids=True),
    CascadeCase("all equal, nested", 2, 140_000, _TWO, cpr_schedule(num_keys=140_000), prepare=all_equal),
    CascadeCase("time-ordered, nested", 2, 140_000, _TWO, cpr_schedule(num_keys=140_000), prepare=rising),
    CascadeCase(
        "clustered, nested", 2, 140_000, _TWO, cpr_schedule(num_keys=140_000, stages=9), prepare=clustered
    ),
    CascadeCase("NaN, nested", 4, 140_000, _TWO, few(140_000, 130_000, 90_000, 50), prepare=with_nan),
    CascadeCase("deep features", 5, 5000, {"flow": 700, "rgb": 300}, cpr_schedule(num_keys=5000), high=1),
    CascadeCase("bias, long", 33, 9000, _TWO, cpr_schedule(num_keys=9000), ids=True, bias=whole_bias),
    CascadeCase("bias, wide, long", 3, 9000, _TWO, few(9000, 4000, 2200, 100), bias=wide_bias),
    CascadeCase("bias, odd, long", 3, 9000, _TWO, cpr_schedule(num_keys=9000), bias=odd_bias, dtype=BF16),
    CascadeCase("bias, one stage, long", 3, 9000, _TWO, coclr_schedule("flow", 3), bias=whole_bias),
    CascadeCase(
        "bias, all equal, long", 3, 9000, _TWO, few(9000, 2000, 9), bias=whole_bias, prepare=all_equal
    ),
    CascadeCase("bias, nested", 2, 70_000, _TWO, few(70_000, 9000, 3000, 300), bias=wide_bias),
    CascadeCase("bias, every stage streams", 2, 70_000, _TWO, few(70_000, 40_000, 9000), bias=whole_bias),
]

CASCADE_CASES = SMALL_CASES + LARGE_CASES
# entries that the first stage's view would keep are absent by the other, and nearly all others are in the result
ABSENT_BY_ANOTHER = CascadeCase("NaN by the other view", 5, 96, _TWO, few(96, 48, 47), prepare=with_nan)
ABSENT_IN_RING = replace(ABSENT_BY_ANOTHER, queries=17)  # more than one cluster of CUDA blocks serves


def shortened(case: CascadeCase, queries: int, keys: int) -> CascadeCase:
    """The same kind of case with at most so many queries and keys, its counts in proportion."""
    keys = min(keys, case.keys)
    last = case.schedule[-1].keep
    last = last * keys // case.keys if last > case.keys // 4 else last
    counts = [max(last, stage.keep * keys // case.keys) for stage in case.schedule]
    schedule = Schedule(Stage(stage.view, count) for stage, count in zip(case.schedule, counts))
    return replace(case, queries=min(queries, case.queries), keys=keys, schedule=schedule)


def listed(call: CascadeCall, count: int, seed: int = 0) -> RerankCall:
    """The call over `count` candidates a query in any order, with repeats, and padding in between."""
    num_queries, num_keys = call.queries[0].shape[0], call.keys[0].shape[0]
    g = torch.Generator().manual_seed(seed)
    candidates = torch.randint(-1, max(num_keys, 0), (num_queries, count), generator=g)
    candidates[torch.rand(candidates.shape, generator=g) < 0.1] = -1
    return RerankCall(call.queries, call.keys, candidates.to(call.queries[0].device), *call[2:])


@dataclass(frozen=True)
class LossCase:
    """A loss call on unit vectors."""

    name: str
    queries: int
    keys: int
    dim: int
    positives: int = 3
    temperature: float = 0.07
    dtype: torch.dtype = FLOAT
    ids: int | None = None
    siblings: int = 1
    use_own: bool = False
    scale: float = 1.0
    strided: bool = False
    negatives: int | None = None
    integers: bool = False  # features whose products are exact, so that ties are real
    seed: int = field(default=0)

    def call(self, device: str = "cpu", dtype: torch.dtype | None = None) -> LossCall:
        """The op's arguments on `device`; `dtype` overrides the case's, with the same values."""
        g = torch.Generator().manual_seed(self.seed + 31 * self.keys + self.queries)

        def unit(rows: int) -> Tensor:
            if self.integers:
                return integers(g, rows, self.dim, high=2).to(dtype or self.dtype).to(device)
            raw = torch.randn(rows, self.dim, generator=g)
            made = (self.scale * torch.nn.functional.normalize(raw, dim=1)).to(self.dtype)
            return made.to(dtype or self.dtype).to(device)

        query, positive, keys = unit(self.queries), unit(self.queries), unit(self.keys)
        listed = torch.full((self.queries, self.positives), -1)
        if self.keys and self.positives:
            listed = torch.randint(-1, self.keys, (self.queries, self.positives), generator=g)
            listed[: self.queries // 2, -1] = listed[: self.queries // 2, 0]  # a repeat counts once
        masks: list[Tensor | None] = [None, None, None]
        if self.ids is not None:
            masks[0] = torch.randint(0, self.ids, (self.queries,), generator=g)
            masks[1] = torch.randint(-1, self.ids, (self.keys,), generator=g)
        if self.use_own:
            masks[2] = torch.rand(self.queries, generator=g) < 0.4
        place, space = (strided, spaced) if self.strided else (lambda t: t, lambda t: t)
        moved = [None if m is None else space(m.to(device)) for m in masks]
        drawn = None
        if self.negatives is not None:
            drawn = torch.randint(-1, max(self.keys, 0), (self.queries, self.negatives), generator=g)
            drawn[:, :2] = listed[:, :1]  # a positive among them
            drawn = space(drawn.to(device))
        query, positive, keys = map(place, (query, positive, keys))
        listed = space(listed.to(device))
        return LossCall(query, positive, keys, listed, self.temperature, *moved, self.siblings, drawn)


LOSS_CASES = [
    LossCase("one of each", 1, 1, 1),
    LossCase("no query", 0, 9, 4),
    LossCase("empty queue", 5, 0, 4),
    LossCase("InfoNCE", 7, 50, 16, positives=0),
    LossCase("mined", 17, 101, 33),
    LossCase("siblings are positives", 9, 60, 8, ids=11),
    LossCase("siblings are left out", 9, 60, 8, ids=11, siblings=2),
    LossCase("siblings are negatives", 9, 60, 8, ids=11, siblings=0),
    LossCase("labels as ids", 9, 60, 8, ids=2, positives=0),
    LossCase("own pair dropped", 19, 60, 8, use_own=True),
    LossCase("own pair dropped, no other positive", 5, 20, 8, positives=0, use_own=True),
    LossCase("strided", 9, 60, 8, ids=5, use_own=True, strided=True),
    LossCase("cold", 9, 60, 8, temperature=0.005, ids=7),
    LossCase("hot", 9, 60, 8, temperature=20.0, ids=7),
    LossCase("large scores", 9, 60, 8, scale=30.0),
    LossCase("bf16", 9, 60, 8, dtype=BF16, ids=5),
    LossCase("fp16", 9, 60, 8, dtype=HALF, ids=5),
    LossCase("wide features", 9, 70, 300, ids=9),
    LossCase("wide features, siblings left out", 5, 33, 600, ids=5, siblings=2, use_own=True),
    LossCase("everything", 70, 1500, 40, positives=6, ids=40, use_own=True),
    LossCase("paper, UCF101", 16, 2048, 128, positives=5, ids=500),
]

# negatives of each query's own, on the backends that gather them
DRAWN_CASES = [
    LossCase("drawn", 7, 50, 16, positives=1, negatives=31),
    LossCase("drawn, none", 3, 50, 16, negatives=0),
    LossCase("drawn, siblings are positives", 9, 60, 8, ids=5, negatives=90),
    LossCase("drawn, siblings are left out", 9, 60, 8, ids=5, siblings=2, negatives=90, use_own=True),
    LossCase(
        "drawn, siblings are negatives, strided", 9, 60, 8, ids=5, siblings=0, negatives=90, strided=True
    ),
    LossCase("drawn, bf16", 5, 60, 19, dtype=BF16, ids=5, negatives=70),
    LossCase("drawn, fp16, wide", 5, 60, 300, dtype=HALF, ids=5, negatives=70, use_own=True),
    LossCase("drawn, many", 40, 900, 40, positives=6, ids=40, negatives=300),
]
# logits that tie, for their statistics
TIED_CASES = [
    LossCase("ties", 19, 60, 3, temperature=3.0, integers=True),
    LossCase("ties, few entries", 9, 3, 2, positives=1, integers=True),
    LossCase("ties, positives by id", 19, 400, 2, ids=7, temperature=3.0, integers=True),
    LossCase("ties, siblings left out", 19, 300, 2, ids=7, siblings=2, use_own=True, integers=True),
    LossCase("ties, own pair dropped, bf16", 33, 2100, 4, ids=70, use_own=True, integers=True, dtype=BF16),
]


def name_of(case: CascadeCase | LossCase) -> str:
    """The test's id."""
    return case.name
