"""PMR, CMR and R@k against counting by hand, and the streaming versions against the functions."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from two_ranks import on_two_ranks

from cpr_kernels import class_mining_recall, positive_mining_recall, retrieval_recall_at_k
from cpr_kernels.metrics import median_recall, true_positives


def oracle_pmr(indices, query_labels, key_labels):
    """Eq. 3 by counting: of all mined positives, how many have their query's label."""
    right = mined = 0
    for row, own in zip(indices, query_labels):
        for entry in row:
            if entry >= 0:
                mined += 1
                right += own >= 0 and key_labels[entry] == own
    return right / mined if mined else math.nan


def oracle_cmr(indices, query_labels, key_labels, key_samples):
    """Eq. 4 by counting: of each class's distinct samples, how many were mined as true positives."""
    members, found = {}, set()
    for label, sample in zip(key_labels, key_samples):
        if label >= 0:
            members.setdefault(label, set()).add(sample)
    for row, own in zip(indices, query_labels):
        found |= {key_samples[e] for e in row if e >= 0 and own >= 0 and key_labels[e] == own}
    return {label: len(samples & found) / len(samples) for label, samples in members.items()}


@st.composite
def tables(draw):
    """Mined entries of some queries, labels with unknowns; an entry's label is its sample's."""
    num_samples, num_queries, k = draw(st.integers(1, 6)), draw(st.integers(0, 6)), draw(st.integers(1, 4))
    sample_labels = draw(st.lists(st.integers(-1, 3), min_size=num_samples, max_size=num_samples))
    key_samples = draw(st.lists(st.integers(0, num_samples - 1), min_size=1, max_size=9))
    key_labels = [sample_labels[s] for s in key_samples]
    entry = st.integers(-1, len(key_samples) - 1)
    indices = draw(
        st.lists(st.lists(entry, min_size=k, max_size=k), min_size=num_queries, max_size=num_queries)
    )
    query_labels = draw(st.lists(st.integers(-1, 3), min_size=num_queries, max_size=num_queries))
    return indices, query_labels, key_labels, key_samples, sample_labels


def tensors(indices, *columns):
    shape = (len(indices), len(indices[0]) if indices else 1)
    return torch.tensor(indices).reshape(shape).long(), *(torch.tensor(c).long() for c in columns)


def assert_same(got, expected):
    assert got == pytest.approx(expected, nan_ok=True)


@settings(deadline=None)
@given(tables())
def test_pmr_and_cmr_equal_counting(table):
    indices, query_labels, key_labels, key_samples, _ = table
    t_indices, t_query, t_key, t_samples = tensors(indices, query_labels, key_labels, key_samples)
    assert_same(positive_mining_recall(t_indices, t_query, t_key).item(), oracle_pmr(*table[:3]))
    recall = class_mining_recall(t_indices, t_query, t_key, t_samples)
    assert_same(recall, oracle_cmr(indices, query_labels, key_labels, key_samples))
    alone = class_mining_recall(t_indices, t_query, t_key)
    assert_same(alone, oracle_cmr(indices, query_labels, key_labels, range(len(key_labels))))


@given(st.lists(st.floats(0, 1), max_size=9))
def test_median(values):
    got = median_recall(dict(enumerate(values)))
    assert got == statistics.median(values) if values else math.isnan(got)


def test_a_worked_example():
    indices = torch.tensor([[0, 1, -1], [2, 3, 0]])
    query_labels, key_labels = torch.tensor([7, 8]), torch.tensor([7, 8, 8, -1])
    assert true_positives(indices, query_labels, key_labels).tolist() == [
        [True, False, False],
        [True, False, False],
    ]
    assert positive_mining_recall(indices, query_labels, key_labels).item() == pytest.approx(2 / 5)
    assert class_mining_recall(indices, query_labels, key_labels) == {7: 1.0, 8: 0.5}


def test_an_unknown_query_never_matches_an_unknown_entry():
    unknown = torch.tensor([-1])
    assert not true_positives(torch.tensor([[0]]), unknown, unknown).any()


def test_an_empty_queue_has_no_positives():
    none = torch.empty(0, dtype=torch.int64)
    assert torch.isnan(positive_mining_recall(torch.full((2, 3), -1), torch.tensor([1, 2]), none))
    assert class_mining_recall(torch.full((2, 3), -1), torch.tensor([1, 2]), none) == {}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (([0, 1], [1, 1], [1, 1]), "indices must be [B, k] and query_labels [B], got [2] and [2]"),
        (([[0], [1]], [1], [1, 1]), "got [2, 1] and [1]"),
        (([[0]], [1], [[1, 1]]), "key_labels must be [N], got [1, 2]"),
        (([[0.0]], [1], [1]), "indices must hold integers, got torch.float32"),
        (([[2]], [1], [1, 1]), "indices holds 2, but key_labels has 2 entries"),
    ],
)
def test_bad_shapes_are_named(arguments, says):
    for metric in (positive_mining_recall, class_mining_recall):
        with pytest.raises(ValueError) as error:
            metric(*map(torch.tensor, arguments))
        assert says in str(error.value)


def test_bad_devices_and_samples_are_named():
    indices, labels = torch.zeros(1, 1).long(), torch.zeros(1).long()
    with pytest.raises(ValueError, match="key_labels is on meta, but indices is on cpu"):
        positive_mining_recall(indices, labels, labels.to("meta"))
    with pytest.raises(ValueError, match=r"key_samples must be \[1\], got \[2\]"):
        class_mining_recall(indices, labels, labels, torch.zeros(2).long())


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 5), st.integers(1, 8), st.data())
def test_retrieval_equals_sorting(num_queries, num_gallery, data):
    small = st.integers(-3, 3)
    vectors = st.lists(st.lists(small, min_size=2, max_size=2), min_size=0, max_size=8)
    query = data.draw(vectors.map(lambda v: (v + [[0, 0]] * 8)[:num_queries]))
    gallery = data.draw(vectors.map(lambda v: (v + [[1, 0]] * 8)[:num_gallery]))
    query_labels = data.draw(st.lists(small, min_size=num_queries, max_size=num_queries))
    gallery_labels = data.draw(st.lists(small, min_size=num_gallery, max_size=num_gallery))
    got = retrieval_recall_at_k(
        torch.tensor(query).reshape(-1, 2).float(),
        torch.tensor(gallery).float(),
        torch.tensor(query_labels).long(),
        torch.tensor(gallery_labels).long(),
        ks=(1, 3, 20),
    )
    for k in (1, 3, 20):
        hits = []
        for q, own in zip(query, query_labels):
            ranked = sorted(
                range(num_gallery), key=lambda j: (-(q[0] * gallery[j][0] + q[1] * gallery[j][1]), j)
            )
            hits.append(own >= 0 and any(gallery_labels[j] == own for j in ranked[:k]))
        assert_same(got[k], sum(hits) / len(hits) if hits else math.nan)


def test_retrieval_refuses_bad_cut_offs():
    for ks in ((), (0, 1)):
        with pytest.raises(ValueError, match="ks must be counts >= 1"):
            retrieval_recall_at_k(torch.ones(1, 2), torch.ones(1, 2), torch.ones(1), torch.ones(1), ks=ks)


# The streaming versions


@pytest.fixture
def streaming():
    pytest.importorskip("torchmetrics", reason="torchmetrics is not installed (extra [metrics])")
    from cpr_kernels import metrics

    return metrics


@settings(max_examples=40, deadline=None)
@given(table=tables(), cut=st.integers(0, 6))
def test_streaming_over_two_steps_equals_the_function_over_all(table, cut):
    metrics = pytest.importorskip("cpr_kernels.metrics.streaming", exc_type=ImportError)
    indices, query_labels, key_labels, key_samples, sample_labels = tensors(*table)
    pmr, cmr = metrics.PositiveMiningRecall(), metrics.ClassMiningRecall(sample_labels)
    for part in (slice(None, cut), slice(cut, None)):
        pmr.update(indices[part], query_labels[part], key_labels)
        cmr.update(indices[part], query_labels[part], key_labels, key_samples)
    assert_same(pmr.compute().item(), positive_mining_recall(indices, query_labels, key_labels).item())
    held = class_mining_recall(indices, query_labels, key_labels, key_samples)
    expected = {int(label): 0.0 for label in sample_labels.unique() if label >= 0}
    seen = {label: set(key_samples[key_labels == label].tolist()) for label in held}
    for label, recall in held.items():  # a class is as large as the training set says, not as the queue does
        expected[label] = recall * len(seen[label]) / int((sample_labels == label).sum())
    assert_same(cmr.per_class(), expected)
    assert_same(cmr.compute().item(), median_recall(expected))


def test_streaming_forward_reset_and_state(streaming):
    pmr = streaming.PositiveMiningRecall()
    pmr.persistent(True)
    labels = torch.tensor([0, 1])
    assert pmr(torch.tensor([[0], [0]]), labels, labels) == 0.5  # this step
    assert pmr(torch.tensor([[0], [1]]), labels, labels) == 1.0
    assert pmr.compute() == 0.75
    again = streaming.PositiveMiningRecall()
    again.load_state_dict(pmr.state_dict())
    assert (again.hits, again.mined) == (3, 4)
    pmr.reset()
    assert int(pmr.mined) == 0


def test_streaming_retrieval_collects_both_sides(streaming):
    torch.manual_seed(0)
    query, gallery = torch.randn(6, 3), torch.randn(9, 3)
    query_labels, gallery_labels = torch.arange(6) % 3, torch.arange(9) % 3
    metric = streaming.RetrievalRecallAtK(ks=(1, 2))
    metric.update(gallery[:4], gallery_labels[:4], gallery=True)
    metric.update(query[:1], query_labels[:1], gallery=False)
    metric.update(query[1:], query_labels[1:], gallery=False)
    metric.update(gallery[4:], gallery_labels[4:], gallery=True)
    assert metric.compute() == retrieval_recall_at_k(query, gallery, query_labels, gallery_labels, ks=(1, 2))


def test_streaming_retrieval_names_the_missing_side(streaming):
    metric = streaming.RetrievalRecallAtK()
    metric.update(torch.ones(1, 2), torch.ones(1).long(), gallery=True)
    with pytest.raises(ValueError, match="no query features yet"):
        metric.compute()


def test_streaming_cmr_refuses_unknown_samples(streaming):
    metric = streaming.ClassMiningRecall(torch.zeros(3).long())
    with pytest.raises(ValueError, match="key_samples must name samples below 3, got 5 to 5"):
        metric.update(torch.tensor([[0]]), torch.tensor([0]), torch.tensor([0]), torch.tensor([5]))


def streamed(rank):
    from cpr_kernels.metrics import ClassMiningRecall, PositiveMiningRecall, RetrievalRecallAtK

    pmr, cmr = PositiveMiningRecall(), ClassMiningRecall(torch.tensor([0, 0, 1, 1]))
    labels = torch.tensor([0, 0, 1, 1])
    mined = torch.tensor([[rank], [3]])  # query labels 0 and 1
    own = torch.tensor([0, 1 - rank])
    pmr.update(mined, own, labels)
    cmr.update(mined, own, labels, torch.arange(4))
    recall = RetrievalRecallAtK(ks=(1,))
    recall.update(torch.eye(2)[rank : rank + 1], torch.tensor([rank]), gallery=True)
    recall.update(torch.eye(2)[1 - rank :][:1], torch.tensor([1 - rank]), gallery=False)
    return {"pmr": pmr.compute().item(), "cmr": cmr.compute().item(), "recall": recall.compute()[1]}


def test_two_ranks_agree_on_the_sum(streaming, tmp_path):
    for found in on_two_ranks(streamed, tmp_path):
        # 3 of 4 right; class 0: both samples over the two ranks, class 1: one of two
        assert found == {"pmr": 0.75, "cmr": 0.75, "recall": 1.0}
