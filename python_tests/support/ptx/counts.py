"""Counts what the compiled kernels execute per unit of work, on the shapes that the goals name or on parts of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from cpr_kernels import cpr_schedule
from cpr_kernels.dispatch.calls import LossCall
from cpr_kernels.losses import native as losses
from cpr_kernels.mining import native
from cpr_kernels.mining.arguments import as_call

from .build import Compiled

H200 = (90, 232_448, 60 << 20)
FIELDS = (
    "instructions", "products", "matrices", "barriers", "shared_bytes", "global_bytes", "wavefronts", "least_wavefronts",
    "sectors", "warps",
)  # fmt: skip


class Count(NamedTuple):
    """What a kernel executes for one unit of its work."""

    kernel: str
    unit: str
    of: dict[str, float]  # by machine.h's names, a unit


class Work(NamedTuple):
    """A call, and the kernels whose units it holds."""

    kernel: str
    unit: str
    units: float
    run: Callable[[Any], object]
    tuned: tuple[tuple[str, int], ...] = ()
    less: Callable[[Any], object] | None = None  # what is taken off: the same without the units


def unit_rows(count: int, dim: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(count, dim, generator=g), dim=1).to(dtype)


def cascade(
    queries: int, keys: int, dim: int, dtype: torch.dtype = torch.float32, ids: bool = False, stages: int = 7
) -> Callable[[Any], object]:
    """A cascade of two views."""
    query = {v: unit_rows(queries, dim, dtype, i) for i, v in enumerate(("flow", "rgb"))}
    key = {v: unit_rows(keys, dim, dtype, i + 2) for i, v in enumerate(("flow", "rgb"))}
    masks = {"query_ids": torch.arange(queries), "key_ids": torch.arange(keys) + queries} if ids else {}
    call = as_call(query, key, cpr_schedule(num_keys=keys, stages=stages), **masks)
    return lambda core: native.run_on_stream(call, core, 0)


def loss(
    queries: int, keys: int, ids: bool = False, dtype: torch.dtype = torch.float32, stats: bool = False
) -> Callable[[Any], object]:
    """A loss with the queries' gradient."""
    rows = [unit_rows(n, 128, dtype, n) for n in (queries, queries + 1, keys)]
    positives = torch.arange(queries * 5).reshape(queries, 5) % keys
    query_ids, key_ids = (torch.arange(queries), torch.arange(keys) + queries) if ids else (None, None)
    call = LossCall(rows[0], rows[1][:queries], rows[2], positives, 0.07, query_ids, key_ids, None, 1)
    return lambda core: losses.sweep_on_stream(call, True, core, 0, stats)


def works() -> Iterator[Work]:
    """What is counted. Score kernels: two views of one or two tiles; select: features are short, scores are not."""
    bf16 = torch.bfloat16
    for planes, tile, dtype in (("false, 2", 64, torch.float32), ("false, 2", 128, torch.float32), ("true, 1", 64, bf16),
                                ("true, 1", 128, bf16)):  # fmt: skip
        for ids in (False, True):
            yield Work(
                f"score_kernel<{planes}, {tile}>", f"tile{' with ids' if ids else ''}", 2,
                cascade(tile, 128, 128, dtype, ids, stages=2), (("score_queries", tile),),
            )  # fmt: skip
    wgmma = (("wgmma_parts", 1),)
    for planes, dtype in (("false, 2", torch.float32), ("true, 1", bf16)):
        for ids in (False, True):
            unit, two = (
                f"tile of 64 x 256{' with ids' if ids else ''}",
                cascade(128, 256, 128, dtype, ids, stages=2),
            )
            one = cascade(64, 256, 128, dtype, ids, stages=2)
            yield Work(f"score_wgmma_kernel<{planes}>", unit, 2, two, wgmma, less=one)
        yield Work(
            f"score_wgmma_kernel<{planes}>",
            "256 keys and a first tile",
            2,
            cascade(64, 256, 128, dtype, stages=2),
            wgmma,
        )
    yield Work("prepare_kernel", "row of 128 numbers", 2 * (64 + 512), cascade(64, 512, 128, stages=2))
    for name, dtype in (("numbers", torch.float32), ("16-bit numbers", bf16)):
        yield Work(
            "prepare_kernel", f"packed row of 128 {name}", 128 + 512, loss(128, 512, dtype=dtype), wgmma
        )
    for keys in (2048, 4096, 16384):
        pairs = 8 if keys <= 4096 else 16
        yield Work(f"select_kernel<{pairs}>", f"query, N = {keys:,}", 2, cascade(2, keys, 8))
    yield Work("select_kernel<0>", "query, N = 16,384", 2, cascade(2, 16384, 8), (("select_threads", 1024),))
    yield Work("tiny_kernel<false, 2>", "block of 16, 16 x 2,048", 16, cascade(16, 2048, 128))
    yield Work("tiny_kernel<true, 1>", "block of 16, 16 x 2,048", 16, cascade(16, 2048, 128, bf16))
    for mode, stats in ((0, False), (2, True)):
        two, one = loss(64, 64, stats=stats), loss(64, 32, stats=stats)
        yield Work(f"attend_kernel<128, {mode}>", "warp and step of 32 keys", 4, two, less=one)
        yield Work(f"attend_kernel<128, {mode}>", "warp beside its steps", 4, one)
        for planes, dtype in ((2, torch.float32), (1, bf16)):
            kernel = f"attend_wgmma_kernel<{planes}, {mode}>"
            two, one = (loss(128, keys, dtype=dtype, stats=stats) for keys in (256, 128))
            yield Work(kernel, "step of 64 x 128", 2, two, wgmma, less=one)
            yield Work(kernel, "64 queries and a first step", 2, one, wgmma)
    yield Work("finish_kernel", "query, 1,024 keys with ids", 64, loss(64, 1024, ids=True))
    many = loss(2, 32 * 128, stats=True)
    yield Work("finish_kernel", "query, 32 parts, statistics", 2, many, (("wgmma_parts", 32),))
    yield Work("own_kernel", "query", 64, loss(64, 32, stats=True))


def counts(core: Any, kernels: dict[str, Compiled]) -> Iterator[Count]:
    """Runs all works, in the order of threads, on a pretended H200."""
    core.set_seed(0)
    for work in works():
        core.set_limits(
            *H200, work.kernel.startswith("tiny")
        )  # clusters of 16 blocks, which the tiny path needs
        core.cuda_tune(**dict(work.tuned))
        try:
            taken = _tally(core, kernels[work.kernel], work.run)
            less = _tally(core, kernels[work.kernel], work.less) if work.less else dict.fromkeys(FIELDS, 0)
        finally:
            core.cuda_tune()
        yield Count(
            work.kernel, work.unit, {name: (taken[name] - less[name]) / work.units for name in FIELDS}
        )


def _tally(core: Any, kernel: Compiled, run: Callable[[Any], object]) -> dict[str, int]:
    kernel.take_tally()
    kernel.watch(True)
    try:
        run(core)
    finally:
        kernel.watch(False)
    tally = kernel.take_tally()
    return {name: getattr(tally, name) for name in FIELDS}
