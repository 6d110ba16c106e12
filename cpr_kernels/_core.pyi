"""Types of the native core (csrc/bindings.cpp). Addresses are `data_ptr()`; 0 stands for a missing tensor."""

Features = tuple[int, int, int, int, int, int]

def cascade_topk(
    views: list[tuple[int, int, int, int, int]],
    dtype: int,
    num_queries: int,
    num_keys: int,
    weights: list[float],
    keep: list[int],
    query_ids: int,
    key_ids: int,
    exclude: int,
    exclude_stride: int,
    indices: int,
    scores: int,
    threads: int,
) -> int: ...
def mil_nce_sweep(*args: object) -> None: ...
def mil_nce_keys_gradient(*args: object) -> None: ...
def enqueue(
    columns: list[tuple[int, int, int, int, int]], size: int, batch: int, pointer: int, count: int
) -> None: ...
def sampled_keys(num_keys: int) -> list[int]: ...
def cpu_isas() -> list[str]: ...
def cpu_isa() -> str: ...
def use_cpu_isa(name: str) -> bool: ...
