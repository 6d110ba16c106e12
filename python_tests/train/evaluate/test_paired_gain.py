"""The standard error of a difference between runs, where videos of one source depend on each other."""

from __future__ import annotations

import pytest
import torch

from cpr_kernels.train.evaluate.paired_gain import clustered_standard_error


def error_by_hand(values: list[float], clusters: list[str]) -> float:
    middle = sum(values) / len(values)
    of: dict[str, float] = {}
    for value, cluster in zip(values, clusters, strict=True):
        of[cluster] = of.get(cluster, 0.0) + value - middle
    total = sum(part * part for part in of.values())
    return (total * len(of) / (len(of) - 1)) ** 0.5 / len(values)


def test_members_of_a_cluster_count_once() -> None:
    values, names = [1.0, 1.0, 0.0, -1.0, 0.0, 0.0, 1.0], list("aabbbcd")
    found = clustered_standard_error(torch.tensor(values), torch.tensor([ord(name) for name in names]))
    assert found == pytest.approx(error_by_hand(values, names))
    apart = clustered_standard_error(torch.tensor(values), torch.arange(7))
    assert apart == pytest.approx(torch.tensor(values).double().std().item() / 7**0.5)
    thrice = clustered_standard_error(torch.tensor(values * 3), torch.arange(7).repeat(3))
    assert thrice == pytest.approx(apart)  # three copies of each source tell no more than one


def test_one_cluster_tells_nothing() -> None:
    assert clustered_standard_error(torch.tensor([1.0, 0.0]), torch.tensor([4, 4])) == float("inf")
