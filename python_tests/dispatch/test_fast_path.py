"""The short way to the native core: the same bits as the op, taken only where nothing would notice, and never by
what the op would refuse."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from cases import SMALL_CASES, CascadeCase
from test_torch_ops import anything
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from cpr_kernels import Schedule, cascade_topk, cpr_schedule, mining
from cpr_kernels.dispatch import fast_path as direct
from cpr_kernels.mining import native
from cpr_kernels.mining.arguments import as_call

SCHEDULE = cpr_schedule(num_keys=64, stages=3)
pytestmark = pytest.mark.skipif(
    not direct._CONNECTED, reason="this torch has no DLPack exchange table: there is only the op"
)


def features(rows: int = 4, keys: int = 64, dim: int = 8) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Queries and keys of two views."""
    g = torch.Generator().manual_seed(rows)
    return tuple({view: torch.randn(n, dim, generator=g) for view in ("rgb", "flow")} for n in (rows, keys))  # type: ignore[return-value]


def by_op(queries: Any, keys: Any, schedule: Any = SCHEDULE, **masks: Any) -> tuple[Tensor, Tensor]:
    """The same call through the dispatcher."""
    return torch.ops.cpr.cascade_topk.default(*as_call(queries, keys, schedule, **masks))


def assert_same(mined: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    for ours, theirs in zip(mined, expected):
        assert (ours.dtype, ours.shape, ours.stride()) == (theirs.dtype, theirs.shape, theirs.stride())
        assert torch.equal(ours, theirs)
        assert not ours.requires_grad and ours.is_inference() == theirs.is_inference()


@pytest.fixture
def only_direct(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would go through the op fails."""

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("this call went through the op")

    monkeypatch.setattr(mining, "as_call", fail)


DIRECT = [c for c in SMALL_CASES if c.exclude is None and not (c.strided and c.bias)]  # a bias lies packed


@pytest.mark.parametrize("case", DIRECT, ids=lambda case: case.name)
def test_same_bits_as_the_op(case: CascadeCase) -> None:
    call = case.call()
    views = case.schedule.views
    queries, keys = dict(zip(views, call.queries)), dict(zip(views, call.keys))
    mined = native.run_directly(queries, keys, case.schedule, call.query_ids, call.key_ids, call.key_bias)
    assert mined is not None
    expected = torch.ops.cpr._cascade_topk_on(*call, backend="reference")
    assert torch.equal(mined[0], expected[0]) and torch.equal(mined[1], expected[1])
    assert_same(mined, torch.ops.cpr.cascade_topk.default(*call))


@pytest.mark.usefixtures("only_direct")
def test_plain_calls_go_directly() -> None:
    queries, keys = features()
    ids = {"query_ids": torch.arange(4), "key_ids": torch.arange(64)}
    plain = cascade_topk(queries, keys, SCHEDULE)
    cascade_topk(queries, keys, SCHEDULE, **ids)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert_same(cascade_topk(queries, keys, SCHEDULE), plain)
    wanting = {view: rows.clone().requires_grad_() for view, rows in queries.items()}
    assert_same(cascade_topk(wanting, keys, SCHEDULE), plain)
    with torch.inference_mode():
        assert cascade_topk(queries, keys, SCHEDULE)[0].is_inference()


def test_results_do_not_depend_on_torchs_defaults() -> None:
    queries, keys = features()
    expected = by_op(queries, keys)
    torch.set_default_dtype(torch.float64)
    try:
        assert_same(cascade_topk(queries, keys, SCHEDULE), expected)
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.device("meta"):
        assert_same(cascade_topk(queries, keys, SCHEDULE), expected)


class Keeps:
    """Keeps what a mode of torch is told of, and runs it."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: list[Any] = []

    def keep(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.ops.append(op)
        return op(*args, **(kwargs or {}))


class Heard(Keeps, TorchDispatchMode):
    """Of torch's dispatcher."""

    __torch_dispatch__ = Keeps.keep


class Overridden(Keeps, TorchFunctionMode):
    """Of torch's overrides."""

    __torch_function__ = Keeps.keep


@pytest.mark.parametrize("listener", [Heard, Overridden])
def test_modes_hear_of_the_op(listener: Callable[[], AbstractContextManager[Any]]) -> None:
    with listener() as heard:
        cascade_topk(*features(), SCHEDULE)
    assert torch.ops.cpr.cascade_topk.default in heard.ops


def test_profiler_and_tracers_see_the_op() -> None:
    queries, keys = features()
    with torch.profiler.profile() as profile:
        cascade_topk(queries, keys, SCHEDULE)
    assert "cpr::cascade_topk" in {event.name for event in profile.events()}

    def mine(rgb: Tensor) -> Tensor:
        return cascade_topk({"rgb": rgb, "flow": rgb}, keys, SCHEDULE)[0]

    assert "cpr::cascade_topk" in str(torch.jit.trace(mine, (queries["rgb"],)).graph)
    assert "cpr.cascade_topk" in make_fx(mine)(queries["rgb"]).code
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert type(mine(mode.from_tensor(queries["rgb"]))).__name__ == "FakeTensor"


def test_transforms_reach_the_op() -> None:
    """What vmap wraps goes by the op's rule; what it does not wrap is mined as ever."""
    queries, keys = features()

    def of_wrapped(rgb: Tensor) -> Tensor:
        return cascade_topk({"rgb": rgb, "flow": rgb}, keys, SCHEDULE)[0]

    batch = torch.randn(2, 4, 8)
    each = torch.stack([of_wrapped(rgb) for rgb in batch])
    assert torch.equal(torch.func.vmap(of_wrapped)(batch), each)
    seen = []
    torch.func.vmap(lambda x: (seen.append(cascade_topk(queries, keys, SCHEDULE)), x)[1])(torch.ones(2))
    assert_same(seen[0], by_op(queries, keys))


class Named(Tensor):
    """A subclass of torch's tensor."""


ODD: dict[str, Callable[[Tensor], Tensor]] = {
    "negated lazily": torch._neg_view,
    "a parameter": torch.nn.Parameter,
    "a subclass": lambda rows: rows.as_subclass(Named),
    "transposed": lambda rows: rows.T.contiguous().T,
}


@pytest.mark.parametrize("what", ODD)
def test_what_is_not_plain_goes_through_the_op(what: str) -> None:
    queries, keys = features()
    for place in (queries, keys):
        place["flow"] = ODD[what](place["flow"])
        assert native.run_directly(queries, keys, SCHEDULE, None, None) is None
        mined = cascade_topk(queries, keys, SCHEDULE)
        plain = {view: rows.detach().as_subclass(Tensor).clone() for view, rows in queries.items()}
        others = {view: rows.detach().as_subclass(Tensor).clone() for view, rows in keys.items()}
        assert torch.equal(mined[0], by_op(plain, others)[0])


WITHOUT_MEMORY: dict[str, Callable[[Tensor], Tensor]] = {
    "meta": lambda rows: rows.to("meta"),
    "sparse": Tensor.to_sparse,
    "a functional wrapper": torch._to_functional_tensor,
    "no zeros in memory": lambda rows: torch._efficientzerotensor(rows.shape),
    "float64": Tensor.double,
    "one row": lambda rows: rows[0],
    "of other dtype": Tensor.bfloat16,
    "narrow": lambda rows: rows[:, :5],
    "short": lambda rows: rows[:-1],
}


@pytest.mark.parametrize("what", WITHOUT_MEMORY)
@pytest.mark.parametrize("place", [0, 1])
def test_what_does_not_fit_is_left_to_the_op(what: str, place: int) -> None:
    given = features()
    given[place]["flow"] = WITHOUT_MEMORY[what](given[place]["flow"])
    assert native.run_directly(*given, SCHEDULE, None, None) is None


def test_masks_that_do_not_fit_are_left_to_the_op() -> None:
    queries, keys = features()
    of_queries, of_keys = torch.arange(4), torch.arange(64)
    for ids in (
        (of_queries, None),
        (of_queries[1:], of_keys),
        (of_queries.int(), of_keys),
        (of_queries, of_keys[:, None]),
        (of_queries, torch.arange(128)[::2]),
        (3, of_keys),
    ):
        assert native.run_directly(queries, keys, SCHEDULE, *ids) is None  # type: ignore[arg-type]
    strided = torch.arange(128)[::2]
    mined = cascade_topk(queries, keys, SCHEDULE, query_ids=of_queries, key_ids=strided)
    assert_same(mined, by_op(queries, keys, query_ids=of_queries, key_ids=strided.contiguous()))


def test_more_views_and_stages_than_fit_go_through_the_op() -> None:
    names = [f"view{v}" for v in range(9)]
    queries, keys = ({name: torch.randn(n, 4) for name in names} for n in (3, 40))
    many = Schedule((name, 40 - i) for i, name in enumerate(names))
    long = Schedule((names[0], 40 - s) for s in range(33))
    assert native.run_directly(queries, keys, many, None, None) is None
    assert native.run_directly(queries, keys, long, None, None) is None
    assert_same(cascade_topk(queries, keys, many), by_op(queries, keys, many))
    assert_same(cascade_topk(queries, keys, long), by_op(queries, keys, long))


def test_random_arguments_give_the_ops_answer_or_its_error() -> None:
    pick = random.Random(0)
    ran = refused = 0
    for _ in range(3000):
        (queries, keys), ids = features(3, 40, 3), [torch.arange(3), torch.arange(40)]
        for _ in range(pick.choice([0, 1, 1, 2])):
            place = pick.choice([queries, keys, ids])
            name = pick.choice(["rgb", "flow"]) if isinstance(place, dict) else pick.choice([0, 1])
            place[name] = pick.choice([anything(pick), None])  # type: ignore[index]
        try:
            mined = native.run_directly(queries, keys, SCHEDULE, *ids)
        except RuntimeError as error:  # of torch, for memory that cannot be had
            pytest.fail(str(error))
        if mined is None:
            refused += 1
            continue
        assert_same(mined, by_op(queries, keys, query_ids=ids[0], key_ids=ids[1]))
        ran += 1
    assert ran > 700 and refused > 700


def test_without_the_table_there_is_the_op(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, keys = features()
    expected = cascade_topk(queries, keys, SCHEDULE)
    monkeypatch.setattr(direct, "_CONNECTED", False)
    monkeypatch.setattr(native.core, "cascade_topk_of_tensors", None)
    assert_same(cascade_topk(queries, keys, SCHEDULE), expected)


def test_nothing_is_kept() -> None:
    """Neither arguments nor results gain references over many calls."""
    import sys

    queries, keys = features()
    ids = torch.arange(4), torch.arange(64)
    held = [*queries.values(), *keys.values(), *ids, None, torch.int64, torch.float32, torch.empty, 4]
    before = [sys.getrefcount(one) for one in held]
    for _ in range(1000):
        mined = cascade_topk(queries, keys, SCHEDULE, query_ids=ids[0], key_ids=ids[1])
        assert native.run_directly(queries, keys, SCHEDULE, ids[0], None) is None
    after = [sys.getrefcount(one) for one in held]
    assert all(abs(a - b) < 100 for a, b in zip(after, before)), (before, after)
    assert sys.getrefcount(mined[0]) <= 3
