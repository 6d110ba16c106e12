"""How the native core would run a call: the path on a CUDA device that is not here, the threads on this CPU."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from cases import LossCase, few, listed
from torch._subclasses.fake_tensor import FakeTensorMode

from cpr_kernels import (
    Schedule,
    _core,
    cascade_rerank,
    cascade_topk,
    coclr_schedule,
    cpr_schedule,
    explain,
    mil_nce,
)
from cpr_kernels.dispatch.launch_plans import CpuCascadePlan, CpuLossPlan, CudaCascadePlan, CudaLossPlan
from cpr_kernels.mining.arguments import as_call


def views(rows: int, dim: int = 128, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Two views that take no memory."""
    return {view: torch.empty(1, dim, dtype=dtype).expand(rows, dim) for view in ("flow", "rgb")}


def told(queries: int, keys: int, device: Any = None, **changes: Any) -> Any:
    """The plan of the paper's schedule on such a call."""
    schedule = changes.pop("schedule", None) or cpr_schedule(num_keys=keys, stages=3)
    return explain(
        cascade_topk, views(queries, **changes), views(keys, **changes), schedule, device=device
    ).plan


@pytest.mark.parametrize(
    ("device", "queries", "keys", "path", "sweeps", "because"),
    [
        ("H200", 16, 2048, "tiny", 1, "one launch of 16 blocks"),
        ("H200", 17, 2048, "ring", 1, "more than 16 queries"),
        ("H200", 16, 4097, "ring", 1, "more than 4096 entries"),
        ("A100", 16, 2048, "ring", 1, "no clusters of 16 blocks"),
        ("H200", 512, 16384, "ring", 2, "five eighths of the L2 (37.5 MB, and a query's take 128 KB)"),
        ("H100", 512, 16384, "ring", 3, "five eighths of the L2 (31.2 MB"),
        ("RTX 3090", 512, 16384, "huge", 4, "neither 128 queries nor all"),
        ("H200", 4096, 1_000_000, "huge", 32, "through device memory"),
        ((90, 232_448, 2 << 20, False), 512, 16384, "huge", 4, "five eighths of the L2 (1.2 MB"),
    ],
)
def test_a_path_is_told_for_a_device_that_is_not_here(
    device: Any, queries: int, keys: int, path: str, sweeps: int, because: str, capsys: Any
) -> None:
    plan = told(queries, keys, device, dtype=torch.bfloat16)
    assert isinstance(plan, CudaCascadePlan)
    assert (plan.path, plan.sweeps) == (path, sweeps)
    assert because in plan.rule
    said = capsys.readouterr().out.splitlines()[-1]
    name = device if isinstance(device, str) else "such a device"
    assert said == f"native on {name}: {plan}" and plan.rule in said and path in said


def test_what_a_call_costs_in_workspace() -> None:
    ring = 2 * 64 * 16384 * 4  # two views, 64 queries, 16,384 entries, float32 scores
    assert told(64, 16384, "A100", dtype=torch.bfloat16).workspace_bytes == ring
    packed = 2 * 64 * 128 * 2  # queries, for wgmma
    assert told(64, 16384, "H200", dtype=torch.bfloat16).workspace_bytes == ring + packed
    planes = 2 * 64 * (2 * 128 * 2 + 4)  # of queries in two views: two float16 planes and an exponent a row
    assert told(64, 16384, "H200").workspace_bytes == ring + planes  # blocks split keys
    of_keys = 2 * 16384 * (2 * 128 * 2 + 4)
    assert told(64, 16384, "A100").workspace_bytes == ring + planes + of_keys
    odd = told(64, 16384, "H200", dtype=torch.bfloat16, dim=126).workspace_bytes
    assert odd == ring + 2 * (64 + 16384) * 128 * 2  # rows not on 16 bytes are copied to where they are
    assert not told(64, 16384, "RTX 3090").lists_in_shared and told(64, 16384, "H200").lists_in_shared


def test_rows_that_begin_in_between_are_copied() -> None:
    wide = torch.empty(200, 136, dtype=torch.bfloat16)
    schedule = coclr_schedule("rgb")
    sizes = [
        explain(cascade_topk, {"rgb": rows[:20]}, {"rgb": rows}, schedule, device="A100").plan.workspace_bytes
        for rows in (wide[:, :128], wide[:, 1:129])
    ]
    assert sizes[1] - sizes[0] == (20 + 200) * 128 * 2


def test_a_rerank_and_a_loss_are_told_too(capsys: pytest.CaptureFixture[str]) -> None:
    call = listed(as_call(views(70), views(20_000), few(20_000, 900, 9)), 5120)
    plan = explain(
        cascade_rerank,
        dict(zip("ab", call.queries)),
        dict(zip("ab", call.keys)),
        Schedule([("a", 900), ("b", 9)]),
        call.candidates,
        device="H200",
    ).plan
    assert isinstance(plan, CudaCascadePlan) and plan.path == "ring" and "gathered" in plan.rule
    assert plan.workspace_bytes == 2 * 70 * 5120 * 4
    loss = LossCase("", 512, 16384, 128).call()
    plan = explain(mil_nce, *loss[:4], device="H200").plan
    assert isinstance(plan, CudaLossPlan) and plan.parts * plan.keys_per_part == 16384
    assert not plan.streamed_features
    wide = explain(mil_nce, *LossCase("", 5, 60, 300).call()[:4], device="H200").plan
    assert isinstance(wide, CudaLossPlan) and wide.streamed_features
    capsys.readouterr()
    assert explain(mil_nce, *LossCase("", 5, 60, 8).call(dtype=torch.float64)[:4], device="H200").plan is None
    assert "native on H200: the native kernels compute in float32" in capsys.readouterr().out


def test_what_the_kernels_cannot_hold_is_said_of_every_device(capsys: pytest.CaptureFixture[str]) -> None:
    assert told(3, 90, "H200", schedule=few(90, *[50] * 40)) is None
    assert "native on H200: the CUDA kernels run at most 32 stages" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("device", "sentence"),
    [
        ("B300", "device must be one of H200, H100, A100"),
        ((90, 5), "device must be a name or four numbers"),
        ((75, 65_536, 4 << 20, False), "capability 80 (8.0) or newer, got 75"),
    ],
)
def test_a_device_it_cannot_plan_for_is_refused(device: Any, sentence: str) -> None:
    with pytest.raises(ValueError) as caught:
        told(3, 90, device)
    assert sentence in str(caught.value)


def test_tensors_that_lie_nowhere_can_be_planned_for() -> None:
    with FakeTensorMode():
        query = {"rgb": torch.empty(16, 128, device="cuda")}
        keys = {"rgb": torch.empty(2048, 128, device="cuda")}
        plan = explain(cascade_topk, query, keys, coclr_schedule("rgb"), device="H200").plan
    assert isinstance(plan, CudaCascadePlan) and plan.path == "tiny"


@pytest.fixture
def two_threads() -> Any:
    """torch on two threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_on_the_cpu_threads_and_vectors_are_told(
    isa: str, two_threads: None, capsys: pytest.CaptureFixture[str]
) -> None:
    few_queries, many = told(16, 2048), told(512, 16384)
    assert isinstance(few_queries, CpuCascadePlan) and isinstance(many, CpuCascadePlan)
    assert few_queries.isa == many.isa == isa == _core.cpu_isa()
    assert few_queries.lanes == {"avx512vnni": 16, "avx512": 16, "avx2": 8}.get(isa, few_queries.lanes)
    assert (few_queries.threads, few_queries.groups, few_queries.parts) == (2, 1, 2)
    assert few_queries.streamed_stages == 0 and few_queries.passes == 1
    assert many.parts == 1 and many.groups * many.queries_per_group >= 512
    assert many.streamed_stages > 0 and many.passes == 2
    assert not few_queries.int16_scores and many.int16_scores == (isa in ("avx512vnni", "avx2"))
    said = capsys.readouterr().out
    assert ("; 16-bit products first" in said) == many.int16_scores
    assert re.search(rf"native on cpu: {isa}, .* 2 threads over panels of keys in 2 parts", said)
    assert re.search(r"2 threads over queries, .* decided while the keys stream by", said)
    torch.set_num_threads(1)
    assert told(16, 2048).threads == 1 and "one thread, 1 group" in capsys.readouterr().out
    assert str(told(0, 2048)) == "nothing to do"


def test_on_the_cpu_a_rerank_and_a_loss(two_threads: None) -> None:
    call = LossCase("", 70, 9000, 16).call()
    plan = explain(mil_nce, *call[:4]).plan
    assert isinstance(plan, CpuLossPlan)
    assert plan.threads == 2 and plan.groups * plan.queries_per_group >= 70 and plan.parts > 1
    query, keys = {"rgb": torch.zeros(1, 4)}, {"rgb": torch.zeros(9, 4)}
    rerank = explain(cascade_rerank, query, keys, coclr_schedule("rgb"), torch.zeros(1, 3).long()).plan
    assert str(rerank) == f"{_core.cpu_isa()}; 1 thread over queries, candidates gathered in blocks"
