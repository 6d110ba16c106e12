"""The FAISS backend: what an index may change (recall of stage 1) and what it may not (everything else)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from cases import CascadeCase, all_equal, few, odd_bias, two_valued, whole_bias, with_infinity, with_nan
from oracles import same
from torch import Tensor

from cpr_kernels import (
    FaissIndex,
    MultiViewQueue,
    RebuildPolicy,
    SearchSettings,
    cascade_topk,
    explain,
    faiss_recall,
    parse_schedule,
    plan_faiss,
)
from cpr_kernels.mining.faiss.plan import CROSSOVER, crossover

faiss = pytest.importorskip("faiss", reason="FAISS is not installed (extra [faiss])")

FACTORIES = ["Flat", "IVF16,Flat", "IVF8,PQ4", "HNSW8"]
SCHEDULE = parse_schedule("flow:40,rgb:12,flow:5")
Views = dict[str, Tensor]


def clustered(rows: int, dim: int = 16, seed: int = 0, shift: float = 0.0) -> Views:
    """Unit vectors around 40 centres, alike in both views."""
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(40, dim, generator=torch.Generator().manual_seed(99)) + shift
    label = torch.arange(rows) % 40
    return {
        v: torch.nn.functional.normalize(
            centres.roll(i, 0)[label] + 0.7 * torch.randn(rows, dim, generator=g), dim=1
        )
        for i, v in enumerate(("flow", "rgb"))
    }


def some_ids(queries: int, keys: int, seed: int = 0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {
        "query_ids": torch.randint(0, 200, (queries,), generator=g),
        "key_ids": torch.randint(-1, 200, (keys,), generator=g),
    }


_DIMS = {"flow": 6, "rgb": 5}
_MIXED = parse_schedule("flow+0.5*rgb:30,rgb:11,2*flow+rgb:4")
EXACT_CASES = [
    CascadeCase("plain", 9, 900, _DIMS, SCHEDULE),
    CascadeCase("ids and empty slots", 9, 900, _DIMS, SCHEDULE, ids=True, empty_slots=True),
    CascadeCase("exclude most", 9, 900, _DIMS, SCHEDULE, exclude=0.9),
    CascadeCase("exclude all", 3, 600, _DIMS, SCHEDULE, exclude=1.1),
    CascadeCase("mixed weights", 9, 900, _DIMS, _MIXED, ids=True, exclude=0.3),
    CascadeCase("bf16", 9, 900, _DIMS, SCHEDULE, dtype=torch.bfloat16, ids=True),
    CascadeCase("all equal", 5, 900, _DIMS, SCHEDULE, prepare=all_equal),
    CascadeCase("two-valued", 5, 900, _DIMS, SCHEDULE, prepare=two_valued),
    CascadeCase("NaN", 5, 900, _DIMS, SCHEDULE, prepare=with_nan),
    CascadeCase("infinities", 5, 900, _DIMS, SCHEDULE, prepare=with_infinity),
    CascadeCase("bias", 9, 900, _DIMS, SCHEDULE, ids=True, bias=odd_bias),
    CascadeCase("bias, one stage", 9, 900, _DIMS, few(900, 5), ids=True, empty_slots=True, bias=whole_bias),
    CascadeCase("bias, infinite", 9, 900, _DIMS, few(900, 5), bias=odd_bias, prepare=with_nan),
    CascadeCase("no query", 0, 900, _DIMS, SCHEDULE),
    CascadeCase("empty queue", 3, 0, _DIMS, SCHEDULE),
    CascadeCase("short queue", 3, 7, _DIMS, few(7, 5, 4, 2), ids=True),
]


@pytest.mark.parametrize("case", EXACT_CASES, ids=lambda case: case.name)
def test_a_flat_index_is_the_exact_cascade(case: CascadeCase) -> None:
    call = case.call()
    same(
        torch.ops.cpr._cascade_topk_on(*call, backend="faiss"),
        torch.ops.cpr._cascade_topk_on(*call, backend="reference"),
    )


def test_a_flat_index_is_the_exact_cascade_on_real_features() -> None:
    queries, keys, ids = clustered(50, 48, seed=1), clustered(6000, 48), some_ids(50, 6000)
    for views in ("flow", ("flow", "rgb"), ("rgb", "flow")):
        index = FaissIndex(keys, views, key_ids=ids["key_ids"])
        found = cascade_topk(queries, keys, SCHEDULE, backend=index, **ids)
        exact = cascade_topk(queries, keys, SCHEDULE, **ids)
        assert torch.equal(found[0], exact[0]) and torch.equal(found[1], exact[1])
        assert faiss_recall(index, queries, keys, SCHEDULE, **ids)[:3] == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("factory", FACTORIES)
def test_nothing_forbidden_comes_back_and_every_query_is_filled(factory: str) -> None:
    queries, keys, ids = clustered(12, seed=2), clustered(3000), some_ids(12, 3000)
    exclude = torch.rand(12, 3000, generator=torch.Generator().manual_seed(3)) < 0.9
    exclude[0] = True
    exclude[1, 50:] = True
    masks = {**ids, "exclude": exclude}
    index = FaissIndex(keys, "flow", factory, key_ids=ids["key_ids"], settings=SearchSettings(effort=1))
    found, scores = cascade_topk(queries, keys, SCHEDULE, backend=index, **masks)
    exact, _ = cascade_topk(queries, keys, SCHEDULE, **masks)
    assert torch.equal((found >= 0).sum(1), (exact >= 0).sum(1))
    assert index.report.widened >= 10 and index.report.searches > 1
    assert index.report.exact >= 2  # those with almost everything excluded
    for b, j in (found >= 0).nonzero().tolist():
        entry = int(found[b, j])
        assert ids["key_ids"][entry] >= 0 and ids["key_ids"][entry] != ids["query_ids"][b]
        assert not exclude[b, entry]
        honest = queries["flow"][b].double() @ keys["flow"][entry].double()
        assert abs(float(scores[b, j]) - float(honest)) < 1e-6


@pytest.mark.parametrize("factory", FACTORIES)
def test_recall_grows_with_effort_and_is_reported(factory: str) -> None:
    queries, keys = clustered(40, seed=4), clustered(4000)
    lazy = FaissIndex(keys, "flow", factory, settings=SearchSettings(effort=1))
    keen = FaissIndex(keys, "flow", factory, settings=SearchSettings(effort=4000, overfetch=8))
    low, high = (faiss_recall(index, queries, keys, SCHEDULE) for index in (lazy, keen))
    assert 0.3 < low.first_stage <= high.first_stage
    assert high.first_stage > 0.97 and high.topk > 0.97
    assert high.report.queries == 40


@pytest.mark.parametrize("factory", FACTORIES)
def test_a_ring_queue_is_followed(factory: str) -> None:
    queue = MultiViewQueue({"flow": 16, "rgb": 16}, size=1500)
    fresh = clustered(2600, seed=5)
    settings = SearchSettings(effort=1500, overfetch=10)

    def fill(first: int, last: int) -> None:
        queue.enqueue({v: t[first:last] for v, t in fresh.items()}, torch.arange(first, last))

    fill(0, 1400)
    index = FaissIndex(queue.views, "flow", factory, key_ids=queue.ids, settings=settings)
    index.sync(queue)
    assert len(index) == 1400
    for first in range(1400, 2600, 200):  # fills, wraps
        fill(first, first + 200)
        index.sync(queue)
        assert len(index) == int(queue.count)
    queries = {v: t[::97] for v, t in fresh.items()}
    found, scores = cascade_topk(queries, queue.views, SCHEDULE, key_ids=queue.ids, backend=index)
    exact, exact_scores = cascade_topk(queries, queue.views, SCHEDULE, key_ids=queue.ids)
    agree = float((found == exact).float().mean())
    assert agree == 1.0 if factory == "Flat" else agree > 0.95
    torch.testing.assert_close(scores[found == exact], exact_scores[found == exact], rtol=0, atol=0)
    slots, _, _ = index.store.search(index.rows(queue.views, np.arange(1500)), 3, 1, 1500)
    own = float((slots[:, 0] == np.arange(1500)).mean())  # every entry finds itself as it is now
    assert own > (0.5 if "PQ" in factory else 0.99)


def test_compiled_code_calls_it_as_it_is() -> None:
    queries, keys = clustered(4), clustered(900)
    index = FaissIndex(keys, "flow")
    torch.compiler.reset()
    compiled = torch.compile(lambda q: cascade_topk(q, keys, SCHEDULE, backend=index), backend="eager")
    same(compiled(queries), cascade_topk(queries, keys, SCHEDULE))


def test_features_that_want_gradients_and_half_precision() -> None:
    queries, keys = clustered(4, seed=9), clustered(900)
    expected = cascade_topk(queries, keys, SCHEDULE)
    for side in (queries, keys):
        for t in side.values():
            t.requires_grad_()
    found = cascade_topk(queries, keys, SCHEDULE, backend=FaissIndex(keys, "flow"))
    same(found, expected)
    assert not found[1].requires_grad
    halves = [{v: t.detach().half() for v, t in side.items()} for side in (queries, keys)]
    same(
        cascade_topk(*halves, SCHEDULE, backend=FaissIndex(halves[1], ("flow", "rgb"))),
        cascade_topk(*halves, SCHEDULE),
    )


def test_emptied_slots_leave() -> None:
    keys, ids = clustered(500), torch.arange(500)
    index = FaissIndex(keys, "flow", "IVF4,Flat", key_ids=ids)
    ids[100:300] = -1
    index.update(keys, torch.arange(100, 300), ids)
    assert len(index) == 300
    slots, _, whole = index.store.search(keys["flow"].numpy()[:5], 500, 1, 4)
    assert whole and not ((slots >= 100) & (slots < 300)).any()


def test_rebuilds_when_the_policy_says_so() -> None:
    keys = clustered(600)
    every = FaissIndex(keys, "flow", "IVF4,Flat", policy=RebuildPolicy(every=3, drift=None))
    seen = [every.update(keys, torch.arange(10)) for _ in range(4)]
    assert [s.updates for s in seen] == [1, 2, 0, 1] and [s.rebuilds for s in seen] == [0, 0, 1, 1]
    assert seen[0].added == pytest.approx(10 / 600)

    drifting = FaissIndex(keys, "flow", "IVF16,Flat", policy=RebuildPolicy(drift=0.3))
    assert drifting.update(keys, torch.arange(200)).drift < 0.1
    moved = {v: t.clone() for v, t in keys.items()}
    moved["flow"][:300] = torch.nn.functional.normalize(torch.randn(300, 16), dim=1)
    assert drifting.staleness.rebuilds == 0
    assert drifting.update(moved, torch.arange(300)).rebuilds == 1
    assert drifting.staleness.drift == 0.0

    graph = FaissIndex(keys, "flow", "HNSW8", policy=RebuildPolicy(dead=0.25))
    assert graph.update(keys, torch.arange(150)).dead == pytest.approx(0.2)
    assert graph.update(keys, torch.arange(150)).rebuilds == 1
    assert graph.staleness.dead == 0.0 and len(graph) == 600


@pytest.mark.parametrize("factory", FACTORIES)
def test_save_load_and_map(factory: str, tmp_path: Path) -> None:
    queries, keys, ids = clustered(9, seed=6), clustered(1200), some_ids(9, 1200)
    index = FaissIndex(keys, ("flow", "rgb"), factory, key_ids=ids["key_ids"])
    index.update(keys, torch.arange(30), ids["key_ids"])
    index.save(tmp_path)
    expected = cascade_topk(queries, keys, SCHEDULE, backend=index, **ids)
    stored = {}
    for view, table in keys.items():  # a bank on disk, read where a search points
        np.save(tmp_path / f"{view}.npy", table.numpy())
        stored[view] = torch.from_numpy(np.load(tmp_path / f"{view}.npy", mmap_mode="c"))
    for mmap in (False, True):
        again = FaissIndex.load(tmp_path, mmap=mmap)
        assert len(again) == len(index) and again.staleness == index.staleness
        same(cascade_topk(queries, stored, SCHEDULE, backend=again, **ids), expected)
        if mmap:
            with pytest.raises(ValueError, match="read-only"):
                again.update(keys, torch.arange(3))
        else:
            again.update(keys, torch.arange(3), ids["key_ids"])
            assert len(again) == len(index)


def test_a_folder_of_format_1_is_read(tmp_path: Path) -> None:
    """Written here file by file: what is on users' disks keeps its names, whatever the code calls them."""
    queries, keys = clustered(9, seed=7), clustered(800)
    keys["flow"][5, 0] = torch.nan
    held = np.array([j for j in range(800) if j not in (5, 9)])
    flat = faiss.IndexFlatIP(16)
    flat.add(keys["flow"].numpy()[held])
    faiss.write_index(flat, str(tmp_path / "index.faiss"))
    ids = np.arange(800)
    ids[9] = -1
    np.savez(tmp_path / "entries.npz", ids=ids, odd=np.array([5]), slot_of=held)
    (tmp_path / "about.json").write_text(
        '{"format": 1, "views": ["flow"], "dims": [16], "size": 800, "factory": "Flat", "policy": {"every": 7, '
        '"drift": 0.25, "dead": null}, "settings": {"effort": null, "overfetch": 3.0, "spare": 20}, "held": 798, '
        '"longest": 1.0000001, "has_ids": true, "moved": {"updates": 4, "added": 40, "fit": 0.5, "misfit": 0.75, '
        '"rebuilds": 2, "pointer": 11}}'
    )
    index = FaissIndex.load(tmp_path)
    assert index.policy == RebuildPolicy(every=7, dead=None)
    assert index.settings == SearchSettings(overfetch=3.0, spare=20)
    assert index.staleness == (4, 40 / 800, 0.5, 0.0, 2) and len(index) == 798
    mined = cascade_topk(queries, keys, SCHEDULE, key_ids=torch.from_numpy(ids), backend=index)
    same(mined, cascade_topk(queries, keys, SCHEDULE, key_ids=torch.from_numpy(ids)))
    index.update(keys, torch.tensor([5, 9]), torch.from_numpy(ids))  # 5 is carried along, not held
    assert len(index) == 798 and index.non_finite.tolist() == [5]


def test_an_index_of_faiss_itself_is_adopted() -> None:
    queries, keys = clustered(9, seed=7), clustered(800)
    expected = cascade_topk(queries, keys, SCHEDULE)
    rows = keys["flow"].numpy()
    plain = faiss.IndexFlatIP(16)
    plain.add(rows)
    mapped = faiss.IndexIDMap2(faiss.IndexFlatIP(16))
    order = np.random.default_rng(0).permutation(800)
    mapped.add_with_ids(rows[order], order)
    cells = faiss.index_factory(16, "IVF4,Flat", faiss.METRIC_INNER_PRODUCT)
    cells.train(rows)
    cells.add_with_ids(rows[order], order)
    for made in (plain, mapped, cells):
        index = FaissIndex.from_faiss(made, keys, "flow")
        index.settings = SearchSettings(effort=4)
        same(cascade_topk(queries, keys, SCHEDULE, backend=index), expected)
        with pytest.raises(ValueError, match="read-only"):
            index.rebuild(keys)


def test_explain_names_faiss_last_and_why_not(capsys: pytest.CaptureFixture[str]) -> None:
    keys = clustered(900)
    assert explain(cascade_topk, clustered(2), keys, SCHEDULE)[-1] == ("faiss", None)
    refused = explain(cascade_topk, clustered(2), keys, parse_schedule("flow:450,rgb:5"))[-1]
    assert "stage 1 keeps 450 of 900 entries (50%)" in str(refused.reason)
    assert capsys.readouterr().out.count("-> native") == 2  # never taken unasked


def test_the_planner_says_which_queue_and_schedule_pay() -> None:
    few_kept, many_kept = parse_schedule("flow:100,rgb:5"), parse_schedule("flow:3000,rgb:5")
    yes = plan_faiss(1_000_000, few_kept)
    assert yes.use and yes.factory == "IVF2048,Flat" and "recall" in yes.reason
    small = plan_faiss(2000, few_kept)
    assert not small.use and "2,000: the exact cascade is faster" in small.reason
    half = plan_faiss(1_000_000, parse_schedule("flow:500000,rgb:5"))
    assert not half.use and "500,000 of 1,000,000 entries (50%)" in half.reason
    on_gpu = plan_faiss(1_000_000, many_kept, device="cuda")
    assert not on_gpu.use and "on a GPU returns at most 2,048" in on_gpu.reason
    assert "nothing has been measured" in plan_faiss(1_000_000, few_kept, device="cuda").reason
    for keep, least in CROSSOVER:
        assert crossover(keep) == least
    found = [crossover(keep) for keep in (1, 5, 30, 100, 400, 1000, 5000)]
    assert found == sorted(found) and found[-1] == 5 * found[-2]
    with pytest.raises(ValueError, match="num_keys must be >= 1"):
        plan_faiss(0, few_kept)
    with pytest.raises(ValueError, match="device must be"):
        plan_faiss(9, few_kept, device="tpu")


def test_a_queue_that_fills_up() -> None:
    """Built over an empty queue; learns at the first update that brings enough."""
    queue = MultiViewQueue({"flow": 16, "rgb": 16}, size=1000)
    index = FaissIndex(queue.views, "flow", "IVF4,Flat", key_ids=queue.ids)
    queries, fresh = clustered(3, seed=8), clustered(700)
    nothing = cascade_topk(queries, queue.views, SCHEDULE, key_ids=queue.ids, backend=index)
    assert (nothing[0] == -1).all()
    queue.enqueue(fresh, torch.arange(700))
    index.sync(queue)
    found = cascade_topk(queries, queue.views, SCHEDULE, key_ids=queue.ids, backend=index)
    assert len(index) == 700 and (found[0] >= 0).all()


def test_importing_the_index_sets_no_threads_and_stays_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    before = faiss.omp_get_max_threads()
    FaissIndex(clustered(700), "flow", "IVF16,PQ4")
    assert faiss.omp_get_max_threads() == before
    assert capfd.readouterr() == ("", "")


def test_real_two_stream_features(shared_data: Path) -> None:
    """UCF101 test videos: an IVF index finds nearly the exact cascade's positives."""
    table = np.load(shared_data / "features" / "ucf101_test_twostream.npz", allow_pickle=True)
    named = {
        "flow": next(n for n in table.files if "flow" in n),
        "rgb": next(n for n in table.files if "rgb" in n),
    }
    keys = {v: torch.from_numpy(table[n]).float() for v, n in named.items()}
    keys = {v: torch.nn.functional.normalize(t - t.mean(0), dim=1) for v, t in keys.items()}
    index = FaissIndex(keys, "flow", "IVF64,Flat")
    queries = {v: t[::40] for v, t in keys.items()}
    schedule = parse_schedule("flow:300,rgb:50,flow:5")
    recall = faiss_recall(index, queries, keys, schedule)
    assert recall.first_stage > 0.75 and recall.topk > 0.95
