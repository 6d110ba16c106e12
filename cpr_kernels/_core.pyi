"""The compiled core (csrc/bindings/module.cpp): raw addresses in, results in place. Use cpr_kernels, not this.

Everything is positional. Only functions `..._of_tensors`, `enqueue_tensors` and `are_plain` take tensors. `Address` is
a tensor's `data_ptr()`, 0 for none; strides count elements, of `enqueue` bytes. Functions named `cuda_...` are there
only in builds with CUDA kernels; they queue work on a stream.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

Address: TypeAlias = int
# queries, stride, keys, stride, D
Views: TypeAlias = Sequence[tuple[Address, int, Address, int, int]]
# buffer, stride, rows, stride, bytes a row
Columns: TypeAlias = Sequence[tuple[Address, int, Address, int, int]]
# query, its stride, positive, its stride, keys, their stride
Features: TypeAlias = tuple[Address, ...]
# B, N, D, P, M
Sizes: TypeAlias = tuple[int, int, int, int, int]
# positives, negatives
Listed: TypeAlias = tuple[Address, ...]
# query ids, key ids, use own
Masks: TypeAlias = tuple[Address, ...]
# loss, both lses, own weight, query gradient, statistics
Swept: TypeAlias = tuple[Address, ...]
# sums, attended, own scores, ranks, best
Shared: TypeAlias = tuple[Address, ...]
# query ids, key ids, exclude, its stride, key bias
CascadeMasks: TypeAlias = tuple[Address, Address, Address, int, Address]
# scores, index, length, queries, rows, pitch
Lists: TypeAlias = tuple[Address, Address, Address, int, int, int]
# compute capability (90 for 9.0), shared memory a block may have, L2 bytes, has it clusters of 16 blocks
Limits: TypeAlias = tuple[int, int, int, bool]
# indices, scores
Mined: TypeAlias = tuple[Address, Address]

def cascade_topk(
    views: Views, dtype: int, num_queries: int, num_keys: int, weights: Sequence[float], keep: Sequence[int],
    masks: CascadeMasks, out: Mined, threads: int, /,
) -> int: ...  # fmt: skip
def connect_torch(
    tensor: type[Tensor], empty: Callable[..., Tensor], int64: torch.dtype, float32: torch.dtype, cpu: torch.device, /
) -> bool: ...  # fmt: skip
def cascade_topk_of_tensors(
    queries: list[Any], keys: list[Any], stage_weights: tuple[float, ...], stage_keep: tuple[int, ...],
    query_ids: Any, key_ids: Any, key_bias: Any, threads: int, /,
) -> tuple[Tensor, Tensor] | None: ...  # fmt: skip
def unit_rows_of_tensors(moved: Any, given: Any, missing: Any, /) -> bool: ...
def expand_rows_of_tensors(
    rows: list[Any], keys: list[Any], indices: Any, weights: Any, threads: int, /
) -> list[Tensor] | None: ...
def hub_terms_of_tensors(scores: Any, count: int, /) -> Tensor | None: ...
def less_hubs_of_tensors(
    indices: Any, scores: Any, terms: Any, topk: int, /
) -> tuple[Tensor, Tensor] | None: ...
def enqueue_tensors(buffers: list[Any], rows: list[Any], pointer: Any, count: Any, /) -> bool: ...
def are_plain(*tensors: Any) -> bool: ...
def cascade_rerank(
    views: Views, dtype: int, num_queries: int, num_keys: int, weights: Sequence[float], keep: Sequence[int],
    candidates: tuple[Address, int, int], masks: CascadeMasks, out: Mined, threads: int, /,
) -> None: ...  # fmt: skip
def mil_nce_sweep(
    features: Features, dtype: int, sizes: Sizes, listed: Listed, temperature: float, masks: Masks,
    siblings: int, threads: int, out: Swept, /,
) -> None: ...  # fmt: skip
def mil_nce_share(
    features: Features, dtype: int, sizes: Sizes, listed: Listed, temperature: float, masks: Masks,
    siblings: int, threads: int, out: Shared, /,
) -> None: ...  # fmt: skip
def mil_nce_keys_gradient(
    features: Features, dtype: int, sizes: Sizes, listed: Listed, temperature: float, masks: Masks,
    siblings: int, threads: int, grad_loss: Address, lse_all: Address, lse_positive: Address,
    grad_keys: Address, /,
) -> None: ...  # fmt: skip
def enqueue(columns: Columns, size: int, batch: int, pointer: Address, count: Address, /) -> None: ...
def collect_entries(
    views: Views, dtype: int, num_keys: int, weights: Sequence[float], masks: CascadeMasks, lists: Lists,
    threads: int, /,
) -> None: ...  # fmt: skip
def count_digits(
    lists: Lists, row: int, prefix: Address, digit: tuple[int, int, int], matching: tuple[Address, Address],
    counts: Address, threads: int, /,
) -> None: ...  # fmt: skip
def keep_above(lists: Lists, row: int, cut: Address, ties: Address, threads: int, /) -> None: ...
def plan_cuda_cascade(
    views: Views, dtype: int, num_queries: int, num_keys: int, weights: Sequence[float], keep: Sequence[int],
    key_bias: Address, limits: Limits, gathered: bool, /,
) -> tuple[str, int, int, int, int, bool, str]: ...  # fmt: skip
def plan_cuda_mil_nce(
    dtype: int, sizes: tuple[int, int, int], limits: Limits, gradient: bool, /
) -> tuple[int, int, bool, int, str]: ...
def plan_cpu_cascade(
    views: Views, dtype: int, num_queries: int, num_keys: int, weights: Sequence[float], keep: Sequence[int],
    key_bias: Address, threads: int, /,
) -> tuple[int, int, int, int, int, int, int, bool, str]: ...  # fmt: skip
def plan_cpu_mil_nce(
    dtype: int, sizes: tuple[int, int, int], threads: int, /
) -> tuple[int, int, int, int]: ...
def sampled_keys(num_keys: int, /) -> list[int]: ...
def limits() -> dict[str, int]: ...
def dtype_codes() -> dict[str, int]: ...
def cpu_isas() -> list[str]: ...
def cpu_isa() -> str: ...
def cpu_flops_per_second(threads: int, /) -> float: ...
def release_workspace() -> None: ...
def use_cpu_isa(name: str, /) -> bool: ...
def cuda_unavailable() -> str: ...
def cuda_use_device(index: int, /) -> None: ...
def cuda_limits() -> tuple[int, int, int, bool]: ...
def cuda_tune(
    *, sweep: int = 0, score_queries: int = 0, select_threads: int = 0, early_start: bool = False,
    wgmma_parts: int = -1,
) -> None: ...  # fmt: skip
def cuda_cascade_topk_workspace(
    views: Views, dtype: int, num_queries: int, num_keys: int, weights: Sequence[float], keep: Sequence[int],
    masks: CascadeMasks, out: Mined, /,
) -> int: ...  # fmt: skip
def cuda_cascade_topk(
    views: Views, dtype: int, num_queries: int, num_keys: int, weights: Sequence[float], keep: Sequence[int],
    masks: CascadeMasks, out: Mined, workspace: Address, bytes: int, stream: int, /,
) -> None: ...  # fmt: skip
def cuda_cascade_rerank_workspace(
    views: Views, dtype: int, num_queries: int, num_keys: int, weights: Sequence[float], keep: Sequence[int],
    candidates: tuple[Address, int, int], masks: CascadeMasks, out: Mined, /,
) -> int: ...  # fmt: skip
def cuda_cascade_rerank(
    views: Views, dtype: int, num_queries: int, num_keys: int, weights: Sequence[float], keep: Sequence[int],
    candidates: tuple[Address, int, int], masks: CascadeMasks, out: Mined, workspace: Address, bytes: int,
    stream: int, /,
) -> None: ...  # fmt: skip
def cuda_enqueue(
    columns: Columns, size: int, batch: int, pointer: Address, count: Address, stream: int, /
) -> None: ...
def cuda_mil_nce_workspace(
    features: Features, dtype: int, sizes: Sizes, listed: Listed, temperature: float, masks: Masks,
    siblings: int, sweep: bool, gradient: bool, stats: bool, /,
) -> int: ...  # fmt: skip
def cuda_mil_nce_sweep(
    features: Features, dtype: int, sizes: Sizes, listed: Listed, temperature: float, masks: Masks,
    siblings: int, out: Swept, workspace: Address, bytes: int, stream: int, /,
) -> None: ...  # fmt: skip
def cuda_mil_nce_keys_gradient(
    features: Features, dtype: int, sizes: Sizes, listed: Listed, temperature: float, masks: Masks,
    siblings: int, given: tuple[Address, Address, Address, Address], workspace: Address, bytes: int,
    stream: int, /,
) -> None: ...  # fmt: skip
