"""The Triton kernels compiled for GPUs that are not here: they compile, do not spill, and fit every device from 8.0."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("triton") is None,
        reason="triton is not installed (pip install cpr_kernels[triton])",
    ),
    pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET") == "1", reason="TRITON_INTERPRET=1: nothing is compiled"
    ),
]
ARCHES = (80, 90)
SHARED_LIMIT = 99 * 1024  # bytes a block on 8.6 and 8.9, the least of all from 8.0 on
OLD_STATS = 88  # bytes that Triton 3.6 keeps in local memory for the loss with statistics on 8.0
SCALARS = 16  # bytes of loop-carried scalars that a row kernel may keep in local memory; tiles keep none
MASKS = {"query_ids": "*i64", "key_ids": "*i64"}
FLAGS = {"HAS_QUERY_IDS": True, "HAS_KEY_IDS": True}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile afresh, in the test's own folder."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))


def integers(*names: str) -> dict[str, str]:
    """Argument types of sizes and strides."""
    return dict.fromkeys(names, "i32")


def check(
    kernel: Any,
    arch: int,
    types: dict[str, str],
    constants: dict[str, Any],
    config: Any,
    tmp: Path,
    spilled: int = 0,
) -> Any:
    """Compile one configuration and hold it to the budget: spills, shared memory of the smallest device."""
    from triton_aot import compile_for

    needs = compile_for(
        kernel, arch, types, {**constants, **config.kwargs}, config.num_warps, config.num_stages, tmp
    )
    where = f"{kernel.__name__} sm_{arch} {config}"
    assert needs.local_bytes <= spilled, f"{where}: {needs.local_bytes} bytes of local memory a thread"
    assert needs.shared_bytes <= SHARED_LIMIT, f"{where}: {needs.shared_bytes} bytes of shared memory"
    assert needs.registers * 32 * config.num_warps <= 65536, where
    return needs


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("dtype", ["*fp32", "*bf16"])
def test_score_tiles(arch: int, dtype: str, tmp_path: Path) -> None:
    from cpr_kernels.mining import triton_kernels as kernels

    types = {"query": dtype, "key": dtype, "out": "*fp32", **MASKS} | integers(
        "num_queries", "num_keys", "dim", "query_stride", "key_stride", "out_stride", "exclude_stride"
    )
    constants = {
        "exclude": None, "HAS_EXCLUDE": False, "UPCAST": False, "BLOCK_B": kernels.BLOCK_B,
        "PRECISION": "tf32x3" if dtype == "*fp32" else "ieee", "BLOCK_D": kernels.BLOCK_D, **FLAGS,
    }  # fmt: skip
    import triton

    for num_keys in (2048, 16384):
        chosen = kernels.score_config(num_keys)
        config = triton.Config({"BLOCK_N": chosen.pop("BLOCK_N")}, **chosen)
        needs = check(kernels.score_tile, arch, types, constants, config, tmp_path)
        assert ("HGMMA" if arch == 90 else "HMMA") in needs.sass(), "the products are not on the tensor cores"


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("dtype", ["*fp32", "*bf16"])
def test_candidate_scores(arch: int, dtype: str, tmp_path: Path) -> None:
    import triton

    from cpr_kernels.mining import triton_rerank as kernels

    types = {"query": dtype, "key": dtype, "listed": "*i64", "out": "*fp32", **MASKS} | integers(
        "num_listed",
        "blocks",
        "dim",
        "query_stride",
        "key_stride",
        "listed_stride",
        "out_stride",
        "exclude_stride",
    )
    constants = {"exclude": None, "HAS_EXCLUDE": False, **FLAGS}
    blocks = {"BLOCK_C": kernels.BLOCK_C, "BLOCK_D": kernels.BLOCK_D}
    needs = check(
        kernels.score_candidates, arch, types, constants, triton.Config(blocks, num_warps=4), tmp_path
    )
    assert needs.registers <= 96  # five blocks of 128 threads a multiprocessor hide the gathers


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize(("k", "ranked"), [(5, True), (4096, False)])
def test_select(arch: int, k: int, ranked: bool, tmp_path: Path) -> None:
    from cpr_kernels.mining import triton_kernels as kernels

    types = {
        "ring": "*fp32",
        "lists": "*i32",
        "bias": "*fp32",
        "indices": "*i64",
        "scores": "*fp32",
    } | integers("num_keys", "slot_stride", "ring_stride", "list_stride", "bias_stride")
    constants = {
        "KEEP": (8192, 6144, 5120, k), "JUDGE": (0, 1, 0, 2), "WEIGHTS": (1.0, 0.0, 0.0, 1.0, 0.5, -2.0), "STAGES": 4,
        "ROWS": 3, "VIEWS": 2, "K": k, "RANKED": ranked, "BLOCK_K": 16,
    }  # fmt: skip
    import triton

    for num_keys, biased in ((2048, 2), (16384, -1)):  # the score row that takes a bias, or none
        chosen = kernels.select_config(num_keys)
        config = triton.Config({"BLOCK": chosen["BLOCK"]}, num_warps=chosen["num_warps"], num_stages=1)
        known = {**constants, "BIASED": biased}
        check(kernels.select_query, arch, types, known, config, tmp_path, spilled=SCALARS)


LOSS_SIZES = integers(
    "num_queries", "num_keys", "dim", "query_stride", "key_stride", "part_keys", "num_positives"
)


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize(
    ("dtype", "wide", "stats"),
    [("*fp32", False, False), ("*bf16", False, False), ("*fp32", True, False), ("*fp32", False, True)],
)
def test_loss_sweep_and_keys_gradient(arch: int, dtype: str, wide: bool, stats: bool, tmp_path: Path) -> None:
    import triton

    from cpr_kernels.losses import triton_kernels as kernels

    floats = dict.fromkeys(
        (
            "top_out",
            "mass_out",
            "attended_out",
            "grad_loss",
            "lse_all",
            "lse_positive",
            "grad_out",
            "own_scores",
        ),
        "*fp32",
    )
    types = {
        "query": dtype,
        "keys": dtype,
        "positives": "*i64",
        "above_out": "*i32",
        "best_out": "*i64",
        "scale": "fp32",
        **MASKS,
        **floats,
        **LOSS_SIZES,
    }
    constants = {
        "LEAVE_OUT": False, "GRADIENT": True, "STATS": stats, "SIBLINGS": 1, "EXACT": "tf32x3", "WIDE": wide,
        "BLOCK_D": kernels.CHUNK_DIM if wide else 128,
        "PRECISION": "tf32x3" if dtype == "*fp32" else "tf32", **FLAGS,
    }  # fmt: skip
    for kernel, launch, queries in (
        (kernels.sweep_part, kernels.SWEEP_LAUNCH, kernels.SWEEP_QUERIES),
        (kernels.keys_gradient_block, kernels.GRADIENT_LAUNCH, kernels.GRADIENT_QUERIES),
    ):
        mine = {n: t for n, t in types.items() if n in kernel.arg_names}
        fixed = {n: c for n, c in constants.items() if n in kernel.arg_names} | {"BLOCK_B": queries}
        sizes = {name: value for name, value in launch.items() if name.startswith("BLOCK_")}
        counts = {name: value for name, value in launch.items() if name.startswith("num_")}
        old = stats and arch == 80 and triton.__version__.startswith("3.6.")
        spilled = OLD_STATS if old and kernel is kernels.sweep_part else 0
        check(kernel, arch, mine, fixed, triton.Config(sizes, **counts), tmp_path, spilled)


def kernel_modules() -> list[Any]:
    """The modules that hold Triton kernels."""
    from cpr_kernels.losses import triton_kernels as loss_kernels
    from cpr_kernels.losses import triton_stats
    from cpr_kernels.mining import triton_kernels, triton_rerank

    return [triton_kernels, triton_rerank, loss_kernels, triton_stats]


def test_nothing_is_chosen_by_a_race_of_timings() -> None:
    """Sums of the loss would be grouped by it, and it cannot run while a CUDA graph is captured."""
    from triton.runtime.autotuner import Autotuner

    for module in kernel_modules():
        assert not [name for name, value in vars(module).items() if isinstance(value, Autotuner)], module


def test_a_short_last_batch_compiles_nothing_anew() -> None:
    """Sizes that change from batch to batch are no part of a compiled kernel; nor are strides of workspaces."""
    from triton.runtime.jit import JITFunction

    from cpr_kernels.mining.triton_kernels import ROW_UNIT

    varying = {"num_queries", "num_keys", "num_listed", "blocks", "parts"}
    seen = set()
    for module in kernel_modules():
        for kernel in vars(module).values():
            for param in kernel.params if isinstance(kernel, JITFunction) else ():
                if param.name in varying and "program_id" in kernel.src:
                    assert param.do_not_specialize, f"{kernel.__name__}: {param.name}"
                    seen.add(param.name)
    assert seen == varying
    assert ROW_UNIT % 16 == 0  # a multiple of 16 is what Triton specialises on


def test_a_launch_has_no_more_blocks_than_a_grid_may_have() -> None:
    from cpr_kernels.mining.triton_kernels import BLOCK_B, chunk_of

    assert -(-chunk_of(2**23, 1, 1) // BLOCK_B) == 65_535
    assert chunk_of(2**23, 64, 2) == 2**16 and chunk_of(5, 64, 2) == 5


@pytest.mark.parametrize("arch", ARCHES)
def test_loss_finish(arch: int, tmp_path: Path) -> None:
    import triton

    from cpr_kernels.losses import triton_kernels as kernels

    outs = ("tops", "masses", "attended", "loss_out", "all_out", "positive_out", "weight_out", "grad_out")
    types = {
        "query": "*fp32", "positive": "*fp32", "keys": "*fp32", "positives": "*i64", "use_own": "*u8", "own_counts_out": "*i8", "scale": "fp32",
        "positive_stride": "i32", "parts": "i32", **MASKS, **dict.fromkeys(outs, "*fp32"), **LOSS_SIZES,
    }  # fmt: skip
    del types["part_keys"]
    constants = {
        "HAS_USE_OWN": True, "SIBLINGS": 1, "GRADIENT": True, "STATS": True, "BLOCK_P": 8, "BLOCK_D": 128, "SCAN": kernels.SCANNED, "TAKEN": 16,
        **FLAGS,
    }  # fmt: skip
    check(
        kernels.finish_query,
        arch,
        types,
        constants,
        triton.Config({}, num_warps=4, num_stages=1),
        tmp_path,
        SCALARS,
    )


@pytest.mark.parametrize("arch", ARCHES)
def test_loss_statistics(arch: int, tmp_path: Path) -> None:
    import triton

    from cpr_kernels.losses import triton_stats as kernels

    types = {
        "own_scores": "*fp32", "own_counts": "*i8", "positives": "*i64", "above": "*i32", "best": "*i64",
        "stats_out": "*i64", **MASKS, **integers("num_queries", "num_positives", "parts"),
    }  # fmt: skip
    constants = {"HAS_QUERY_IDS": True, "SIBLINGS": 1, "BLOCK_P": 8}
    check(kernels.finish_stats, arch, types, constants, triton.Config({}, num_warps=1), tmp_path, SCALARS)
