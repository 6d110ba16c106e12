"""Negatives drawn for each query, against plain torch that gathers them: values, gradients, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import DRAWN_CASES, LossCase
from torch import Tensor

from cpr_kernels import explain, mil_nce
from cpr_kernels.dispatch.sharded_keys import Shard, ShardedKeys
from cpr_kernels.losses import native, reference, sharded, triton_backend

CASE = next(case for case in DRAWN_CASES if case.name == "drawn, siblings are positives")


def gathered(query: Tensor, positive: Tensor, keys: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """NCE over drawn entries as IIC and CMC have it: a table [B, M, D] of keys, and cross entropy with label 0."""
    drawn = torch.einsum("bd,bmd->bm", query, keys[negatives])
    logits = torch.cat([(query * positive).sum(dim=1, keepdim=True), drawn], dim=1) / temperature
    return torch.nn.functional.cross_entropy(
        logits, torch.zeros(len(query), dtype=torch.int64), reduction="none"
    )


@pytest.fixture
def drawn() -> dict[str, Tensor]:
    """Unit vectors, and draws with repeats."""
    call = LossCase("", 12, 40, 24).call()
    g = torch.Generator().manual_seed(3)
    names = ("query", "positive", "keys")
    leaves = {name: getattr(call, name).requires_grad_() for name in names}
    return {**leaves, "negatives": torch.randint(0, 40, (12, 130), generator=g)}


@pytest.mark.parametrize("backend", ["auto", "native", "reference"])
def test_as_gathered(drawn: dict[str, Tensor], backend: str, isa: str) -> None:
    negatives = drawn["negatives"]
    leaves = [drawn[name] for name in ("query", "positive", "keys")]
    loss = mil_nce(*leaves, negatives=negatives, temperature=0.2, reduction="none", backend=backend)
    expected = gathered(*leaves, negatives, 0.2)
    torch.testing.assert_close(loss, expected, atol=2e-6, rtol=2e-6)
    weight = torch.linspace(-1, 2, 12)
    ours, theirs = (torch.autograd.grad((x * weight).sum(), leaves) for x in (loss, expected))
    for one, other in zip(ours, theirs):
        torch.testing.assert_close(one, other, atol=3e-6, rtol=1e-5)


def test_threads_do_not_change_a_bit(drawn: dict[str, Tensor]) -> None:
    leaves = [drawn[name] for name in ("query", "positive", "keys")]
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            loss = mil_nce(*leaves, negatives=drawn["negatives"])
            found.append([loss, *torch.autograd.grad(loss, leaves)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found))


def test_ops_derivatives_and_transforms() -> None:
    call = LossCase("", 3, 7, 2, ids=4, temperature=0.5, negatives=14, use_own=True).call(dtype=torch.float64)
    leaves = [getattr(call, name).clone().requires_grad_() for name in ("query", "positive", "keys")]

    def loss(*features: Tensor) -> Tensor:
        return torch.ops.cpr.mil_nce(*features, *call[3:])

    assert torch.autograd.gradcheck(loss, leaves, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(loss, leaves, fast_mode=True)
    query = torch.stack([call.query, call.query.flip(0)])
    lists = torch.stack([call.negatives, call.negatives.flip(0)])
    rest = call[1:9]
    batched = torch.func.vmap(lambda q, m: torch.ops.cpr.mil_nce(q, *rest, m))(query, lists)
    each = [torch.ops.cpr.mil_nce(q, *rest, m) for q, m in zip(query, lists)]
    torch.testing.assert_close(batched, torch.stack(each))
    single = CASE.call()
    wants = single._replace(query=single.query.requires_grad_(), keys=single.keys.requires_grad_())
    torch.library.opcheck(torch.ops.cpr.mil_nce.default, tuple(wants))
    compiled = torch.compile(torch.ops.cpr.mil_nce.default, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(*wants), torch.ops.cpr.mil_nce(*wants))


def test_only_the_query_keeps_no_keys() -> None:
    call, saved = CASE.call(), []
    query = call.query.requires_grad_()
    masks = {"query_ids": call.query_ids, "key_ids": call.key_ids, "negatives": call.negatives}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(tuple(t.shape)) or t, lambda t: t):
        loss = mil_nce(query, *call[1:5], **masks)
    assert saved == [tuple(query.shape)]
    call.keys.zero_()
    loss.backward()
    assert query.grad is not None


@pytest.mark.parametrize(
    ("negatives", "said"),
    [
        (torch.zeros(3, 2, dtype=torch.int64), r"negatives must be int64 of shape \[9, M\]"),
        (torch.zeros(9, 2), "negatives must be int64"),
        (torch.full((9, 2), 60), r"negatives\[0, 0\] = 60 is out of range; expected -1"),
        (torch.full((9, 2), -2), r"negatives\[0, 0\] = -2"),
    ],
)
def test_refusals(negatives: Tensor, said: str) -> None:
    call = CASE.call()._replace(negatives=negatives)
    with pytest.raises(ValueError, match=said):
        mil_nce(*call[:4], negatives=negatives)
    with pytest.raises(ValueError, match=said):
        torch.ops.cpr.mil_nce(*call)


def test_of_a_sharded_queue_none_are_drawn() -> None:
    call = CASE.call()
    shard = Shard((60,), 0)
    with pytest.raises(ValueError, match="negatives list entries of keys that one process holds"):
        sharded.check(call._replace(keys=ShardedKeys(call.keys, shard)))


def test_a_wrong_keyword_is_named() -> None:
    call = CASE.call()
    masks: dict[str, Any] = {"negative": call.negatives}
    with pytest.raises(TypeError, match="'negative'"):
        mil_nce(*call[:4], **masks)


def test_who_gathers() -> None:
    call = CASE.call()
    assert native.why_not(call) is None and reference.why_not(call) is None
    assert "negatives list some" in str(triton_backend.why_not(call))
    explained = explain(mil_nce, *call[:4], negatives=call.negatives, device="H200")
    assert explained.plan is None
