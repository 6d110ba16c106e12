"""Which backend runs, why the others do not, and the wording of every refusal."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import CascadeCase, LossCase, few

from cpr_kernels import Schedule, Stage, cascade_topk, explain, mil_nce
from cpr_kernels.dispatch.backends import choose
from cpr_kernels.dispatch.triton_support import interpreter_fault

DIMS = {"flow": 4, "rgb": 6}
SCHEDULE = few(20, 10, 5)


def views(rows: int, dims: dict[str, int] = DIMS) -> dict[str, torch.Tensor]:
    return {v: torch.zeros(rows, d) for v, d in dims.items()}


def cascade(**changes: Any) -> Any:
    """A good call with some arguments replaced."""
    arguments = {"queries": views(3), "keys": views(20), "schedule": SCHEDULE} | changes
    return cascade_topk(**arguments)


LONG = torch.zeros(3).long()
CASCADE_REFUSALS = [
    ({"schedule": few(20, 10, 5, views=("flow", "audio"))}, "schedule: stage 2 (audio:5) judges by view 'audio'"),
    ({"keys": views(20, {"flow": 4})}, "queries hold views ['flow', 'rgb'], but keys hold ['flow']"),
    ({"keys": views(20, {"flow": 5, "rgb": 6})}, "queries[0] has D=4, but keys[0] has D=5"),
    ({"keys": {"flow": torch.zeros(20, 4).bfloat16(), "rgb": torch.zeros(20, 6)}}, "queries[0] is torch.float32, but keys[0] is torch.bfloat16"),
    ({"queries": {"flow": torch.zeros(3, 4).double(), "rgb": torch.zeros(3, 6)}}, "use queries[0].to(torch.float32), or store the keys as torch.float64"),
    ({"queries": {"flow": torch.zeros(3, 4).long(), "rgb": torch.zeros(3, 6)}}, "float32, bfloat16, float16, float64, got torch.int64"),
    ({"queries": {"flow": torch.zeros(3, 4, device="meta"), "rgb": torch.zeros(3, 6)}}, "meta"),
    ({"queries": {"flow": torch.zeros(2, 4), "rgb": torch.zeros(3, 6)}}, "queries[1] holds 3 queries, but queries[0] holds 2"),
    ({"keys": {"flow": torch.zeros(20, 4), "rgb": torch.zeros(19, 6)}}, "keys[1] holds 19 entries, but keys[0] holds 20"),
    ({"queries": {"flow": torch.zeros(4), "rgb": torch.zeros(3, 6)}}, "queries[0] must have shape [B, D], got [4]"),
    ({"query_ids": LONG}, "query_ids is given without key_ids"),
    ({"key_ids": LONG}, "key_ids must have shape [20] (one id per entry of keys), got [3]"),
    ({"key_ids": torch.zeros(20)}, "key_ids must be int64, got torch.float32"),
    ({"query_ids": LONG[:2], "key_ids": torch.zeros(20).long()}, "query_ids must have shape [3]"),
    ({"exclude": torch.zeros(3, 20)}, "exclude must be bool of shape [3, 20], got torch.float32 [3, 20]"),
    ({"exclude": torch.zeros(20, 3).bool()}, "exclude must be bool of shape [3, 20], got torch.bool [20, 3]"),
    ({"backend": "cuda"}, "backend must be 'auto' or one of 'native'"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "sentence"), CASCADE_REFUSALS, ids=[s[:40] for _, s in CASCADE_REFUSALS])
def test_cascade_refusals(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises((ValueError, NotImplementedError)) as caught:
        cascade(**changes)
    assert sentence in str(caught.value)


OP_REFUSALS = [
    (([], [], [], []), "queries holds no view"),
    (([torch.zeros(1, 2)], [], [1.0], [1]), "queries holds 1 views but keys holds 0"),
    (([torch.zeros(1, 2)], [torch.zeros(3, 2)], [], []), "stage_keep is empty"),
    (([torch.zeros(1, 2)], [torch.zeros(3, 2)], [1.0, 1.0], [1]), "stage_weights must hold S*V = 1*1 = 1 numbers, got 2"),
    (([torch.zeros(1, 2)], [torch.zeros(3, 2)], [0.0], [1]), "stage_weights of stage 1 are all 0"),
    (([torch.zeros(1, 2)], [torch.zeros(3, 2)], [float("nan")], [1]), "stage_weights of stage 1 must be finite"),
    (([torch.zeros(1, 2)], [torch.zeros(3, 2)], [1.0], [0]), "stage_keep must be >= 1 at every stage, got 0 at stage 1"),
    (([torch.zeros(1, 2)], [torch.zeros(3, 2)], [1.0, 1.0], [1, 2]), "must not grow, got 2 at stage 2 after 1 at stage 1"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "sentence"), OP_REFUSALS, ids=[s[:40] for _, s in OP_REFUSALS])
def test_op_refusals(arguments: tuple[Any, ...], sentence: str) -> None:
    with pytest.raises(ValueError, match="cascade_topk") as caught:
        torch.ops.cpr.cascade_topk(*arguments)
    assert sentence in str(caught.value)


def loss(**changes: Any) -> torch.Tensor:
    call = LossCase("", 3, 20, 4, ids=5).call()
    arguments = call._asdict() | changes
    return mil_nce(**arguments)


LOSS_REFUSALS = [
    ({"temperature": 0.0}, "temperature must be a finite number > 0 in float32, in which the loss is computed (1.18e-38 to 3.4e+38), got 0.0"),
    ({"temperature": -1.0}, "got -1.0"),
    ({"temperature": float("nan")}, "got nan"),
    ({"siblings": 3}, "siblings must be 1 (positives), 2 (left out) or 0 (negatives), got 3"),
    ({"positive": torch.zeros(3, 5)}, "positive must have query's shape [3, 4], got [3, 5]"),
    ({"keys": torch.zeros(20, 5)}, "keys must have shape [N, 4], got [20, 5]"),
    ({"keys": torch.zeros(20, 4).bfloat16()}, "query is torch.float32, but keys is torch.bfloat16, which does not hold its numbers"),
    ({"positives": torch.zeros(3, 2)}, "positives must be int64 of shape [3, P]"),
    ({"positives": torch.zeros(2, 2).long()}, "positives must be int64 of shape [3, P]"),
    ({"positives": torch.tensor([[0], [20], [1]])}, "positives[1, 0] = 20 is out of range"),
    ({"positives": torch.tensor([[0], [5], [-2]])}, "positives[2, 0] = -2 is out of range"),
    ({"key_ids": None}, "query_ids is given without key_ids"),
    ({"use_own": torch.zeros(3)}, "use_own must be bool of shape [3], got torch.float32"),
    ({"query": torch.zeros(3)}, "query must have shape [B, D], got [3]"),
    ({"query": torch.zeros(3, 4).int()}, "query must be one of float32, bfloat16, float16, float64"),
    ({"reduction": "avg"}, "reduction must be one of mean, sum, none, got 'avg'"),
    ({"backend": "gpu"}, "backend must be 'auto' or one of"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "sentence"), LOSS_REFUSALS, ids=[s[:40] for _, s in LOSS_REFUSALS])
def test_loss_refusals(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError) as caught:
        loss(**changes)
    assert sentence in str(caught.value)


def test_auto_takes_native_and_explain_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    choices = explain(cascade_topk, views(3), views(20), SCHEDULE)
    printed = capsys.readouterr().out
    assert choices[0] == ("native", None)
    assert "-> native" in printed and "reference" in printed


def test_explain_names_what_keeps_a_backend_out() -> None:
    call = LossCase("", 3, 20, 4).call(dtype=torch.float64)
    reasons = dict(explain(mil_nce, *call[:5]))
    assert "float64" in reasons["native"] and reasons["reference"] is None


def test_a_named_backend_that_cannot_run_is_an_error_with_the_same_sentence() -> None:
    call = LossCase("", 3, 20, 4).call(dtype=torch.float64)
    sentence = dict(explain(mil_nce, *call[:5]))["native"]
    with pytest.raises(ValueError) as caught:
        mil_nce(*call[:5], backend="native")
    assert sentence in str(caught.value)


def test_explain_refuses_what_the_op_refuses() -> None:
    with pytest.raises(ValueError, match="schedule"):
        explain(cascade_topk, views(3), views(20), Schedule([Stage("audio", 3)]))
    with pytest.raises(ValueError, match="explain"):
        explain(print)


def test_choose_falls_through_in_order() -> None:
    class Unable:
        NAME = "unable"

        @staticmethod
        def why_not(call: Any) -> str:
            return "never"

    class Able(Unable):
        NAME = "able"

        @staticmethod
        def why_not(call: Any) -> None:
            return None

    assert choose([Unable, Able], None) is Able
    with pytest.raises(ValueError, match="never"):
        choose([Unable, Able], None, "unable")


def test_a_case_runs_on_every_backend_by_name() -> None:
    call = CascadeCase("", 3, 20, DIMS, SCHEDULE).call()
    results = [
        torch.ops.cpr._cascade_topk_on(*call, backend=name) for name in ("auto", "native", "reference")
    ]
    assert all(torch.equal(results[0][0], r[0]) for r in results)


def test_versions_that_cannot_interpret_triton_kernels_are_named() -> None:
    reason = interpreter_fault("3.6.0", "2.4.1")
    assert reason is not None and "'triton>=3.7' or 'numpy<2.4'" in reason
    assert [
        interpreter_fault(*pair) for pair in (("3.6.0", "2.3.5"), ("3.7.1", "2.5.0rc1"), ("4.0", "2.4"))
    ] == [None] * 3
