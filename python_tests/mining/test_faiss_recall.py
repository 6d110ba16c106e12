"""What an index says of its own recall, and the effort that it chooses by it."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from oracles import same
from test_faiss import SCHEDULE, Views, clustered

from cpr_kernels import FaissIndex, SearchSettings, cascade_topk, faiss_recall

pytest.importorskip("faiss", reason="FAISS is not installed (extra [faiss])")

APPROXIMATE = ["IVF64,Flat", "IVF64,PQ8", "HNSW8"]


def spread(rows: int, seed: int) -> Views:
    """Random unit vectors: no cell holds a query's neighbours together."""
    g = torch.Generator().manual_seed(seed)
    return {
        view: torch.nn.functional.normalize(torch.randn(rows, 48, generator=g), dim=1)
        for view in ("flow", "rgb")
    }


QUERIES, KEYS = spread(200, seed=1), spread(4000, seed=0)


@pytest.mark.parametrize("factory", APPROXIMATE)
def test_a_low_recall_warns_at_the_call_and_a_recall_sets_the_effort(factory: str) -> None:
    lazy = FaissIndex(KEYS, "flow", factory)
    with pytest.warns(
        UserWarning, match=r"at its default effort finds \d\d% .*SearchSettings\(recall=0.95\)"
    ):
        cascade_topk(QUERIES, KEYS, SCHEDULE, backend=lazy)
    low = faiss_recall(lazy, QUERIES, KEYS, SCHEDULE)
    off = 0.12 if factory == "HNSW8" else 0.04  # a graph finds its own nodes more easily than new queries
    assert low.topk < 0.9 and low.report.recall == pytest.approx(low.topk, abs=off)

    keen = FaissIndex(KEYS, "flow", factory, settings=SearchSettings(recall=0.95))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        high = faiss_recall(keen, QUERIES, KEYS, SCHEDULE)
    assert high.topk > (0.88 if factory == "HNSW8" else 0.93) and high.first_stage > 0.9
    assert high.report.recall is not None and high.report.recall >= 0.95
    assert high.report.effort > low.report.effort


def test_the_effort_is_the_least_that_suffices_and_the_same_each_time() -> None:
    settings = SearchSettings(recall=0.9)  # between 32 and 64 cells, by bisection
    mined, efforts = [], []
    for _ in range(2):
        index = FaissIndex(KEYS, "flow", "IVF64,Flat", settings=settings)
        mined.append(cascade_topk(QUERIES, KEYS, SCHEDULE, backend=index))
        efforts.append(index.report.effort)
    assert efforts[0] == efforts[1]
    same(*mined)
    found = [
        faiss_recall(
            FaissIndex(KEYS, "flow", "IVF64,Flat", settings=SearchSettings(effort=effort)),
            QUERIES, KEYS, SCHEDULE,
        ).topk
        for effort in (efforts[0] * 3 // 4, efforts[0])
    ]  # fmt: skip
    assert found[0] < 0.88 < found[1] < 0.97


def test_where_the_default_suffices_it_stays_and_nothing_is_said() -> None:
    queries, keys = clustered(40, 48, seed=4), clustered(4000, 48)
    plain = FaissIndex(keys, "flow", "IVF64,Flat")
    wanted = FaissIndex(keys, "flow", "IVF64,Flat", settings=SearchSettings(recall=0.9))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same(*(cascade_topk(queries, keys, SCHEDULE, backend=index) for index in (plain, wanted)))
    assert plain.report == wanted.report and plain.report.recall > 0.9  # type: ignore[operator]


def test_what_no_effort_reaches_says_what_does() -> None:
    index = FaissIndex(KEYS, "flow", "IVF64,PQ1", settings=SearchSettings(recall=0.999))
    with pytest.warns(
        UserWarning, match=r"best effort .* at least 100%: no effort reaches it: use a finer factory"
    ):
        cascade_topk(QUERIES, KEYS, SCHEDULE, backend=index)
    assert index.report.effort == 64 and 0.3 < index.report.recall < 0.999  # type: ignore[operator]


def test_it_warns_once_per_build_at_the_users_line() -> None:
    index = FaissIndex(KEYS, "flow", "IVF64,Flat")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            cascade_topk(QUERIES, KEYS, SCHEDULE, backend=index)
        index.rebuild(KEYS)
        for _ in range(2):
            index.cascade_topk(QUERIES, KEYS, SCHEDULE)
    assert [Path(one.filename).name for one in caught] == [Path(__file__).name] * 2


def test_what_is_not_measured(tmp_path: Path) -> None:
    chosen = FaissIndex(KEYS, "flow", "IVF64,Flat", settings=SearchSettings(effort=1))
    default = FaissIndex(KEYS, "flow", "IVF64,Flat")
    default.save(tmp_path)
    on_disk = FaissIndex.load(tmp_path, mmap=True)  # measuring would read the whole bank
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for index in (chosen, on_disk, FaissIndex(KEYS, "flow")):
            cascade_topk(QUERIES, KEYS, SCHEDULE, backend=index)
            assert index.report.recall is None
    default.settings = SearchSettings(recall=0.95)
    default.save(tmp_path)
    on_disk = FaissIndex.load(tmp_path, mmap=True)
    same(*(cascade_topk(QUERIES, KEYS, SCHEDULE, backend=index) for index in (default, on_disk)))
    assert on_disk.report == default.report and on_disk.report.recall >= 0.95  # type: ignore[operator]


def test_entries_of_one_source_do_not_flatter_the_recall() -> None:
    """Ten near copies of each vector are found whatever the effort; with ids they are no positives."""
    keys = {view: rows[:400].repeat(10, 1) + 0.01 * KEYS[view] for view, rows in KEYS.items()}
    ids = torch.arange(4000) % 400
    index = FaissIndex(keys, "flow", "IVF64,Flat", key_ids=ids)
    with pytest.warns(UserWarning, match="default effort"):
        cascade_topk(QUERIES, keys, SCHEDULE, key_ids=ids, backend=index)
    assert index.report.recall < 0.6  # type: ignore[operator]
